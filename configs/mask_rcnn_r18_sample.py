# mmdet's ResNet-18 in place of ConvNeur-M1, all else equal: what the sample run is compared with.
# Command:  python tools/train.py configs/mask_rcnn_r18_sample.py
# Hardware: 2 CPU cores.
# Result:   docs/sample_data.md
_base_ = 'mask_rcnn_convneur_m1_sample.py'
model = dict(
    backbone=dict(_delete_=True, type='ResNet', depth=18, norm_eval=False),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
