# Mask R-CNN with ConvNeur-B, COCO, 3x (36 epochs, multi-scale 480-800 and crops).
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/mask_rcnn_convneur_b_3x_coco.py --launcher pytorch --amp
# Hardware: 8 GPUs x 2 images; for any other number add --auto-scale-lr.
# Result:   not trained yet; starts from ConvNeXt-B of ImageNet-1K, downloaded on the first run.
_base_ = 'mask_rcnn_convneur_t_3x_coco.py'
model = dict(
    backbone=dict(arch='b', drop_path_rate=0.6, init_cfg=_base_.convnext.b),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
