# UPerNet with heads cut down for small images on a CPU: 64 channels, plain batch norm.
_base_ = 'upernet_convneur.py'
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(192, 192)),
    # PyTorch's own initialisation learns faster here than a deviation of 0.02.
    backbone=dict(arch='m1', init_cfg=None),
    decode_head=dict(in_channels=[40, 80, 160, 320], channels=64, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=160, channels=64, norm_cfg=norm_cfg),
)
