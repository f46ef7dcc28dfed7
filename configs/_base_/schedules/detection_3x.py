# 36 epochs, steps at 27 and 33; layer-wise learning-rate decay for a pretrained backbone.
_base_ = 'detection_1x_layer_decay.py'
max_epochs = 36
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(
        type='MultiStepLR', by_epoch=True, begin=0, end=max_epochs, milestones=[27, 33], gamma=0.1
    ),
]
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.95))
