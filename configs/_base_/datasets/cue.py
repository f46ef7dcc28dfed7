# Task cue of the sample data (python tools/make_sample_data.py --task cue): background is a class.
metainfo = dict(
    classes=('background', 'red', 'green', 'blue'),
    palette=[[0, 0, 0], [205, 45, 40], [40, 175, 55], [45, 70, 215]],
)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
dataset = dict(
    type='BaseSegDataset',
    data_root='data/cue',
    metainfo=metainfo,
    img_suffix='.png',
    seg_map_suffix='.png',
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path='images/train', seg_map_path='semantic/train'),
        pipeline=pipeline,
    ),
)
val_dataloader = dict(
    batch_size=30,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path='images/val', seg_map_path='semantic/val'),
        pipeline=pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='mmconvneur.ForegroundIoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
