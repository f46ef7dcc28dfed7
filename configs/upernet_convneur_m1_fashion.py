# UPerNet with ConvNeur-M1 and slim heads on scenes of Fashion-MNIST's items
# (python tools/make_sample_data.py --task fashion).
# Command:  python tools/train.py configs/upernet_convneur_m1_fashion.py
# Variants: as in the header of mask_rcnn_convneur_m1_fashion.py; a ResNet-18 also needs
#     model.decode_head.in_channels=[64,128,256,512] model.auxiliary_head.in_channels=256
# Hardware: one CPU core.
# Result:   after 1500 iterations, 26.1 mIoU from scratch, 27.1 pretrained (docs/pretraining.md,
#           with the other backbones)
_base_ = [
    '_base_/models/slim_upernet_convneur.py',
    '_base_/datasets/fashion_semantic.py',
    '_base_/schedules/sample_segmentation.py',
    '_base_/runtimes/segmentation.py',
]
# The grounds fill four fifths of a scene. Without weights, all items are taken for one class for
# more than 1500 iterations.
loss_decode = dict(class_weight=[1.0] * 10 + [0.1] * 3)
model = dict(
    data_preprocessor=dict(size=(256, 256)),
    decode_head=dict(num_classes=13, loss_decode=loss_decode),
    auxiliary_head=dict(num_classes=13, loss_decode=loss_decode),
)
