# mmdet's ResNet-18 in place of ConvNeur-M1, all else equal.
# Command:  python tools/train.py configs/mask_rcnn_r18_cue.py
# Hardware: one CPU core.
# Result:   not trained yet
_base_ = 'mask_rcnn_convneur_m1_cue.py'
model = dict(
    backbone=dict(_delete_=True, type='ResNet', depth=18, norm_eval=False, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[128, 256, 512]),
)
