# Task cue with boxes and masks, 512 x 512
# (python tools/make_sample_data.py --task cue --size 512 --root data/cue_512).
_base_ = 'sample_instance.py'
data_root = 'data/cue_512/'
metainfo = dict(
    classes=('red', 'green', 'blue'), palette=[(205, 45, 40), (40, 175, 55), (45, 70, 215)]
)
train_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo))
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator
