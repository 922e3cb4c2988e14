"""Standard normal numbers on the CPU, in half the time of `torch.randn`."""

import math

import numpy as np
import torch
from torch import Tensor


def standard_normal(shape: torch.Size, rng: np.random.Generator) -> Tensor:
    """Draw standard normal numbers, float32 on the CPU.

    Nothing in a mollified batch takes longer than its noise. `torch.randn` draws one number after the other; here only
    random bits are drawn in turn, 16 for a number, and the Box-Muller transform, which takes a radius and an angle to
    two normal numbers, runs on all threads.

    A pair of numbers is made of 32 bits: all of them say how large the radius is, and the last 16, which count for
    little in it, are the angle. The two are as good as independent up to a radius of 4.7; beyond it, where one pair in
    65,536 lies, the angle follows from the radius. No number is beyond 6.8.

    Source: Box, Muller, "A Note on the Generation of Random Normal Deviates", 1958,
    https://doi.org/10.1214/aoms/1177706645.
    """
    count = math.prod(shape)
    pairs = (count + 1) // 2
    bits = torch.from_numpy(rng.integers(0, 2**64, (pairs + 1) // 2, dtype=np.uint64).view(np.int32))[:pairs]
    # sqrt(-2 log |u|) of u = bits / 2**31, uniform on [-1, 1], as sqrt(-log(u**2)), where u**2 must not be 0.
    uniform = bits.float()
    least = torch.tensor(2.0**-66)
    radius = torch.addcmul(least, uniform, uniform, value=2.0**-62).log_().neg_().sqrt_()
    angle = bits.short() * (math.pi / 2**15)
    normal = torch.empty(2, pairs)
    torch.cos(angle, out=normal[0])
    torch.sin(angle, out=normal[1])
    return normal.mul_(radius).view(-1)[:count].view(shape)
