# ConvNeur-M4 on ImageNet-1K (300 epochs, 224 x 224).
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/convneur_m4_imagenet.py --launcher pytorch --amp
# Hardware: 8 GPUs x 128 images; for any other number add --auto-scale-lr.
# Result:   not trained yet.
_base_ = 'convneur_m1_imagenet.py'
model = dict(backbone=dict(arch='m4', drop_path_rate=0.1), head=dict(in_channels=672))
