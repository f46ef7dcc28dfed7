# Semantic maps of items and grounds (python tools/make_sample_data.py --task fashion).
_base_ = 'sample_semantic.py'
metainfo = dict(
    classes=(
        *('t-shirt', 'trouser', 'pullover', 'dress', 'coat'),
        *('sandal', 'shirt', 'sneaker', 'bag', 'boot'),
        *('brick', 'grass', 'gravel'),
    ),
    palette=[
        *[[230, 180, 40], [220, 60, 60], [60, 160, 230], [170, 90, 220], [60, 190, 110]],
        *[[240, 130, 30], [30, 200, 200], [120, 80, 40], [250, 120, 180], [110, 120, 140]],
        *[[150, 75, 50], [40, 110, 40], [130, 130, 130]],
    ],
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
data = dict(data_root='data/fashion', metainfo=metainfo)
train_dataloader = dict(dataset=dict(**data, pipeline=train_pipeline))
val_dataloader = dict(dataset=data)
test_dataloader = val_dataloader
