# Mask R-CNN with ConvNeur-L, COCO, 3x (36 epochs, multi-scale 480-800 and crops).
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/mask_rcnn_convneur_l_3x_coco.py --launcher pytorch --amp
# Hardware: 8 GPUs x 2 images; for any other number add --auto-scale-lr.
# Result:   not trained here; starts from ConvNeXt-L of ImageNet-21K, downloaded on the first run.
# Weights:  mmpretrain's copy (Apache 2.0) of those of facebookresearch/ConvNeXt (MIT).
_base_ = 'mask_rcnn_convneur_t_3x_coco.py'
model = dict(
    backbone=dict(arch='l', drop_path_rate=0.7, init_cfg=_base_.convnext_in21k.l),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
