# UperNet with ConvNeur-T, ADE20K, 160k iterations, crops of 512.
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/upernet_convneur_t_ade20k.py --launcher pytorch --amp
# Hardware: 8 GPUs x 2 images; for any other number add --auto-scale-lr.
# Result:   not trained yet; from scratch, no pretrained backbone is loaded.
_base_ = [
    '_base_/models/upernet_convneur.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/segmentation_160k.py',
    '_base_/runtimes/segmentation.py',
]
model = dict(backbone=dict(arch='t', drop_path_rate=0.4))
