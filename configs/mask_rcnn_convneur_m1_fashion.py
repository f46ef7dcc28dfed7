# Mask R-CNN with ConvNeur-M1 and slim heads on scenes of Fashion-MNIST's items
# (python tools/make_sample_data.py --task fashion).
# Command:  python tools/train.py configs/mask_rcnn_convneur_m1_fashion.py
# Pretrained: --cfg-options model.backbone.init_cfg="dict(
#                 _delete_=True, type='Pretrained', checkpoint='...', prefix='backbone.')"
# Without the memory, and with a ResNet-18: as in the header of convneur_m1_fashion.py; a ResNet-18
#     also needs norm_eval=False in it, and model.neck.in_channels=[64,128,256,512].
# Hardware: one CPU core.
# Result:   not trained yet.
_base_ = [
    '_base_/models/slim_mask_rcnn_convneur.py',
    '_base_/datasets/fashion_instance.py',
    '_base_/schedules/sample_detection.py',
    '_base_/runtimes/detection.py',
]
model = dict(roi_head=dict(bbox_head=dict(num_classes=10), mask_head=dict(num_classes=10)))
