# Can the global branch look up? Task legend of the sample data:
#   python tools/make_sample_data.py --task legend
# Command:  python tools/train.py configs/segformer_convneur_legend.py
#           (every global branch with three seeds: python tools/compare_mixers.py --tasks legend)
# Hardware: one CPU core.
# Result:   not trained yet
_base_ = 'segformer_convneur_cue.py'
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
