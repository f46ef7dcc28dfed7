# mmdet's PVTv2-B0, whose attention spans the image, in place of ConvNeur-M1, all else equal.
# Command:  python tools/train.py configs/segformer_pvtv2_b0_cue.py --cfg-options randomness.seed=0
# Hardware: one CPU core beside other work, 8 minutes.
# Result:   27.2 mIoU
_base_ = 'segformer_convneur_m1_cue.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdet.PyramidVisionTransformerV2',
        embed_dims=32,
        num_layers=[2, 2, 2, 2],
    ),
    decode_head=dict(in_channels=[32, 64, 160, 256]),
)
