"""Metrics. Imported only where mmseg is: see the locations in ``registry.py``."""

from __future__ import annotations

from mmseg.evaluation import IoUMetric

from .registry import METRICS


@METRICS.register_module()
class ForegroundIoUMetric(IoUMetric):
    """mmseg's ``IoUMetric`` averaged over all classes but the first, the background.

    Every pixel counts, so a background pixel that is taken for a class lowers that class's IoU.
    """

    def process(self, data_batch: dict, data_samples: list[dict]) -> None:
        before = len(self.results)
        super().process(data_batch, data_samples)
        # Each entry: intersection, union, prediction and label areas, one value per class.
        self.results[before:] = [
            tuple(area[1:] for area in areas) for areas in self.results[before:]
        ]

    def compute_metrics(self, results: list) -> dict[str, float]:
        meta = self.dataset_meta
        self.dataset_meta = {**meta, 'classes': meta['classes'][1:]}
        try:
            return super().compute_metrics(results)
        finally:
            self.dataset_meta = meta
