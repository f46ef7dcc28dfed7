# Minutes on a CPU core: short warm-up, cosine decay, averages over the last hundred iterations.
_base_ = 'imagenet_300e.py'
max_epochs = 8
train_cfg = dict(max_epochs=max_epochs, val_interval=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', end=max_epochs, convert_to_iter_based=True),
]
optim_wrapper = dict(optimizer=dict(lr=1.5e-3), clip_grad=dict(max_norm=3.0))
custom_hooks = [dict(type='EMAHook', momentum=0.01, priority='ABOVE_NORMAL')]
auto_scale_lr = dict(base_batch_size=32)
