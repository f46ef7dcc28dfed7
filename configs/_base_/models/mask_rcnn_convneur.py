_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'
model = dict(
    backbone=dict(_delete_=True, type='mmconvneur.ConvNeur', arch='t'),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
