# Mask R-CNN with ConvNeur-M4, COCO, 1x (12 epochs, 1333 x 800).
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/mask_rcnn_convneur_m4_coco.py --launcher pytorch --amp
# Hardware: 8 GPUs x 2 images; for any other number add --auto-scale-lr.
# Result:   not trained yet; from scratch.
_base_ = 'mask_rcnn_convneur_m1_coco.py'
model = dict(
    backbone=dict(arch='m4'),
    neck=dict(in_channels=[84, 168, 336, 672]),
)
