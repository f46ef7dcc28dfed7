# Minutes on one CPU core: short warm-up, cosine decay.
_base_ = 'segmentation_160k.py'
max_iters = 1000
train_cfg = dict(max_iters=max_iters, val_interval=250)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, end=max_iters),
]
optim_wrapper = dict(optimizer=dict(lr=3e-3), clip_grad=dict(max_norm=5.0))
