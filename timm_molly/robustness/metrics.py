"""Error, NLL, Brier score, calibration and ranking of a classifier, as one torchmetrics metric."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from timm_molly.errors import needs
from timm_molly.functional import describe
from timm_molly.robustness.report import BIN_COUNT, Bins, Cell

try:
    from torchmetrics import Metric
    from torchmetrics.utilities.data import dim_zero_cat
except ImportError as error:
    raise needs('measuring', 'robustness', error) from None


class Calibration(Metric):  # type: ignore[misc]
    """Accumulate what says how often a classifier is right, and whether it knows.

    `compute` gives a scalar, float64, for each of

    * error: share of images whose largest logit is not the label's.
    * nll: mean of -log p(label), in nats.
    * brier: mean of sum_k (p_k - [k is the label])**2, 0 to 2.
    * ece: sum over 15 equal-width bins (low, high] of the confidence of |share correct - confidence| x share of images.
    * confidence: mean of max_k p_k.
    * adaptive_ece: as ece, with 15 bins of as many images each, to one.
    * aurc: area under the curve of the error among the most confident images against their share, 0 to 1; NaN for one
      image. Images of equal confidence count as in the mean over their orders.
    * e_aurc: by how much aurc exceeds that of a ranking that puts all correct images first.

    All are NaN where the logits of a single image were not finite. Sums are kept, and of each image its confidence and
    whether it is correct; ranks are gathered. Arithmetic is in float64 on the metric's device. (torchmetrics' own
    calibration error rounds confidences to float32 and gives those that round to 1, with a confident network most of
    them, a sixteenth bin.)

    Source of the ECE: Naeini, Cooper, Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning",
    AAAI 2015; its 15 bins: Guo, Pleiss, Sun, Weinberger, ICML 2017, https://arxiv.org/abs/1706.04599. Of bins of equal
    mass: Nguyen, O'Connor, EMNLP 2015. Of the AURC: Geifman, El-Yaniv, NeurIPS 2017; of the E-AURC: Geifman, Uziel,
    El-Yaniv, ICLR 2019, https://arxiv.org/abs/1805.08206.

    Args:
        num_classes: Number of classes K.
        **kwargs: Of `torchmetrics.Metric`.

    Raises:
        UserError: torchmetrics is missing (on import).

    Example:
        >>> metric = Calibration(num_classes=3)
        >>> metric.update(torch.tensor([[4.0, 0, 0], [0, 2, 0]]), torch.tensor([0, 2]))
        >>> found = {name: round(value.item(), 3) for name, value in metric.compute().items()}
        >>> found['error'], found['nll'], found['ece'], found['aurc']
        (0.5, 1.138, 0.411, 0.25)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f'num_classes must be a whole number from 1 on, got {num_classes!r}')
        self.num_classes = num_classes
        self.add_state('images', torch.zeros((), dtype=torch.int64), dist_reduce_fx='sum')
        self.add_state('not_finite', torch.zeros((), dtype=torch.int64), dist_reduce_fx='sum')
        for name in ('errors', 'nll', 'brier', 'confidence'):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx='sum')
        # By bin: images, correct ones, sum of confidences.
        self.add_state('bins', torch.zeros(3, BIN_COUNT, dtype=torch.float64), dist_reduce_fx='sum')
        # Of each image: confidence, and 1 where it is correct (N, 2).
        self.add_state('ranking', [], dist_reduce_fx='cat')

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            logits: (B, K), any floating dtype, any device.
            target: Class indices (B,), int64, each in [0, K).

        Raises:
            ValueError: A shape, dtype or class is not as above.
        """
        self._check(logits, target)
        logits, target = logits.detach().to(self.device).double(), target.to(self.device)
        nll = F.cross_entropy(logits, target, reduction='none')
        finite = nll.isfinite()
        self.images += len(target)
        self.not_finite += (~finite).sum()
        if not finite.all():
            return  # there are no figures any more
        p = logits.softmax(1)
        confidence, prediction = p.max(1)
        correct = (prediction == target).double()
        self.errors += (1 - correct).sum()
        self.nll += nll.sum()
        self.brier += (p - F.one_hot(target, self.num_classes)).square().sum(1).sum()
        self.confidence += confidence.sum()
        place = (torch.ceil(confidence * BIN_COUNT) - 1).long().clamp(0, BIN_COUNT - 1)
        self.bins.index_add_(1, place, torch.stack([torch.ones_like(confidence), correct, confidence]))
        self.ranking.append(torch.stack([confidence, correct], 1))

    def compute(self) -> dict[str, Tensor]:
        """Return each figure by its name, scalars of float64."""
        images = torch.where(self.not_finite > 0, torch.nan, self.images.double())
        _, correct, confidence = self.bins
        known = torch.zeros(0, 2, dtype=torch.float64, device=self.device)
        ranking = dim_zero_cat([known, *self.ranking] if isinstance(self.ranking, list) else [self.ranking])
        ranked = {name: torch.where(self.not_finite > 0, torch.nan, value) for name, value in _ranked(ranking).items()}
        return {
            'error': self.errors / images,
            'nll': self.nll / images,
            'brier': self.brier / images,
            'ece': (correct - confidence).abs().sum() / images,
            'confidence': self.confidence / images,
            **ranked,
        }

    def cell(self, labels: str) -> Cell:
        """Return the figures as a report has them.

        Args:
            labels: Fingerprint of the labels.
        """
        bins = None if self.not_finite else Bins(*(tuple(row) for row in self.bins.tolist()))
        figures: dict[str, Any] = {name: float(value) for name, value in self.compute().items()}
        return Cell(**figures, images=int(self.images), bins=bins, labels=labels, not_finite=int(self.not_finite))

    def _check(self, logits: Tensor, target: Tensor) -> None:
        if logits.ndim != 2 or not logits.is_floating_point() or logits.shape[1] != self.num_classes:
            raise ValueError(f'logits must be floating point (B, {self.num_classes}), got {describe(logits)}')
        if target.shape != logits.shape[:1] or target.is_floating_point() or target.dtype == torch.bool:
            raise ValueError(f'target must hold class indices ({len(logits)},), got {describe(target)}')
        if len(target) and not 0 <= int(target.min()) <= int(target.max()) < self.num_classes:
            raise ValueError(
                f'target must hold classes from 0 to {self.num_classes - 1}, got {int(target.min())} '
                f'to {int(target.max())}'
            )


def _ranked(ranking: Tensor) -> dict[str, Tensor]:
    """Adaptive ECE, AURC and E-AURC of confidences and hits (N, 2), in any order."""
    ordered = ranking[ranking[:, 0].argsort(stable=True)]
    bins = [each.sum(0) for each in ordered.tensor_split(BIN_COUNT)]
    gaps = torch.stack([(hits - confidence).abs() for confidence, hits in bins])
    confidence, hits = ordered.flip(0).unbind(1)
    _, tie, count = torch.unique_consecutive(confidence, return_inverse=True, return_counts=True)
    errors = torch.zeros_like(count, dtype=torch.float64).index_add_(0, tie, 1 - hits) / count
    aurc, best = _area(errors[tie]), _area((1 - hits).sort().values)
    return {'adaptive_ece': gaps.sum() / len(ranking), 'aurc': aurc, 'e_aurc': aurc - best}


def _area(errors: Tensor) -> Tensor:
    """Area under the mean of the first n errors (N,) against n / N, by trapezoids from n = 1 on, over its width."""
    count = torch.arange(1, len(errors) + 1, device=errors.device)
    return torch.trapezoid(errors.cumsum(0) / count) / (len(errors) - 1)
