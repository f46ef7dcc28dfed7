# UPerNet with GLNet; batch norms over all GPUs, since each has few images.
_base_ = 'upernet_convneur.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmconvneur.GLNet',
        arch='stl',
        drop_path_rate=0.2,
        norm_cfg=dict(type='SyncBN'),
    ),
)
