# UPerNet with ConvNeur-S on DINOv3's ConvNeXt-S, ADE20K, 160k iterations, crops of 512.
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/upernet_convneur_s_dinov3_ade20k.py --launcher pytorch --amp
# Hardware: 8 GPUs x 2 images; for any other number add --auto-scale-lr.
# Result:   not trained here.
# Weights:  DINOv3 (LVD-1689M) under the DINOv3 License; ask for them at
#           github.com/facebookresearch/dinov3 and put the file where the first run says, or give
#           that of huggingface.co/facebook/dinov3-convnext-small-pretrain-lvd1689m by
#           --cfg-options model.backbone.init_cfg.checkpoint=model.safetensors
_base_ = 'upernet_convneur_s_ade20k.py'
model = dict(backbone=dict(init_cfg=_base_.dinov3.s))
