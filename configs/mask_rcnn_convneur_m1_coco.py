# Mask R-CNN with ConvNeur-M1, COCO, 1x (12 epochs, 1333 x 800).
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/mask_rcnn_convneur_m1_coco.py --launcher pytorch --amp
# Hardware: 8 GPUs x 2 images; for any other number add --auto-scale-lr.
# Result:   not trained yet; from scratch.
_base_ = [
    '_base_/models/mask_rcnn_convneur.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '_base_/schedules/detection_1x.py',
    '_base_/runtimes/detection.py',
]
model = dict(
    backbone=dict(arch='m1'),
    neck=dict(in_channels=[40, 80, 160, 320]),
)
