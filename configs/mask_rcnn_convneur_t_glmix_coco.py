# Mask R-CNN with ConvNeur-T, COCO, 1x, and GLMix for the neural memory.
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/mask_rcnn_convneur_t_glmix_coco.py --launcher pytorch --amp
# Hardware: 8 GPUs x 2 images; for any other number add --auto-scale-lr.
# Result:   not trained yet; starts from ConvNeXt-T of ImageNet-1K, downloaded on the first run.
_base_ = 'mask_rcnn_convneur_t_coco.py'
model = dict(backbone=dict(global_mixer=dict(type='GLMix')))
