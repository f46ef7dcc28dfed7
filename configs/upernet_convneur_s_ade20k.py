# UPerNet with ConvNeur-S, ADE20K, 160k iterations, crops of 512.
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/upernet_convneur_s_ade20k.py --launcher pytorch --amp
# Hardware: 8 GPUs x 2 images; for any other number add --auto-scale-lr.
# Result:   not trained yet; starts from ConvNeXt-S of ImageNet-1K, downloaded on the first run.
_base_ = 'upernet_convneur_t_ade20k.py'
model = dict(backbone=dict(arch='s', init_cfg=_base_.convnext.s))
