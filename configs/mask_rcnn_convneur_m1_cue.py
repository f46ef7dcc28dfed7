# Does the global branch help a detector? Task cue of the sample data at the size of a detector:
#   python tools/make_sample_data.py --task cue --size 512 --root data/cue_512
# Command:  python tools/train.py configs/mask_rcnn_convneur_m1_cue.py
#           (without a memory: --cfg-options model.backbone.global_mixer=None)
# Hardware: one CPU core.
# Result:   docs/global_context.md
_base_ = [
    '_base_/models/slim_mask_rcnn_convneur.py',
    '_base_/datasets/cue_instance.py',
    '_base_/schedules/sample_detection.py',
    '_base_/runtimes/detection.py',
]
model = dict(roi_head=dict(bbox_head=dict(num_classes=3), mask_head=dict(num_classes=3)))
