# Boxes and masks of the items in the scenes (python tools/make_sample_data.py --task fashion).
_base_ = 'sample_instance.py'
data_root = 'data/fashion/'
metainfo = dict(
    classes=(
        *('t-shirt', 'trouser', 'pullover', 'dress', 'coat'),
        *('sandal', 'shirt', 'sneaker', 'bag', 'boot'),
    ),
    palette=[
        *[(230, 180, 40), (220, 60, 60), (60, 160, 230), (170, 90, 220), (60, 190, 110)],
        *[(240, 130, 30), (30, 200, 200), (120, 80, 40), (250, 120, 180), (110, 120, 140)],
    ],
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
data = dict(data_root=data_root, metainfo=metainfo)
train_dataloader = dict(dataset=dict(**data, pipeline=train_pipeline))
val_dataloader = dict(dataset=data)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator
