# 160k iterations with layer-wise learning-rate decay for a pretrained backbone.
# ConvNeXt's recipe decays by 0.9 per stage: 0.9 ** 6, 5, 4, 3 for the stages of T, 0.9 ** 12, 11,
# 10, 9 for those of S, B, L. The first two stages and the start of the third have the same rates
# here; later blocks go on towards the rate of the heads, and a downsampling layer has the rate of
# its stage, not of the stem.
_base_ = 'segmentation_160k.py'
optim_wrapper = dict(
    constructor='mmconvneur.LearningRateDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.9),
)
