# Mask R-CNN with SpatialBias-ResNet-50, COCO, 1x (12 epochs, 1333 x 800, SGD): mmdet's ResNet-50
# config with the bias in layers 1 to 3. Layer 1 trains too: frozen, its bias would have no effect.
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/mask_rcnn_spatial_bias_r50_coco.py --launcher pytorch --amp
# Hardware: 8 GPUs x 2 images; for any other number add --auto-scale-lr.
# Result:   not trained yet; starts from ResNet-50 of ImageNet-1K, downloaded on the first run.
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
model = dict(backbone=dict(type='mmconvneur.SpatialBiasResNet', frozen_stages=0))
