# UPerNet with GLNet-4G, ADE20K, 160k iterations, crops of 512.
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/upernet_glnet_4g_ade20k.py --launcher pytorch --amp
# Hardware: 8 GPUs x 2 images; for any other number add --auto-scale-lr.
# Result:   not trained here; from scratch, or from a published file that you have:
#           --cfg-options model.backbone.init_cfg.type=Pretrained \
#               model.backbone.init_cfg.checkpoint=FILE
_base_ = [
    '_base_/models/upernet_glnet.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/segmentation_160k.py',
    '_base_/runtimes/segmentation.py',
]
model = dict(
    backbone=dict(arch='4g'),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
