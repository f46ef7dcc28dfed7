# UPerNet with ConvNeur-L, ADE20K, 160k iterations, crops of 512.
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/upernet_convneur_l_ade20k.py --launcher pytorch --amp
# Hardware: 8 GPUs x 2 images; for any other number add --auto-scale-lr.
# Result:   not trained here; starts from ConvNeXt-L of ImageNet-21K, downloaded on the first run.
# Weights:  mmpretrain's copy (Apache 2.0) of those of facebookresearch/ConvNeXt (MIT).
_base_ = 'upernet_convneur_t_ade20k.py'
model = dict(
    backbone=dict(arch='l', init_cfg=_base_.convnext_in21k.l),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
