"""Losses for train loops of your own; timm's `train.py` needs none of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from timm_molly.functional import describe
from timm_molly.target import CoupledTarget, check_labels


class CoupledCrossEntropy(nn.Module):
    """Cross-entropy, averaged over the batch, for every kind of target that mollification meets.

    `-sum_k y_k log softmax(logits)_k` with `y` smoothed once more by `smoothing`. For class indices and coupled
    targets it is `(1 - a) * -logp[label] + a * -mean(logp)` with `1 - a = (1 - gamma) * (1 - smoothing)`: no (B, K)
    label is built.

    Args:
        smoothing: Label smoothing of the recipe, in [0, 1), on top of the coupling.

    Raises:
        ValueError: `smoothing` is out of range.

    Example:
        >>> target = CoupledTarget(torch.tensor([0, 2]), torch.tensor([0.0, 1.0]))
        >>> CoupledCrossEntropy()(torch.zeros(2, 4), target)
        tensor(1.3863)
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ValueError(f'smoothing must be in [0, 1), got {smoothing}')
        self.smoothing = smoothing

    def forward(self, logits: Tensor, target: Tensor | CoupledTarget) -> Tensor:
        """Return the loss, a scalar.

        Args:
            logits: (B, K), floating point.
            target: Class indices (B,), soft labels (B, K), or a `CoupledTarget` of B labels.

        Raises:
            ValueError: The shapes do not go together.
        """
        _check_shapes(logits, target)
        return _mean(_cross_entropy(logits.log_softmax(1), target, self.smoothing), target)


class NormalizedCrossEntropy(nn.Module):
    """The authors' cross-entropy, normalised over the labels that mollification can produce.

    A mollified label of class k runs from one-hot (gamma = 0) to uniform (gamma = 1), and the likelihood
    `prod_j f_j**y_j` along that line is `f_k**(1 - gamma) * g**gamma`, where f is the softmax and g the geometric mean
    of its entries. Its integral over gamma is the logarithmic mean of g and f_k, and the loss adds the logarithm of
    the sum of these over the classes: `cross_entropy + log sum_k (g - f_k) / (log g - log f_k)`.

    Computed in logarithms, so that it is finite, and its gradient too, where f_k equals g or underflows.

    Example:
        >>> NormalizedCrossEntropy()(torch.zeros(2, 4), torch.tensor([0, 2]))  # log 4, plus log of 4 x 1/4
        tensor(1.3863)
    """

    def forward(self, logits: Tensor, target: Tensor | CoupledTarget) -> Tensor:
        """Return the loss, a scalar, averaged over the batch; arguments as in `CoupledCrossEntropy`."""
        _check_shapes(logits, target)
        logp = logits.log_softmax(1)
        normaliser = _log_mean(logp, logp.mean(1, keepdim=True)).logsumexp(1)
        return _mean(_cross_entropy(logp, target, 0.0) + normaliser, target)


def _check_shapes(logits: Tensor, target: Tensor | CoupledTarget) -> None:
    if logits.ndim != 2 or not logits.is_floating_point() or target.shape not in (logits.shape, logits.shape[:1]):
        raise ValueError(
            f'logits must be floating point (B, K) and target (B,) or (B, K), '
            f'got {describe(logits)} and {tuple(target.shape)}'
        )


def _cross_entropy(logp: Tensor, target: Tensor | CoupledTarget, smoothing: float) -> Tensor:
    """Return the cross-entropy of each sample (B,), given log-probabilities (B, K)."""
    uniform = -logp.mean(1)
    if isinstance(target, Tensor) and target.ndim == 1:
        target = CoupledTarget(target, torch.zeros_like(uniform))
    if isinstance(target, Tensor):
        if not target.is_floating_point():
            raise ValueError(f'target (B, K) must hold soft labels of a floating-point dtype, got {describe(target)}')
        return (1 - smoothing) * -(target * logp).sum(1) + smoothing * uniform
    check_labels(target.labels, logp.shape[1])
    keep = (1 - target.gamma) * (1 - smoothing)
    return keep * -logp.gather(1, target.labels[:, None]).squeeze(1) + (1 - keep) * uniform


def _mean(loss: Tensor, target: Tensor | CoupledTarget) -> Tensor:
    """Average the losses of the images (B,), with the target's weights where it has some."""
    weight = getattr(target, 'weight', None)
    return (loss.as_subclass(Tensor) if weight is None else weight.to(loss.device) * loss.as_subclass(Tensor)).mean()


def _log_mean(a: Tensor, b: Tensor) -> Tensor:
    """Return the logarithm of the logarithmic mean of exp(a) and exp(b).

    With d = |a - b| it is `max(a, b) + log((1 - exp(-d)) / d)`, and `-d / 2 + d**2 / 24` follows the last term near 0.
    """
    d = (a - b).abs()
    small = d < 1e-2
    safe = torch.where(small, torch.ones_like(d), d)
    return torch.maximum(a, b) + torch.where(small, d * (d / 24 - 0.5), (-torch.expm1(-safe) / safe).log())
