"""Mean corruption error, which counts a network's errors under corruption in those of AlexNet."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

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


def mean_corruption_error(errors: Mapping[str, float]) -> float:
    """Mean over the 15 common corruptions of the error over AlexNet's (Hendrycks & Dietterich, 2019).

    Args:
        errors: Error in [0, 1] by corruption, each a mean over severities 1 to 5.

    Returns:
        1 for AlexNet, 0 for a network without errors; NaN where an error is NaN.

    Raises:
        KeyError: One of the 15 is missing.

    Example:
        >>> mean_corruption_error({name: error / 2 for name, error in ALEXNET.items()})
        0.5
    """
    return fmean(errors[name] / alexnet for name, alexnet in ALEXNET.items())


def relative_mean_corruption_error(errors: Mapping[str, float], clean: float) -> float:
    """Likewise of what corruption adds to the error on clean images, over what it adds to AlexNet's.

    Args:
        errors: As for `mean_corruption_error`.
        clean: Error on the clean images, in [0, 1].

    Returns:
        1 for AlexNet, 0 for a network that corruption does nothing to.
    """
    return fmean((errors[name] - clean) / (alexnet - ALEXNET_CLEAN) for name, alexnet in ALEXNET.items())
