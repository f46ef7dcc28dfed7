# Does a memory teach a frozen trunk to look across the image? The trunk was trained without one:
#   python tools/make_sample_data.py --task cue
#   python tools/train.py configs/segformer_convneur_cue.py --work-dir work_dirs/cue_trunk \
#       --cfg-options model.backbone.global_mixer=None
# Command:  python tools/train.py configs/segformer_convneur_cue_adapter.py
#           (without the memory: --cfg-options model.backbone.global_mixer=None)
# Hardware: one CPU core.
# Result:   docs/weights.md
_base_ = 'segformer_convneur_cue.py'
trunk = dict(type='Pretrained', checkpoint='work_dirs/cue_trunk/iter_1000.pth')
model = dict(backbone=dict(frozen_trunk=True, init_cfg=dict(_delete_=True, **trunk)))
custom_hooks = [dict(type='mmconvneur.LearnedPartHook')]
