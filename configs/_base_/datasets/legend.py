# Task legend of the sample data (python tools/make_sample_data.py --task legend).
_base_ = 'cue.py'
dataset = dict(
    data_root='data/legend',
    metainfo=dict(
        classes=('background', 'dark', 'light', 'stripes'),
        palette=[[0, 0, 0], [40, 40, 40], [235, 235, 235], [150, 90, 200]],
    ),
)
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
