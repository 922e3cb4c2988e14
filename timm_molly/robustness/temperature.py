"""One temperature for all logits, fitted afterwards on held-out images."""

from __future__ import annotations

import math

from torch import Tensor

from timm_molly.errors import UserError, needs

try:
    from scipy.optimize import brentq
except ImportError as error:
    raise needs('fitting a temperature', 'robustness', error) from None

RANGE = (1e-3, 1e3)


class NoTemperatureError(UserError):
    """No temperature in the range is the best."""


def fit_temperature(logits: Tensor, target: Tensor) -> float:
    """Find the T > 0 for which softmax(logits / T) has the smallest NLL.

    The NLL is convex in 1 / T, so there is one such T, or none: where every image is right, a smaller T is always
    better, and where the net is worse than chance, a larger one.

    Source: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017,
    https://arxiv.org/abs/1706.04599.

    Args:
        logits: (N, K), floating point.
        target: Class indices (N,), int64.

    Returns:
        T, from 0.001 to 1000.

    Raises:
        NoTemperatureError: There is none in this range, or logits are not finite.

    Example:
        >>> import torch
        >>> round(fit_temperature(torch.tensor([[3.0, 0], [3, 0], [3, 0], [0, 3]]), torch.tensor([0, 0, 1, 1])), 3)
        2.731
    """
    z = logits.double() - logits.double().max(1, keepdim=True).values
    if not z.isfinite().all():
        raise NoTemperatureError('no temperature can be fitted: the logits of held-out images are not finite')
    of_label = z.gather(1, target[:, None])[:, 0]

    def slope(log_inverse: float) -> float:
        p = (z * math.exp(log_inverse)).softmax(1)
        return float(((p * z).sum(1) - of_label).mean())

    low, high = (-math.log(t) for t in reversed(RANGE))
    if slope(high) < 0 or (of_label == 0).all():
        raise NoTemperatureError(
            'no temperature can be fitted: the net is right on all held-out images, or nearly so, and the smaller the '
            'temperature the better. Hold out more images, which it was not trained on'
        )
    if slope(low) > 0:
        raise NoTemperatureError(
            'no temperature can be fitted: the net is no better than chance on the held-out images'
        )
    return math.exp(-brentq(slope, low, high, xtol=1e-10))
