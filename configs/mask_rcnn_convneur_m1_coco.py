# Mask R-CNN with ConvNeur-M1, COCO, 1x (12 epochs, 1333 x 800).
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/mask_rcnn_convneur_m1_coco.py --launcher pytorch --amp
# Hardware: 8 GPUs x 2 images; for any other number add --auto-scale-lr.
# Result:   not trained yet; from scratch, no pretrained backbone is loaded.
_base_ = 'mask_rcnn_convneur_t_coco.py'
model = dict(
    backbone=dict(arch='m1', drop_path_rate=0.0),
    neck=dict(in_channels=[40, 80, 160, 320]),
)
