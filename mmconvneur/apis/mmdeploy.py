"""Two-stage detectors whose deployed boxes are those of mmdet; for mmdeploy 1.3.1 and onnxruntime.

mmdeploy lets the proposals of all levels suppress each other, drops proposals below a score, and
gives all classes of a region the box of its likeliest class. mmdet does nothing of the kind. A
deploy config imports this module by ``custom_imports``; it replaces these parts of mmdeploy.

Dimension key: B images, N boxes, C classes, K boxes that are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdeploy.core import FUNCTION_REWRITER
from mmdeploy.mmcv.ops import multiclass_nms
from torch import Tensor

ALL = 10**6  # boxes to sort first: only then does mmdeploy return their numbers


def suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, overlap: float, lowest: float, number: int
) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression among the boxes of each group; the best of all groups are kept.

    Args:
        boxes: ``(B, N, 4)``.
        scores: ``(B, N)``; boxes with a score up to ``lowest`` are left out.
        groups: Numbers from 0, ``(N,)``.
        overlap: IoU above which the lower score goes.
        lowest: See ``scores``.
        number: Upper limit of K.

    Returns:
        Boxes and scores, ``(B, K, 5)``, and the group of each, ``(B, K)``.
    """
    shift = groups[:, None] * (boxes.max() + 1)  # groups far from each other, as in mmcv
    dets, _, index = multiclass_nms(
        boxes + shift,
        scores[..., None],
        max_output_boxes_per_class=number,
        iou_threshold=overlap,
        score_threshold=lowest,
        pre_top_k=ALL,
        keep_top_k=number,
        output_index=True,
    )
    index = index.clamp(min=0)  # of padding, whose score is 0
    kept = boxes.gather(1, index[..., None].expand(-1, -1, 4))
    return torch.cat([kept, dets[..., 4:]], 2), groups[index]


@FUNCTION_REWRITER.register_rewriter(
    'mmdet.models.dense_heads.RPNHead.predict_by_feat', backend='onnxruntime'
)
def proposals(
    self: Any,
    cls_scores: Sequence[Tensor],
    bbox_preds: Sequence[Tensor],
    score_factors: None = None,
    batch_img_metas: Sequence[dict] = (),
    cfg: Any = None,
    **options,
) -> tuple[Tensor, Tensor]:
    """Proposals ``(B, K, 5)`` and their label 0, ``(B, K)``; the levels are suppressed apart."""
    cfg = cfg or self.test_cfg
    anchors = self.anchor_generator.grid_anchors(
        [scores.shape[-2:] for scores in cls_scores], device=cls_scores[0].device
    )
    parts = []
    for level, (scores, deltas) in enumerate(zip(cls_scores, bbox_preds, strict=True)):
        batch = scores.shape[0]
        scores = scores.permute(0, 2, 3, 1).reshape(batch, -1, self.cls_out_channels)
        scores = scores.sigmoid() if self.use_sigmoid_cls else scores.softmax(2)
        scores, best = scores[..., 0].topk(cfg.nms_pre)
        deltas = deltas.permute(0, 2, 3, 1).reshape(batch, -1, 4)
        deltas = deltas.gather(1, best[..., None].expand(-1, -1, 4))
        shape = batch_img_metas[0]['img_shape']
        boxes = self.bbox_coder.decode(anchors[level][best], deltas, max_shape=shape)
        parts.append((boxes, scores, torch.full_like(best[:1], level)))
    boxes, scores, levels = (torch.cat(part, 1) for part in zip(*parts, strict=True))
    sides = boxes[..., 2:] - boxes[..., :2]
    scores = scores * (sides > cfg.get('min_bbox_size', -1)).all(2)
    dets, levels = suppress(boxes, scores, levels[0], cfg.nms.iou_threshold, 0.0, cfg.max_per_img)
    return dets, torch.zeros_like(levels)


@FUNCTION_REWRITER.register_rewriter(
    'mmdet.models.roi_heads.bbox_heads.bbox_head.BBoxHead.predict_by_feat', backend='onnxruntime'
)
def detections(
    self: Any,
    rois: Tensor,
    cls_scores: Tensor,
    bbox_preds: Tensor,
    batch_img_metas: Sequence[dict],
    rcnn_test_cfg: Any,
    rescale: bool = False,
) -> tuple[Tensor, Tensor]:
    """Detections ``(B, K, 5)`` and classes ``(B, K)``; every class of a region has its own box."""
    classes = self.num_classes
    scores = cls_scores.softmax(-1)[..., :classes]  # (B, N, C)
    deltas = bbox_preds if self.reg_class_agnostic is False else bbox_preds.repeat(1, 1, classes)
    batch = scores.shape[0]
    regions = rois[..., None, 1:].expand(-1, -1, classes, -1).reshape(batch, -1, 4)
    shape = batch_img_metas[0]['img_shape']
    boxes = self.bbox_coder.decode(regions, deltas.reshape(batch, -1, 4), max_shape=shape)
    labels = torch.zeros_like(scores[0]).long() + torch.arange(classes, device=scores.device)
    cfg = rcnn_test_cfg
    return suppress(
        boxes,
        scores.reshape(batch, -1),
        labels.reshape(-1),
        cfg.nms.iou_threshold,
        cfg.score_thr,
        cfg.max_per_img,
    )
