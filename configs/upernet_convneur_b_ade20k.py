# UPerNet with ConvNeur-B, ADE20K, 160k iterations, crops of 512.
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/upernet_convneur_b_ade20k.py --launcher pytorch --amp
# Hardware: 8 GPUs x 2 images; for any other number add --auto-scale-lr.
# Result:   not trained yet; starts from ConvNeXt-B of ImageNet-1K, downloaded on the first run.
_base_ = 'upernet_convneur_t_ade20k.py'
model = dict(
    backbone=dict(arch='b', init_cfg=_base_.convnext.b),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
