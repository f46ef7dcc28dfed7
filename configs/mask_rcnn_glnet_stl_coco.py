# Mask R-CNN with GLNet-STL, COCO, 1x (12 epochs, 1333 x 800).
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/mask_rcnn_glnet_stl_coco.py --launcher pytorch --amp
# Hardware: 8 GPUs x 2 images; for any other number add --auto-scale-lr.
# Result:   not trained here; from scratch, or from a published file that you have:
#           --cfg-options model.backbone.init_cfg.type=Pretrained \
#               model.backbone.init_cfg.checkpoint=FILE
_base_ = [
    '_base_/models/mask_rcnn_glnet.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '_base_/schedules/detection_1x.py',
    '_base_/runtimes/detection.py',
]
model = dict(backbone=dict(arch='stl'))
