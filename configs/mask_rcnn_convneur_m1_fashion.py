# Mask R-CNN with ConvNeur-M1 and slim heads on scenes of Fashion-MNIST's items
# (python tools/make_sample_data.py --task fashion).
# Command:  python tools/train.py configs/mask_rcnn_convneur_m1_fashion.py
# Pretrained: --cfg-options model.backbone.init_cfg="dict(
#                 _delete_=True, type='Pretrained', checkpoint='...', prefix='backbone.')"
# Without the memory, and with a ResNet-18: as in the header of convneur_m1_fashion.py; a ResNet-18
#     also needs norm_eval=False in it, and model.neck.in_channels=[64,128,256,512].
# Hardware: one CPU core beside other work; 30 minutes for 2 epochs of 2000 scenes.
# Result:   after these, from scratch 13.5 box AP, 15.4 mask AP; pretrained 17.6 box AP,
#           19.7 mask AP (docs/pretraining.md, with the other backbones)
_base_ = [
    '_base_/models/slim_mask_rcnn_convneur.py',
    '_base_/datasets/fashion_instance.py',
    '_base_/schedules/sample_detection.py',
    '_base_/runtimes/detection.py',
]
model = dict(roi_head=dict(bbox_head=dict(num_classes=10), mask_head=dict(num_classes=10)))
