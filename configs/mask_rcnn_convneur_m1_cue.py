# Does the global branch help a detector? Task cue of the sample data, after the segmentor
# segformer_convneur_m1_cue.py:
#   python tools/make_sample_data.py --task cue --size 512 --num-train 2000 --num-val 200 \
#       --root data/cue_512
# Command:  python tools/train.py configs/mask_rcnn_convneur_m1_cue.py --cfg-options \
#               randomness.seed=0
#           (without a memory: also model.backbone.global_mixer=None, and the checkpoint of that
#           segmentor as model.backbone.init_cfg.checkpoint)
# Hardware: one CPU core beside other work, 25 minutes.
# Result:   81.9 box AP, 86.5 mask AP; without a memory 28.3 box AP, 30.9 mask AP
#           (docs/global_context.md)
_base_ = [
    '_base_/models/slim_mask_rcnn_convneur.py',
    '_base_/datasets/cue_instance.py',
    '_base_/schedules/cue_detection.py',
    '_base_/runtimes/detection.py',
]
model = dict(
    # Things are 90 to 120 pixels large: a map of stride 4 would double the time for nothing.
    backbone=dict(
        out_indices=(1, 2, 3),
        init_cfg=dict(
            _delete_=True,
            type='Pretrained',
            checkpoint='work_dirs/segformer_convneur_m1_cue/iter_1000.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=[80, 160, 320], num_outs=3),
    rpn_head=dict(anchor_generator=dict(strides=[8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(featmap_strides=[8, 16, 32]),
        bbox_head=dict(num_classes=3),
        mask_roi_extractor=dict(featmap_strides=[8, 16, 32]),
        mask_head=dict(num_classes=3),
    ),
)
