# An hour on a CPU core: short warm-up, linear decay.
_base_ = 'segmentation_160k.py'
max_iters = 7200
train_cfg = dict(max_iters=max_iters, val_interval=1200)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=50, end=max_iters),
]
optim_wrapper = dict(optimizer=dict(lr=1e-3, betas=(0.9, 0.95)), clip_grad=dict(max_norm=3.0))
auto_scale_lr = dict(base_batch_size=4)
