# Mask R-CNN with ConvNeur-T, COCO, 1x, and full self-attention for the neural memory, in the third
# and fourth stage only. It takes 2 N^2 C_m multiplications for N pixels: at 800 x 1280, with
# N = 64000, 16000, 4000, 1000 and C_m = 48, 96, 192, 384, these are 393, 49, 6.1 and 0.8 G, beside
# 91 G of the rest of the backbone; without a fused kernel the first stage would also need
# 4 heads x 64000^2 x 4 bytes = 66 GB for its weights. Compare with placement=[2, 3] elsewhere.
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/mask_rcnn_convneur_t_attention_coco.py --launcher pytorch --amp
# Hardware: 8 GPUs x 2 images; for any other number add --auto-scale-lr.
# Result:   not trained yet; starts from ConvNeXt-T of ImageNet-1K, downloaded on the first run.
_base_ = 'mask_rcnn_convneur_t_coco.py'
model = dict(backbone=dict(global_mixer=dict(type='SelfAttention'), placement=[2, 3]))
