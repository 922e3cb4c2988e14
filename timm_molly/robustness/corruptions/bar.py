"""The corruptions of ImageNet-C-bar and CIFAR-10-C-bar, chosen to be unlike the common ones.

Source: Mintun, Kirillov, Xie, "On Interaction Between Augmentations and Corruptions in Natural Corruption Robustness",
NeurIPS 2021, https://arxiv.org/abs/2102.11273. A strength is what the published tables say, from 0 to 10. Lengths are
shares of the image's shorter side, so that other sizes look alike.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.random import Generator
from scipy.ndimage import gaussian_filter, map_coordinates, rotate, zoom
from skimage.draw import line_aa

Pixels = Any  # NDArray of float (H, W, 3) in [0, 1]: its arithmetic is Any for mypy


def blue_noise_sample(x: Pixels, rng: Generator, strength: float) -> Pixels:
    return x * (_spectral_noise(_distance(x), rng) > 0.3 * strength - 2.5)[..., None]


def brownish_noise(x: Pixels, rng: Generator, strength: float) -> Pixels:
    amplitude = 1 / (_distance(x) ** 2 + 1)
    noise = np.stack([_spectral_noise(amplitude, rng) for _ in range(3)], -1)
    return x + 6.4 * strength / 255 * noise


def caustic_refraction(x: Pixels, rng: Generator, strength: float) -> Pixels:
    side = min(x.shape[:2])
    light = gaussian_filter(_caustics(x, rng.uniform(0.5, 2), rng.uniform(0.75, 1.25) * side), 1)
    padded = np.pad(light, 1)  # it is dark outside
    slope = np.stack([padded[2:, 1:-1] - padded[:-2, 1:-1], padded[1:-1, 2:] - padded[1:-1, :-2]])  # down, to the right
    # Light from above is refracted with an index of 4; where the water is almost level, it passes.
    cosine = 1 / np.sqrt(1 + (slope**2).sum(0))
    bend = cosine * (np.sqrt(1 - (1 - cosine**2) / 16) - cosine / 4) * (cosine < 1 - 1e-3)
    moved = _sample(x, _grid(x) + 0.05 * strength * side * bend * slope)
    return moved + 0.2 * strength * (slope[0] - slope[1])[..., None]


def checkerboard_cutout(x: Pixels, rng: Generator, strength: float) -> Pixels:
    side = min(x.shape[:2])
    angle, width = rng.uniform(0, 2 * math.pi), max(rng.uniform(0.1, 0.25) * side, 1)
    down, right = _grid(x) / width
    u = math.cos(angle) * down + math.sin(angle) * right
    v = math.cos(angle) * right - math.sin(angle) * down
    black = np.floor(u % 2) == np.floor(v % 2)
    # Negative places count from the other end, which is far enough away.
    chosen = rng.random((int(4 * max(x.shape) // width),) * 2) < strength / 10
    return np.where((black & chosen[u.astype(int), v.astype(int)])[..., None], 128 / 255, x)


def circular_motion_blur(x: Pixels, rng: Generator, strength: float) -> Pixels:
    turns = np.linspace(-1, 1, 21)
    weights = np.exp(-2 * turns**2) / np.exp(-2 * turns**2).sum()
    image = x.astype(np.float32)
    return sum(w * rotate(image, 1.5 * strength * t, reshape=False) for w, t in zip(weights, turns, strict=True))


def cocentric_sine_waves(x: Pixels, rng: Generator, strength: float) -> Pixels:
    side = min(x.shape[:2])
    across, along = rng.uniform(0, side, size=2)
    frequency, amplitude, width = rng.uniform(0, 10), rng.uniform(0, side / 10), rng.uniform(0, side / 10)
    down, right = _grid(x)
    angle = frequency * np.arctan2(right - across, down - along)
    radius = np.hypot(right - across, down - along) + amplitude * np.sin(angle)
    return x + 12.8 * strength / 255 * ((radius % width) / width - 0.5)[..., None]


def inverse_sparkles(x: Pixels, rng: Generator, strength: float) -> Pixels:
    side = min(x.shape[:2])
    centre = rng.uniform(0.25, 0.75, size=2) * side
    lengths = 0.25 * side * (1 + 0.25 * rng.standard_normal(rng.integers(50, 200)))
    # In grey levels, so that what stays as it is does so to the last bit.
    return (255 + _rays(x, centre, lengths, 0.13 * strength) * (255 * x - 255)) / 255


def lines(x: Pixels, rng: Generator, strength: float) -> Pixels:
    height, width = x.shape[:2]
    side = min(height, width)
    angle, spread = rng.uniform(0, 2 * math.pi), rng.uniform(0.1, 1)
    out = np.round(x * 255)
    for _ in range(int(0.1 * strength * side)):
        middle = rng.random(2) * (height, width)
        a = angle + 2 * math.pi * spread * (rng.random() - 0.5)
        reach = side * np.array((math.cos(a), math.sin(a)))
        ends = (int(place) for place in (*(middle - reach), *(middle + reach)))
        rows, columns, value = line_aa(*ends)  # type: ignore[no-untyped-call]
        inside = (rows >= 0) & (columns >= 0) & (rows < height) & (columns < width)
        at, value = (rows[inside], columns[inside]), value[inside, None]
        out[at] = np.floor((1 - value) * out[at] + value * 128)
    return out / 255


def perlin_noise(x: Pixels, rng: Generator, strength: float) -> Pixels:
    down, right = _grid(x) * 7 / min(x.shape[:2])
    permutation, gradients = np.tile(rng.permutation(256), 2), rng.uniform(-1, 1, size=(256, 2))
    gradients /= np.linalg.norm(gradients, axis=1, keepdims=True)
    total = sum(abs(_perlin(f * down, f * right, permutation, gradients)) / f for f in (1, 2, 4, 8, 16))
    weight = 0.05 * strength
    return (1 - weight) * x + weight * np.clip(0.5 + 0.5 * total, 0, 1)[..., None]


def pinch_and_twirl(x: Pixels, rng: Generator, strength: float) -> Pixels:
    cells = 5 if min(x.shape[:2]) >= 128 else 3
    turns = rng.choice((-1, 1), size=(cells, cells)) * 0.05 * math.pi * strength
    side = min(x.shape[:2]) // cells
    out = x.copy()
    for (column, row), turn in np.ndenumerate(turns):
        corner = side * np.array((row, column))
        place = np.indices((side, side)) + corner[:, None, None]
        centre = (corner + side / 2)[:, None, None]
        offset = place - centre
        distance = np.hypot(*offset) / (side / 2)
        moves = (distance <= 1) & (np.round(distance * side / 2, 3) > 0)
        distance = np.where(moves, distance, 1)
        angle = turn * (1 - distance) ** 2
        dy, dx = offset * np.sin(math.pi / 2 * distance) ** (-0.1 - 0.04 * strength)
        twirled = np.stack([dy * np.cos(angle) - dx * np.sin(angle), dy * np.sin(angle) + dx * np.cos(angle)])
        to = np.where(moves, centre + twirled, place)
        top, left = corner
        out[top : top + side, left : left + side] = _sample(out, to)  # of what is already twirled beside it
    return out


def plasma_noise(x: Pixels, rng: Generator, strength: float) -> Pixels:
    time, rounds, sharpness = rng.uniform(0, 6 * math.pi), rng.integers(4, 7), rng.uniform(0.5, 1)
    down, right = _grid(x) / (rng.uniform(0.075, 0.2) * min(x.shape[:2]))
    frequency, spread, damping = 1.0, 1.0, 1.0
    for _ in range(rounds):
        a = np.cos(down * frequency + time / spread) / damping
        b = np.sin(right * frequency + time / spread) / damping
        right, down = right + a - 0.3 * b, down + b + 0.3 * a
        frequency, spread, damping = 1.93 * frequency, 1.15 * spread, (2.25 - sharpness) * damping
    colours = [np.sin(right - time), np.sin(0.5 * (right + down + math.sin(time))), np.sin(down + time)]
    weight = 6.4 * strength / 255
    return (1 - weight) * x + weight * np.stack(colours, -1)


def ripple(x: Pixels, rng: Generator, strength: float) -> Pixels:
    side, to = min(x.shape[:2]), _grid(x)
    wavelengths = side * rng.uniform(0.1, 0.3, size=(2, 1, 1))
    phases = rng.uniform(0, 2 * math.pi, size=(2, 1, 1))
    return _sample(x, to + 0.0025 * strength * side * np.sin(2 * math.pi * to / wavelengths + phases))


def single_frequency_greyscale(x: Pixels, rng: Generator, strength: float) -> Pixels:
    larger = rng.uniform(-math.pi, math.pi)
    frequency = rng.permutation([larger, rng.uniform(-abs(larger), abs(larger))])
    down, right = _grid(x)
    wave = np.sin(right * frequency[0] + down * frequency[1] + rng.uniform(0, 2 * math.pi))
    return x + 19.6 * strength / 255 * wave[..., None]


def sparkles(x: Pixels, rng: Generator, strength: float) -> Pixels:
    side = min(x.shape[:2])
    for centre, rays in zip(rng.uniform(0, 1, size=(5, 2)) * x.shape[:2], rng.integers(50, 200, size=5), strict=True):
        lengths = np.maximum(1, 0.01 * strength * side * (1 + 0.25 * rng.standard_normal(rays)))
        x = x + _rays(x, centre, lengths, 1) * (1 - x)
    return x


def transverse_chromatic_abberation(x: Pixels, rng: Generator, strength: float) -> Pixels:
    height, width = x.shape[:2]
    grey_levels = np.round(x * 255).astype(np.uint8)
    out = np.empty_like(x)
    for channel, scale in enumerate(rng.permutation([1, 1 + 0.025 * strength, 1 + 0.05 * strength])):
        large = zoom(grey_levels[..., channel], scale, prefilter=False)
        top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
        out[..., channel] = large[top : top + height, left : left + width] / 255
    return out


def _grid(x: Pixels) -> Pixels:
    """Row and column of each pixel (2, H, W)."""
    return np.indices(x.shape[:2]).astype(float)


def _distance(x: Pixels) -> Pixels:
    """Distance of each pixel (H, W) from the middle, which stands for frequency 0."""
    return np.hypot(*(_grid(x) - np.array(x.shape[:2])[:, None, None] / 2))


def _spectral_noise(amplitude: Pixels, rng: Generator) -> Pixels:
    """Noise (H, W) of variance 1 whose spectrum has these amplitudes, with frequency 0 in the middle."""
    height, width = amplitude.shape
    half = rng.uniform(0, 2 * math.pi, size=(height, (width + 1) // 2))
    phases = np.concatenate([half, half[::-1, ::-1][:, width % 2 :]], axis=1)
    noise = np.fft.ifft2(np.fft.ifftshift(amplitude * np.exp(1j * phases))).real
    return noise / noise.std()


def _sample(x: Pixels, places: Pixels) -> Pixels:
    """Interpolate an image (H, W, C) linearly at places (2, h, w); outside it is black."""
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    return np.stack([map_coordinates(c, places + 1, order=1) for c in np.moveaxis(padded, -1, 0)], -1)


def _rays(x: Pixels, centre: Pixels, lengths: Pixels, sharpness: float) -> Pixels:
    """Light (H, W, 1) in [0, 1] around a centre that shines with rays of these lengths in pixels."""
    down, right = _grid(x) - centre[:, None, None]
    turn = (np.arctan2(right, down) + math.pi) / (2 * math.pi) * len(lengths)
    ray = np.floor(turn).astype(int)
    between = turn - ray
    first, second = lengths[ray % len(lengths)], lengths[(ray + 1) % len(lengths)]
    length = first + between * (second - first)
    light = (length**2 / (down**2 + right**2 + 1e-4)) ** sharpness
    return np.clip((1 - (between - 0.5) ** 2) * light, 0, 1)[..., None]


def _caustics(x: Pixels, time: float, size: float) -> Pixels:
    """Light (H, W) on the ground of a pool."""
    p = (_grid(x) / size) % 1 * 2 * math.pi - 250
    i, total = p, 1.0
    for n in range(5):
        t = time * (1 - 3.5 / (n + 1))
        i = p + np.stack([np.cos(t - i[0]) + np.sin(t + i[1]), np.sin(t - i[1]) + np.cos(t + i[0])])
        total = total + 200 / np.hypot(p[0] / np.sin(i[0] + t), p[1] / np.cos(i[1] + t))
    return np.clip(abs(1.17 - (total / 5) ** 1.4) ** 8, 0, 1)


def _perlin(u: Pixels, v: Pixels, permutation: Pixels, gradients: Pixels) -> Pixels:
    """Perlin's gradient noise (H, W) at places (u, v), times 1.5."""
    left, top = u % 1, v % 1
    column, row = np.floor(u).astype(int) % 256, np.floor(v).astype(int) % 256
    corners = []
    for dv in (0, 1):
        dots = []
        for du in (0, 1):
            at = gradients[permutation[permutation[(column + du) % 256] + (row + dv) % 256]]
            dots.append((left - du) * at[..., 0] + (top - dv) * at[..., 1])
        corners.append(dots[0] + left**2 * (3 - 2 * left) * (dots[1] - dots[0]))
    return 1.5 * (corners[0] + top**2 * (3 - 2 * top) * (corners[1] - corners[0]))
