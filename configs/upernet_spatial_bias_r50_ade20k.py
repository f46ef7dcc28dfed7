# UPerNet with SpatialBias-ResNet-50, ADE20K, 160k iterations, crops of 512; SGD as for mmseg's own
# ResNets.
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/upernet_spatial_bias_r50_ade20k.py --launcher pytorch --amp
# Hardware: 8 GPUs x 2 images; for any other number add --auto-scale-lr.
# Result:   not trained yet; starts from ResNet-50 of ImageNet-1K, downloaded on the first run.
_base_ = [
    '_base_/models/upernet_spatial_bias.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/segmentation_160k.py',
    '_base_/runtimes/segmentation.py',
]
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0005),
    paramwise_cfg=None,
)
