# Mask R-CNN with ConvNeur-T on DINOv3's frozen ConvNeXt-T, COCO, 1x: memory, neck and heads learn.
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/mask_rcnn_convneur_t_dinov3_adapter_coco.py --launcher pytorch --amp
# Hardware: 8 GPUs x 2 images; for any other number add --auto-scale-lr.
# Result:   not trained here.
# Weights:  DINOv3 (LVD-1689M) under the DINOv3 License; ask for them at
#           github.com/facebookresearch/dinov3 and put the file where the first run says, or give
#           that of huggingface.co/facebook/dinov3-convnext-tiny-pretrain-lvd1689m by
#           --cfg-options model.backbone.init_cfg.checkpoint=model.safetensors
_base_ = 'mask_rcnn_convneur_t_dinov3_coco.py'
model = dict(backbone=dict(frozen_trunk=True))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=1.0))  # what learns starts at random
custom_hooks = [dict(type='mmconvneur.LearnedPartHook')]  # checkpoints without the trunk
