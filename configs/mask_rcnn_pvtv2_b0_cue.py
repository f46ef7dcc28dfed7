# mmdet's PVTv2-B0, whose attention spans the image, in place of ConvNeur-M1, all else equal.
# Command:  python tools/train.py configs/mask_rcnn_pvtv2_b0_cue.py
# Hardware: one CPU core.
# Result:   not trained yet
_base_ = 'mask_rcnn_convneur_m1_cue.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='PyramidVisionTransformerV2',
        embed_dims=32,
        num_layers=[2, 2, 2, 2],
        out_indices=(1, 2, 3),
    ),
    neck=dict(in_channels=[64, 160, 256]),
)
