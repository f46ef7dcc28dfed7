"""Test-time augmentation for instance segmentation, which mmdet has for boxes alone."""

from __future__ import annotations

from mmcv.ops import batched_nms
from mmdet.models import DetTTAModel
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_flip
from mmengine.registry import MODELS
from mmengine.structures import InstanceData

FLIPPED_AXES = {'horizontal': (-1,), 'vertical': (-2,), 'diagonal': (-2, -1)}


@MODELS.register_module()
class InstanceTTAModel(DetTTAModel):
    """Detections of flipped and resized views of an image, merged by non-maximum suppression.

    A kept box brings its own mask along.
    """

    def _merge_single_sample(self, data_samples: list[DetDataSample]) -> DetDataSample:
        merged = data_samples[0]
        instances = InstanceData.cat([unflip(sample) for sample in data_samples])
        if len(instances) > 0:
            _, kept = batched_nms(
                instances.bboxes, instances.scores, instances.labels, self.tta_cfg.nms
            )
            instances = instances[kept[: self.tta_cfg.max_per_img]]
        merged.pred_instances = instances
        return merged


def unflip(sample: DetDataSample) -> InstanceData:
    """The predictions of one view in the coordinates of the original image."""
    instances = sample.pred_instances
    if sample.flip:
        direction = sample.flip_direction
        instances.bboxes = bbox_flip(instances.bboxes, sample.ori_shape, direction)
        if 'masks' in instances:
            instances.masks = instances.masks.flip(FLIPPED_AXES[direction])
    return instances
