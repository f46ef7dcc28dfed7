# Mask R-CNN with ConvNeur-B on DINOv3's ConvNeXt-B, COCO, 1x, layer-wise decay.
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/mask_rcnn_convneur_b_dinov3_coco.py --launcher pytorch --amp
# Hardware: 8 GPUs x 2 images; for any other number add --auto-scale-lr.
# Result:   not trained here.
# Weights:  DINOv3 (LVD-1689M) under the DINOv3 License; ask for them at
#           github.com/facebookresearch/dinov3 and put the file where the first run says, or give
#           that of huggingface.co/facebook/dinov3-convnext-base-pretrain-lvd1689m by
#           --cfg-options model.backbone.init_cfg.checkpoint=model.safetensors
_base_ = 'mask_rcnn_convneur_t_dinov3_coco.py'
model = dict(
    backbone=dict(arch='b', drop_path_rate=0.4, init_cfg=_base_.dinov3.b),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
