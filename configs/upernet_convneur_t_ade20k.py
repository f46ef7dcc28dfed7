# UPerNet with ConvNeur-T, ADE20K, 160k iterations, crops of 512.
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/upernet_convneur_t_ade20k.py --launcher pytorch --amp
# Hardware: 8 GPUs x 2 images; for any other number add --auto-scale-lr.
# Result:   not trained yet; starts from ConvNeXt-T of ImageNet-1K, downloaded on the first run.
_base_ = [
    '_base_/models/upernet_convneur.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/segmentation_160k_layer_decay.py',
    '_base_/pretrained.py',
    '_base_/runtimes/segmentation.py',
]
model = dict(backbone=dict(arch='t', drop_path_rate=0.4, init_cfg=_base_.convnext.t))
