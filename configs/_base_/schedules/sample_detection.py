# Minutes on two CPU cores: short warm-up, cosine decay, two evaluations.
_base_ = 'detection_1x.py'
max_epochs = 6
train_cfg = dict(max_epochs=max_epochs, val_interval=3)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, convert_to_iter_based=True
    ),
]
optim_wrapper = dict(optimizer=dict(lr=1.5e-3, betas=(0.9, 0.95)), clip_grad=dict(max_norm=3.0))
auto_scale_lr = dict(base_batch_size=4)
