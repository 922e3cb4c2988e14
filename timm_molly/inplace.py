"""Noise and blur of `functional`, done to images where they lie: few operations, few passes over memory.

Nothing is checked here: `Mollify` has checked the batch and the strengths. The results are those of `functional`, to
rounding. Half precision stays half precision, but for products on a CPU.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor


def noise_(x: Tensor, t: Tensor, eps: Tensor) -> None:
    """Turn x into `cos(pi t / 2) * x + sin(pi t / 2) * eps`.

    Args:
        x: Images (B, C, H, W), floating point.
        t: Strengths (B,) in [0, 1], at least float32.
        eps: Standard normal noise, shaped as `x`, of any floating dtype.
    """
    angle = (math.pi / 2 * t)[:, None, None, None]
    x.mul_(angle.cos()).addcmul_(eps, angle.sin())


def blur_(x: Tensor, t: Tensor, min_scale: float) -> None:
    """Run the heat equation on x until the blur is `functional.blur_scale` pixels wide.

    Args:
        x: Images (B, C, H, W), floating point.
        t: Strengths (B,) in [0, 1], at least float32.
        min_scale: Blur at t = 0, in pixels.
    """
    batch_size, channels, height, width = x.shape
    if batch_size == 0:
        return
    on_cpu = x.device.type == 'cpu'
    dtype = torch.promote_types(x.dtype, torch.float32) if on_cpu else x.dtype
    tau = min_scale**2 / 2 * (max(height, width) / min_scale) ** (2 * t)  # half of blur_scale, squared
    with torch.autocast(x.device.type, enabled=False):
        rows = _heat_kernel(tau, height).to(dtype)
        columns = rows if height == width else _heat_kernel(tau, width).to(dtype)
        half = torch.bmm(x.reshape(batch_size, channels * height, width).to(dtype), columns).view(x.shape)
        # Channel by channel, so that no image has to be laid out anew for the product.
        for channel in range(channels):
            if on_cpu:  # where a product that does not lie together is written slowly
                x[:, channel] = torch.bmm(rows, half[:, channel])
            else:
                torch.bmm(rows, half[:, channel], out=x[:, channel])


def _heat_kernel(tau: Tensor, size: int) -> Tensor:
    """Return the matrices (B, size, size) that run the heat equation on a line of `size` pixels for times tau (B,).

    A line with reflecting ends is half of a ring on which it is followed by its mirror image: the heat from pixel j
    reaches pixel i over the distance i - j, and over i + j + 1 from the image of j. So a number for each distance is
    enough, where `functional` has a matrix product.
    """
    squares, cosines = _ring(size, tau.dtype, tau.device)
    heat = torch.exp(tau[:, None] * squares) @ cosines  # by distance, from 1 - size to 2 size - 1
    direct = heat[:, : 2 * size - 1].unfold(1, size, 1).flip(1)
    return direct.add_(heat[:, size:].unfold(1, size, 1))


@functools.lru_cache(maxsize=32)  # NaFlex has images of many sizes
def _ring(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Decay rates of the frequencies of a ring of 2 `size` pixels, and their waves by distance from 1 - `size` on."""
    frequency = torch.arange(size + 1, device=device)
    distance = torch.arange(1 - size, 2 * size, device=device)
    turn = frequency[:, None] * distance % (2 * size)  # in whole numbers, because cosines of large angles are inexact
    cosines = torch.cos(turn.to(dtype) * (math.pi / size)) / size
    cosines[0] /= 2
    cosines[-1] /= 2
    return -(frequency.to(dtype) * (math.pi / size)).square(), cosines
