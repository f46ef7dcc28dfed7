# Mask R-CNN with ConvNeur-M1 and slim heads on the sample data (python tools/make_sample_data.py).
# Command:  python tools/train.py configs/mask_rcnn_convneur_m1_sample.py
# Hardware: 2 CPU cores, about 8 minutes.
# Result:   42.1 box AP, 40.7 mask AP, from scratch (docs/sample_data.md).
_base_ = [
    '_base_/models/slim_mask_rcnn_convneur.py',
    '_base_/datasets/sample_instance.py',
    '_base_/schedules/sample_detection.py',
    '_base_/runtimes/detection.py',
]
model = dict(roi_head=dict(bbox_head=dict(num_classes=5), mask_head=dict(num_classes=5)))
