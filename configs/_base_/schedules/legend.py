# As for cue, half as long again.
_base_ = 'cue.py'
max_iters = 1500
train_cfg = dict(max_iters=max_iters, val_interval=375)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, end=max_iters),
]
