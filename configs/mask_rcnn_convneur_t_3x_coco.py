# Mask R-CNN with ConvNeur-T, COCO, 3x (36 epochs, multi-scale 480-800 and crops).
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/mask_rcnn_convneur_t_3x_coco.py --launcher pytorch --amp
# Hardware: 8 GPUs x 2 images; for any other number add --auto-scale-lr.
# Result:   not trained yet; starts from ConvNeXt-T of ImageNet-1K, downloaded on the first run.
_base_ = [
    '_base_/models/mask_rcnn_convneur.py',
    '_base_/datasets/coco_multiscale.py',
    '_base_/schedules/detection_3x.py',
    '_base_/pretrained.py',
    '_base_/runtimes/detection.py',
]
model = dict(backbone=dict(arch='t', drop_path_rate=0.2, init_cfg=_base_.convnext.t))
