# UPerNet with ConvNeur-M1 and slim heads on the sample data (python tools/make_sample_data.py).
# Command:  python tools/train.py configs/upernet_convneur_m1_sample.py \
#               --cfg-options load_from=mask_rcnn_convneur_m1_sample
# Hardware: one CPU core, 64 minutes beside other work.
# Result:   66.8 mIoU over 8 classes, from the backbone of the detector; released
#           (docs/sample_data.md).
_base_ = [
    '_base_/models/slim_upernet_convneur.py',
    '_base_/datasets/sample_semantic.py',
    '_base_/schedules/sample_segmentation.py',
    '_base_/runtimes/segmentation.py',
]
model = dict(decode_head=dict(num_classes=8), auxiliary_head=dict(num_classes=8))
default_hooks = dict(checkpoint=dict(interval=1200))
