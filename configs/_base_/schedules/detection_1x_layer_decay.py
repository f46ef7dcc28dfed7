# 12 epochs with layer-wise learning-rate decay: the stem of T learns at 0.9 ** 7 of the rate of the
# heads, that of S, B and L at 0.9 ** 13.
_base_ = 'detection_1x.py'
optim_wrapper = dict(
    constructor='mmconvneur.LearningRateDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.9),
)
