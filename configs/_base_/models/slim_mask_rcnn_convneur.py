# Mask R-CNN with heads cut down for small images on a CPU: 64 channels, strides 4 to 32.
_base_ = 'mask_rcnn_convneur.py'
model = dict(
    # PyTorch's own initialisation learns faster here than a deviation of 0.02.
    backbone=dict(arch='m1', init_cfg=None),
    neck=dict(in_channels=[40, 80, 160, 320], out_channels=64, num_outs=4),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(
            in_channels=64,
            fc_out_channels=256,
            reg_decoded_bbox=True,
            loss_bbox=dict(_delete_=True, type='GIoULoss', loss_weight=10.0),
        ),
        mask_roi_extractor=dict(out_channels=64, roi_layer=dict(sampling_ratio=2)),
        mask_head=dict(in_channels=64, conv_out_channels=64, num_convs=2),
    ),
    train_cfg=dict(
        # Few objects in few passes: more anchors have to count as theirs.
        rpn=dict(assigner=dict(pos_iou_thr=0.5), sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=250, max_per_img=100),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100), rcnn=dict(max_per_img=50)),
)
