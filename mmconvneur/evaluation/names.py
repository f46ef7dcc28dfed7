"""Names of the evaluators' metrics in tables and plots."""

METRICS = {  # what an evaluator returns: task, name of the metric, factor to percent
    'coco/bbox_mAP': ('Object Detection', 'box AP', 100),
    'coco/segm_mAP': ('Instance Segmentation', 'mask AP', 100),
    'mIoU': ('Semantic Segmentation', 'mIoU', 1),
    'accuracy/top1': ('Image Classification', 'top-1', 1),
}
