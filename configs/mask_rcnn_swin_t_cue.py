# mmdet's Swin-T in place of ConvNeur-M1, all else equal.
# Command:  python tools/train.py configs/mask_rcnn_swin_t_cue.py
# Hardware: one CPU core.
# Result:   docs/global_context.md
_base_ = 'mask_rcnn_convneur_m1_cue.py'
model = dict(
    backbone=dict(_delete_=True, type='SwinTransformer', convert_weights=True),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
