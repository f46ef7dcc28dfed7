# Can the global branch look up? Task legend of the sample data:
#   python tools/make_sample_data.py --task legend
# Command:  python tools/train.py configs/segformer_convneur_legend.py
#           (every global branch with three seeds: python tools/compare_mixers.py --tasks legend)
# Hardware: one CPU core.
# Result:   docs/global_branches.md
_base_ = [
    '_base_/models/cue_convneur.py',
    '_base_/datasets/legend.py',
    '_base_/schedules/legend.py',
    '_base_/runtimes/segmentation.py',
]
default_hooks = dict(checkpoint=dict(interval=1500))
