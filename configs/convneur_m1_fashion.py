# ConvNeur-M1 as a classifier of Fashion-MNIST (python tools/make_sample_data.py --task fashion).
# Command:  python tools/train.py configs/convneur_m1_fashion.py
# Without the memory: --cfg-options model.backbone.global_mixer=None
# ResNet-18:          --cfg-options model.head.in_channels=512 \
#                         model.backbone="dict(_delete_=True, type='ResNet', depth=18)"
# Hardware: one CPU core beside other work; 20 minutes for 2 of the 8 epochs.
# Result:   after 2 epochs 85.6 top-1; without the memory 86.0, ResNet-18 88.9
#           (docs/pretraining.md)
_base_ = [
    '_base_/models/convneur_classifier.py',
    '_base_/datasets/fashion_items.py',
    '_base_/schedules/sample_classification.py',
    '_base_/runtimes/classification.py',
]
model = dict(
    data_preprocessor=dict(num_classes=10),
    # PyTorch's own initialisation learns faster here than a deviation of 0.02.
    backbone=dict(init_cfg=None),
    head=dict(num_classes=10),
    train_cfg=None,
)
auto_scale_lr = dict(base_batch_size=64)
