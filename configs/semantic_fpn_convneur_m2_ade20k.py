# Semantic FPN with ConvNeur-M2, ADE20K, 80k iterations, crops of 512.
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/semantic_fpn_convneur_m2_ade20k.py --launcher pytorch --amp
# Hardware: 8 GPUs x 2 images; for any other number add --auto-scale-lr.
# Result:   not trained yet; from scratch.
_base_ = [
    '_base_/models/semantic_fpn_convneur.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/segmentation_80k.py',
    '_base_/runtimes/segmentation.py',
]
model = dict(backbone=dict(arch='m2'), neck=dict(in_channels=[48, 96, 192, 384]))
