# Does the global branch carry information across the image? Task cue of the sample data:
#   python tools/make_sample_data.py --task cue
# Command:  python tools/train.py configs/segformer_convneur_cue.py
#           (every global branch with three seeds: python tools/compare_mixers.py)
# Hardware: one CPU core.
# Result:   docs/global_branches.md
_base_ = [
    '_base_/models/cue_convneur.py',
    '_base_/datasets/cue.py',
    '_base_/schedules/cue.py',
    '_base_/runtimes/segmentation.py',
]
default_hooks = dict(checkpoint=dict(interval=1000))
