# ConvNeur-M1 as a classifier of the things of the sample data (python tools/make_sample_data.py).
# Command:  python tools/train.py configs/convneur_m1_sample.py
# Hardware: one CPU core.
# Result:   not trained yet.
_base_ = [
    '_base_/models/convneur_classifier.py',
    '_base_/datasets/sample_classification.py',
    '_base_/schedules/sample_classification.py',
    '_base_/runtimes/classification.py',
]
model = dict(
    data_preprocessor=dict(num_classes=5),
    # PyTorch's own initialisation learns faster here than a deviation of 0.02.
    backbone=dict(init_cfg=None),
    head=dict(num_classes=5),
    train_cfg=None,
)
