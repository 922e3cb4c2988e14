"""The metrics of one cell (one corruption at one severity), and their means over cells.

A cell's result is a plain dict, as it goes into the report: `images`, the metrics of `METRICS`, and `bins`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

METRICS = ('error', 'nll', 'brier', 'ece', 'confidence')
BINS = 15

# A cell by its place: ('fog', 3), or ('noise', 0.25) for mollification at t, or ('clean', 0).
Cells = Mapping[tuple[str, float], Mapping[str, Any]]

# Errors of AlexNet on ImageNet-C, means over the severities, and on the clean images (Hendrycks & Dietterich, 2019, and
# the raw figures of the AugMix authors).
ALEXNET = {
    'gaussian_noise': 0.886428,
    'shot_noise': 0.894468,
    'impulse_noise': 0.922640,
    'defocus_blur': 0.819880,
    'glass_blur': 0.826268,
    'motion_blur': 0.785948,
    'zoom_blur': 0.798360,
    'snow': 0.866816,
    'frost': 0.826572,
    'fog': 0.819324,
    'brightness': 0.564592,
    'contrast': 0.853204,
    'elastic_transform': 0.646056,
    'pixelate': 0.717840,
    'jpeg_compression': 0.606500,
}
ALEXNET_CLEAN = 0.435


class CellMetrics:
    """Accumulates error, NLL, Brier score, ECE and mean confidence in float64, a few numbers whatever the images.

    * error: share of images whose largest logit is not the label's.
    * nll: mean of -log p(label).
    * brier: mean of sum_k (p_k - [k is the label])**2, 0 to 2.
    * ece: sum over 15 equal-width bins (low, high] of the confidence of |share correct - confidence| x share of images.
      From the bins and not from torchmetrics, which rounds confidences to float32 and gives those that round to 1, with
      a confident net most of them, a sixteenth bin.
    * confidence: mean of max_k p_k.
    """

    def __init__(self) -> None:
        from torchmetrics import MeanMetric  # here, because a reader of reports needs no torchmetrics

        self.means = {name: MeanMetric(nan_strategy='ignore').set_dtype(torch.float64) for name in METRICS}
        del self.means['ece']
        self.bins = torch.zeros(3, BINS, dtype=torch.float64)  # images, correct ones, sum of confidences
        self.images = 0
        self.not_finite = 0

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            logits: (B, K), any floating point dtype, any device.
            target: Class indices (B,), int64, each in [0, K).
        """
        logits, target = logits.cpu().double(), target.cpu()
        nll = F.cross_entropy(logits, target, reduction='none')
        finite = nll.isfinite()
        self.images += len(target)
        self.not_finite += int((~finite).sum())
        if not finite.all():
            return  # the cell has no result any more
        p = logits.softmax(1)
        confidence, prediction = p.max(1)
        correct = (prediction == target).double()
        brier = (p - F.one_hot(target, p.shape[1])).square().sum(1)
        for name, values in (('error', 1 - correct), ('nll', nll), ('brier', brier), ('confidence', confidence)):
            self.means[name].update(values)
        place = (torch.ceil(confidence * BINS) - 1).long().clamp(0, BINS - 1)
        self.bins.index_add_(1, place, torch.stack([torch.ones_like(confidence), correct, confidence]))

    def result(self) -> dict[str, Any]:
        """Return the cell: None for every metric where a single image had logits that are not finite."""
        if self.not_finite:
            return {'images': self.images, 'not_finite': self.not_finite, **dict.fromkeys((*METRICS, 'bins'))}
        images, correct, confidence = self.bins
        values = {name: float(mean.compute()) for name, mean in self.means.items()}
        values['ece'] = float((correct - confidence).abs().sum() / self.images)
        bins = {'images': images, 'correct': correct, 'confidence': confidence}
        return {
            'images': self.images,
            **{name: values[name] for name in METRICS},
            'bins': {name: row.tolist() for name, row in bins.items()},
        }


def mean(cells: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """Mean of each metric over cells; None where one of them has none, or where there are no cells."""
    rows = list(cells)
    return {
        name: fmean(row[name] for row in rows) if rows and all(row[name] is not None for row in rows) else None
        for name in METRICS
    }


def summarise(cells: Cells, groups: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """Average cells over the severities of a corruption, then the corruptions of a group, and all those in groups.

    Args:
        cells: Results by (corruption, severity).
        groups: Corruptions by group; those not among the cells are left out, and a group without any as well.

    Returns:
        'corruptions', 'groups' (name -> metrics), 'mean' (metrics over all corruptions that are in a group).
    """
    names = list(dict.fromkeys(name for name, _ in cells if name != 'clean'))
    corruptions = {name: mean(cell for (n, _), cell in cells.items() if n == name) for name in names}
    members = {group: [name for name in of if name in corruptions] for group, of in groups.items()}
    return {
        'corruptions': corruptions,
        'groups': {group: mean(corruptions[name] for name in of) for group, of in members.items() if of},
        'mean': mean(corruptions[name] for of in members.values() for name in of),
    }


def corruption_errors(
    corruptions: Mapping[str, Mapping[str, float | None]], clean: float | None
) -> tuple[float | None, float | None]:
    """Mean corruption error and relative mCE of Hendrycks & Dietterich (2019), 1 being AlexNet's.

    Args:
        corruptions: Mean over severities 1 to 5 by corruption, with 'error'.
        clean: Error on the clean images, None where it was not measured.

    Returns:
        mCE, None unless all 15 corruptions have an error, and relative mCE, None without a clean error too.
    """
    errors = {name: corruptions.get(name, {}).get('error') for name in ALEXNET}
    known = {name: error for name, error in errors.items() if error is not None}
    if len(known) < len(ALEXNET):
        return None, None
    mce = fmean(known[name] / alexnet for name, alexnet in ALEXNET.items())
    if clean is None:
        return mce, None
    return mce, fmean((known[name] - clean) / (alexnet - ALEXNET_CLEAN) for name, alexnet in ALEXNET.items())
