"""Metrics. Imported only where mmseg is: see the locations in ``registry.py``."""

from __future__ import annotations

from mmseg.evaluation import IoUMetric

from ..registry import METRICS


@METRICS.register_module()
class ForegroundIoUMetric(IoUMetric):
    """mmseg's ``IoUMetric`` averaged over all classes but the first, the background.

    Every pixel counts, so a background pixel that is taken for a class lowers that class's IoU.
    """

    dataset_meta: dict

    def compute_metrics(self, results: list[tuple]) -> dict[str, float]:
        # Each result: intersection, union, prediction and label areas, one value per class.
        results = [tuple(area[1:] for area in areas) for areas in results]
        meta = self.dataset_meta
        self.dataset_meta = {**meta, 'classes': meta['classes'][1:]}
        try:
            return super().compute_metrics(results)
        finally:
            self.dataset_meta = meta
