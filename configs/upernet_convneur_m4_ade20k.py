# UPerNet with ConvNeur-M4, ADE20K, 160k iterations, crops of 512.
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/upernet_convneur_m4_ade20k.py --launcher pytorch --amp
# Hardware: 8 GPUs x 2 images; for any other number add --auto-scale-lr.
# Result:   not trained yet; from scratch.
_base_ = [
    '_base_/models/upernet_convneur.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/segmentation_160k.py',
    '_base_/runtimes/segmentation.py',
]
model = dict(
    backbone=dict(arch='m4', drop_path_rate=0.1),
    decode_head=dict(in_channels=[84, 168, 336, 672]),
    auxiliary_head=dict(in_channels=336),
)
