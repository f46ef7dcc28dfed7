# ConvNeur-M1 on ImageNet-1K (300 epochs, 224 x 224).
# Command:  torchrun --nproc_per_node 8 tools/train.py \
#               configs/convneur_m1_imagenet.py --launcher pytorch --amp
# Hardware: 8 GPUs x 128 images; for any other number add --auto-scale-lr.
# Result:   not trained yet.
_base_ = [
    '_base_/models/convneur_classifier.py',
    '_base_/datasets/imagenet.py',
    '_base_/schedules/imagenet_300e.py',
    '_base_/runtimes/classification.py',
]
