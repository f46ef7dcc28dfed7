# mmdet's ResNet-18 in place of ConvNeur-M1, all else equal.
# Command:  python tools/train.py configs/mask_rcnn_r18_cue.py
# Hardware: one CPU core.
# Result:   docs/global_context.md
_base_ = 'mask_rcnn_convneur_m1_cue.py'
model = dict(
    backbone=dict(_delete_=True, type='ResNet', depth=18, norm_eval=False),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
