"""The method: images degraded to a strength t, and labels that lose confidence by the same t.

Every function is pure and takes its random draws as arguments. `t` is one strength per image, the paper's temperature,
from 0 (intact) to 1 (nothing left); `gamma` is the weight that the uniform distribution gets in the label. `inplace`
does the same fast.

Source: Heinonen, Tran, Kampffmeyer, Filippone, "Robust Classification by Coupling Data Mollification with Label
Smoothing", AISTATS 2025, https://arxiv.org/abs/2406.01494. The heat equation in the cosine basis is from Rissanen,
Heinonen, Solin, "Generative Modelling With Inverse Heat Dissipation", ICLR 2023, https://arxiv.org/abs/2206.13397.

Images may have any floating dtype and memory format. Arithmetic is in float32 (float64 for float64 input), and the
input's dtype and memory format come back. On a GPU where the user allows TF32, as train.py does, the matrix products of
`blur` use it.

Values (t in [0, 1], no NaN) are checked for CPU tensors only: on an accelerator the check would make the host wait.
"""

import math
from typing import Any

import torch
from torch import Tensor


def noise(x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Mix normalised images with Gaussian noise on the variance-preserving cosine schedule.

    `cos(pi t / 2) * x + sin(pi t / 2) * eps`

    Args:
        x: Normalised images (B, C, H, W), floating point.
        t: Strengths (B,), floating point in [0, 1].
        eps: Standard normal noise, shaped as `x`.

    Returns:
        Noisy images like `x` (shape, dtype, memory format): `x` itself at t = 0, `eps` at t = 1.

    Raises:
        ValueError: A shape, dtype or value is not as above.

    Example:
        >>> x, t = torch.zeros(3, 1, 1, 1), torch.tensor([0.0, 0.5, 1.0])
        >>> noise(x, t, eps=torch.ones_like(x)).flatten()
        tensor([0.0000, 0.7071, 1.0000])
    """
    check_images(x)
    check_unit_interval('t', t, len(x))
    if eps.shape != x.shape:
        raise ValueError(f'eps must be shaped as x, {tuple(x.shape)}, got {describe(eps)}')
    dtype = _compute_dtype(x)
    angle = (math.pi / 2 * t.to(dtype))[:, None, None, None]
    return _like(angle.cos() * x.to(dtype) + angle.sin() * eps.to(dtype), x)


def blur(x: Tensor, t: Tensor, min_scale: float = 0.3) -> Tensor:
    """Run the heat equation on the images, with reflecting borders, until the blur is `blur_scale` pixels wide.

    In the orthonormal DCT-II basis the coefficient of frequency (i, j) is multiplied by
    `exp(-((pi i / H)**2 + (pi j / W)**2) * tau)`, where `tau = blur_scale(t)**2 / 2`. The factor separates into rows
    and columns, so one blur is two small matrix products, `K_H x K_W`.

    Args:
        x: Images (B, C, H, W), floating point.
        t: Strengths (B,), floating point in [0, 1].
        min_scale: Blur at t = 0, in pixels, above 0 and at most max(H, W). The default is the paper's, and hardly
            visible.

    Returns:
        Blurred images like `x` (shape, dtype, memory format). Each channel keeps its mean.

    Raises:
        ValueError: A shape, dtype or value is not as above.

    Example:
        >>> x = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(2, 1, 4, 4)
        >>> blur(x, torch.tensor([0.5, 1.0]))[:, 0, 0].round(decimals=2)
        tensor([[0.0900, 0.3200, 0.6800, 0.9100],
                [0.5000, 0.5000, 0.5000, 0.5000]])
    """
    check_images(x)
    check_unit_interval('t', t, len(x))
    height, width = x.shape[-2:]
    dtype = _compute_dtype(x)
    tau = blur_scale(t.to(dtype), max(height, width), min_scale).square() / 2
    with torch.autocast(x.device.type, enabled=False):
        rows, columns = _heat_kernel(tau, height), _heat_kernel(tau, width)
        return _like(rows[:, None] @ x.to(dtype) @ columns[:, None], x)


def blur_scale(t: Tensor, size: int, min_scale: float = 0.3) -> Tensor:
    """Give the standard deviation of the blur in pixels, `min_scale**(1 - t) * size**t`: log-spaced in t.

    Args:
        t: Strengths of any shape, floating point in [0, 1].
        size: Longer side of the image, in pixels: the blur at t = 1, which leaves next to nothing but the mean.
        min_scale: Blur at t = 0, in pixels.

    Returns:
        Pixels, shaped as `t`.

    Raises:
        ValueError: `t` is outside [0, 1], or `min_scale` is not above 0 and at most `size`.

    Example:
        >>> blur_scale(torch.tensor([0.0, 0.5, 1.0]), size=100, min_scale=1.0).round(decimals=3)
        tensor([  1.,  10., 100.])
    """
    _check_values('t', t)
    check_min_scale(min_scale, size)
    return torch.exp((1 - t) * math.log(min_scale) + t * math.log(size))


def noise_gamma(t: Tensor, power: float = 1.0) -> Tensor:
    """Give the label smoothing that goes with `noise`: `(1 / (1 + SNR))**power = sin(pi t / 2)**(2 power)`.

    Args:
        t: Strengths of any shape, floating point in [0, 1].
        power: Above 0; the paper's is 1, and a larger one keeps more of the label.

    Returns:
        gamma in [0, 1], shaped as `t`.

    Raises:
        ValueError: `t` or `power` is out of range.

    Example:
        >>> noise_gamma(torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    _check_values('t', t)
    _check_power(power)
    return torch.sin(math.pi / 2 * t).square().pow(power)


def blur_gamma(t: Tensor, power: float = 1.0) -> Tensor:
    """Give the label smoothing that goes with `blur`: `t**power`.

    Args:
        t: Strengths of any shape, floating point in [0, 1].
        power: Above 0; the paper's is 1, and a larger one keeps more of the label.

    Returns:
        gamma in [0, 1], shaped as `t`.

    Raises:
        ValueError: `t` or `power` is out of range.

    Example:
        >>> blur_gamma(torch.tensor([0.0, 0.5, 1.0]), power=2.0)
        tensor([0.0000, 0.2500, 1.0000])
    """
    _check_values('t', t)
    _check_power(power)
    return t.pow(power)


def label_gamma(role: str, t: Tensor, noise_power: float = 1.0, blur_power: float = 1.0) -> Tensor:
    """Give the label smoothing of an image by what it became.

    Args:
        role: 'x' (clean: none), 'n' (`noise_gamma`), 'b' (`blur_gamma`) or 'e' (nothing but noise: all).
        t: Strengths of any shape, floating point in [0, 1].
        noise_power: Label power of noise.
        blur_power: Label power of blur.

    Returns:
        gamma in [0, 1], shaped as `t`.

    Raises:
        ValueError: `role` is no such letter, or `t` or a power is out of range.

    Example:
        >>> t = torch.tensor([0.25, 0.5])
        >>> label_gamma('x', t), label_gamma('b', t)
        (tensor([0., 0.]), tensor([0.2500, 0.5000]))
    """
    if role == 'n':
        return noise_gamma(t, noise_power)
    if role == 'b':
        return blur_gamma(t, blur_power)
    if role not in ('x', 'e'):
        raise ValueError(f"role must be 'x', 'n', 'b' or 'e', got {role!r}")
    _check_values('t', t)
    return torch.full_like(t, float(role == 'e'))


def confidence(gamma: Tensor, num_classes: int) -> Tensor:
    """Give the confidence that a label keeps in its class, `1 - gamma (K - 1) / K`: its entry for it after `smooth`.

    Args:
        gamma: Weights of the uniform part, of any shape, floating point in [0, 1].
        num_classes: Number of classes K.

    Returns:
        Probabilities from 1 / K to 1, shaped as `gamma`.

    Example:
        >>> confidence(torch.tensor([0.0, 0.5, 1.0]), num_classes=10)
        tensor([1.0000, 0.5500, 0.1000])
    """
    return 1 - gamma * (num_classes - 1) / num_classes


def smooth(y: Tensor, gamma: Tensor) -> Tensor:
    """Move soft labels towards the uniform distribution: `(1 - gamma) * y + gamma / K`.

    Args:
        y: Soft labels (B, K), floating point, rows summing to one.
        gamma: Weights of the uniform part (B,), floating point in [0, 1].

    Returns:
        Soft labels like `y`, rows summing to one.

    Raises:
        ValueError: A shape, dtype or value is not as above.

    Example:
        >>> smooth(torch.eye(4)[:2], torch.tensor([0.0, 0.4]))
        tensor([[1.0000, 0.0000, 0.0000, 0.0000],
                [0.1000, 0.7000, 0.1000, 0.1000]])
    """
    if y.ndim != 2 or not y.is_floating_point():
        raise ValueError(f'y must hold soft labels (B, K) of a floating-point dtype, got {describe(y)}')
    check_unit_interval('gamma', gamma, len(y))
    gamma = gamma.to(_compute_dtype(y))[:, None]
    return ((1 - gamma) * y + gamma / y.shape[1]).to(y.dtype)


def smooth_multi_label(y: Tensor, gamma: Tensor) -> Tensor:
    """Move independent labels, each present or absent, towards 1/2: `(1 - gamma) * y + gamma / 2`.

    Each label is a distribution over two outcomes, and `smooth` with K = 2 on it: a label that is present keeps
    `confidence(gamma, 2)`.

    Args:
        y: Multi-label targets (B, K), floating point in [0, 1].
        gamma: Weights of the uniform part (B,), floating point in [0, 1].

    Returns:
        Labels like `y`.

    Raises:
        ValueError: A shape, dtype or value is not as above.

    Example:
        >>> smooth_multi_label(torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([0.2]))
        tensor([[0.9000, 0.1000, 0.9000]])
    """
    if y.ndim != 2 or not y.is_floating_point():
        raise ValueError(f'y must hold multi-label targets (B, K) of a floating-point dtype, got {describe(y)}')
    _check_values('y', y)
    check_unit_interval('gamma', gamma, len(y))
    gamma = gamma.to(_compute_dtype(y))[:, None]
    return ((1 - gamma) * y + gamma / 2).to(y.dtype)


def check_images(x: Tensor) -> None:
    """Raise a ValueError unless `x` is a floating-point image batch (B, C, H, W) with at least one pixel an image."""
    if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point() or 0 in x.shape[1:]:
        raise ValueError(f'x must be a batch of normalised floating-point images (B, C, H, W), got {describe(x)}')


def check_unit_interval(name: str, value: Tensor, batch_size: int) -> None:
    """Raise a ValueError unless `value` is a floating-point tensor (batch_size,) with values in [0, 1]."""
    if not isinstance(value, Tensor) or value.shape != (batch_size,) or not value.is_floating_point():
        raise ValueError(f'{name} must be a floating-point tensor of shape ({batch_size},), got {describe(value)}')
    _check_values(name, value)


def check_min_scale(min_scale: float, size: int) -> None:
    """Raise a ValueError unless the smallest blur is above 0 and at most the longer side of the image, in pixels."""
    if not 0 < min_scale <= size:
        raise ValueError(f'min_scale must be above 0 and at most the image side ({size} px), got {min_scale}')


def describe(value: Any) -> str:
    """Name a value in an error message: dtype and shape of a tensor, or the type of anything else."""
    if isinstance(value, Tensor):
        return f'{value.dtype} of shape {tuple(value.shape)}'
    return f'{type(value).__name__} {value!r}'[:100]


def _check_values(name: str, value: Tensor) -> None:
    if value.device.type != 'cpu' or value.numel() == 0 or torch.compiler.is_compiling():
        return
    low, high = value.detach().aminmax()  # both NaN if one value is
    if not (low.item() >= 0 and high.item() <= 1):
        worst = value[~((value >= 0) & (value <= 1))][0].item()
        raise ValueError(f'{name} must be in [0, 1], got {worst:g} in a tensor of shape {tuple(value.shape)}')


def _check_power(power: float) -> None:
    if not power > 0:
        raise ValueError(f'power must be above 0, got {power}')


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _like(result: Tensor, x: Tensor) -> Tensor:
    """Return the result in the dtype and memory format of `x`."""
    return result.to(x.dtype) if result.stride() == x.stride() else torch.empty_like(x).copy_(result)


def _heat_kernel(tau: Tensor, size: int) -> Tensor:
    """Return the matrices (B, size, size) that run the heat equation on a line of `size` pixels for times tau (B,)."""
    at = torch.arange(size, device=tau.device)
    turn = (2 * at[:, None] + 1) * at % (4 * size)  # in whole numbers, because cosines of large angles are inexact
    basis = torch.cos(turn.to(tau.dtype) * (math.pi / (2 * size))) * math.sqrt(2 / size)  # a column a frequency
    basis[:, 0] *= math.sqrt(1 / 2)  # which makes it orthonormal
    decay = torch.exp(-tau[:, None] * (at.to(tau.dtype) * (math.pi / size)).square())
    return (basis * decay[:, None]) @ basis.T
