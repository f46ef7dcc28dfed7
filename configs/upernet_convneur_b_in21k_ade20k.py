# UPerNet with ConvNeur-B, ADE20K, 160k iterations, crops of 512.
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/upernet_convneur_b_in21k_ade20k.py --launcher pytorch --amp
# Hardware: 8 GPUs x 2 images; for any other number add --auto-scale-lr.
# Result:   not trained here; starts from ConvNeXt-B of ImageNet-21K, downloaded on the first run.
# Weights:  mmpretrain's copy (Apache 2.0) of those of facebookresearch/ConvNeXt (MIT).
_base_ = 'upernet_convneur_b_ade20k.py'
model = dict(backbone=dict(init_cfg=_base_.convnext_in21k.b))
