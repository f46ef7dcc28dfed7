# Mask R-CNN with ConvNeur-T, COCO, 1x (12 epochs, 1333 x 800).
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/mask_rcnn_convneur_t_coco.py --launcher pytorch --amp
# Hardware: 8 GPUs x 2 images; for any other number add --auto-scale-lr.
# Result:   not trained yet; starts from ConvNeXt-T of ImageNet-1K, downloaded on the first run.
_base_ = [
    '_base_/models/mask_rcnn_convneur.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '_base_/schedules/detection_1x.py',
    '_base_/pretrained.py',
    '_base_/runtimes/detection.py',
]
model = dict(backbone=dict(arch='t', drop_path_rate=0.1, init_cfg=_base_.convnext.t))
