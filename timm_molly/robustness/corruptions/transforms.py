"""The corruptions: the 15 common ones of Hendrycks & Dietterich (2019, arXiv 1903.12261) and the 4 held out.

Those of C-bar are in `bar`.

The package `imagecorruptions` has those of ImageNet-C alone, so what depends on the strength is written here; what does
not (frost pictures, fog's fractal, the defocus disk, motion blur, the shuffle of glass blur) is taken from there.
"""

from __future__ import annotations

import functools
import importlib.resources
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from timm_molly.errors import UserError, needs
from timm_molly.robustness.corruptions.names import BAR, COMMON, HELD_OUT, SEVERITIES
from timm_molly.robustness.corruptions.strengths import check_size, strengths_of

try:
    import cv2
    from imagecorruptions import corruptions as published
    from scipy.ndimage import gaussian_filter

    from timm_molly.robustness.corruptions import bar
except ImportError as error:
    raise needs('corrupting images', 'robustness', error) from None

Pixels = NDArray[Any]  # float (H, W, 3) in [0, 1]


def corrupt_pixels(
    pixels: NDArray[np.uint8], corruption: str, severity: int, table: str, index: int = 0, seed: int = 0
) -> NDArray[np.uint8]:
    """Corrupt one image as the published generators do.

    The official ImageNet-C and Tiny-ImageNet-C files were stored as JPEG of quality 85 afterwards; this is not.

    Args:
        pixels: (H, W, 3) or (H, W, 1), uint8. Grey ones are corrupted as colour and made grey again.
        corruption: One of `COMMON`, `HELD_OUT` or the table's set of C-bar.
        severity: 1 to 5.
        table: 'imagenet-c', 'tiny-imagenet-c' or 'cifar-c'.
        index: Place of the image in its data set, 0 or more. With `seed`, 0 or more, the corruption and the severity it
            decides every random draw: images with the same index get the same noise.
        seed: See `index`.

    Returns:
        Pixels of the same shape.

    Raises:
        UserError: An unknown name, a number out of range, or a side smaller than `min_side(table)`.
    """
    strengths = strengths_of(table, corruption)
    if severity not in SEVERITIES:
        raise UserError(f'the severity must be 1 to 5, got {severity!r}')
    if index < 0 or seed < 0:
        raise UserError(f'index and seed must be 0 or more, got {index} and {seed}')
    check_size(min(pixels.shape[:2]), table)
    if pixels.shape[2] == 1:
        colour = np.repeat(pixels, 3, axis=2)
        image = Image.fromarray(corrupt_pixels(colour, corruption, severity, table, index, seed))
        return np.asarray(image.convert('L'))[..., None]
    rng = np.random.default_rng((seed, index, severity, zlib.crc32(corruption.encode())))
    x: Pixels = pixels / 255.0
    x = _FUNCTIONS[corruption](x, rng, *strengths[severity - 1])
    # The published sets cut grey levels down rather than rounding them.
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)


def warm_up() -> None:
    """Compile what glass blur needs, so that worker processes find it compiled."""
    corrupt_pixels(np.zeros((32, 32, 3), np.uint8), 'glass_blur', 1, 'cifar-c')


def gaussian_noise(x: Pixels, rng: Generator, std: float) -> Pixels:
    return x + rng.normal(scale=std, size=x.shape)


def shot_noise(x: Pixels, rng: Generator, photons: float) -> Pixels:
    return rng.poisson(x * photons) / photons


def impulse_noise(x: Pixels, rng: Generator, amount: float) -> Pixels:
    salt = rng.random(x.shape) < 0.5
    return np.where(rng.random(x.shape) < amount, salt, x)


def speckle_noise(x: Pixels, rng: Generator, std: float) -> Pixels:
    return x + x * rng.normal(scale=std, size=x.shape)


def gaussian_blur(x: Pixels, rng: Generator, sigma: float) -> Pixels:
    return gaussian_filter(x, (sigma, sigma, 0), mode='nearest')


def defocus_blur(x: Pixels, rng: Generator, radius: float, softness: float) -> Pixels:
    return cv2.filter2D(x, -1, published.disk(radius, softness))


def glass_blur(x: Pixels, rng: Generator, sigma: float, reach: int, rounds: int) -> Pixels:
    # Not OpenCV's filter: in flat areas a difference in the last bit is a grey level after this.
    grey_levels = (gaussian_blur(x, rng, sigma) * 255).astype(np.uint8)
    seed = int(rng.integers(2**31))
    shuffled = published._shuffle_pixels_njit_glass_blur(*x.shape[:2], grey_levels, (sigma, reach, rounds), seed)
    return gaussian_blur(shuffled / 255.0, rng, sigma)


def motion_blur(x: Pixels, rng: Generator, radius: int, sigma: float) -> Pixels:
    return _motion(x, radius, sigma, rng.uniform(-45, 45))


def zoom_blur(x: Pixels, rng: Generator, stop: float, step: float) -> Pixels:
    zooms = np.arange(1, stop, step)
    return (x + _zoom(x, *zooms)) / (len(zooms) + 1)


def snow(
    x: Pixels,
    rng: Generator,
    mean: float,
    std: float,
    zoom: float,
    threshold: float,
    radius: int,
    sigma: float,
    kept: float,
) -> Pixels:
    flakes: Pixels = _zoom(rng.normal(mean, std, size=(*x.shape[:2], 1)), zoom)
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    flakes = _motion(np.floor(flakes * 255) / 255, radius, sigma, rng.uniform(-135, -45))
    grey = cv2.cvtColor(x.astype(np.float32), cv2.COLOR_RGB2GRAY)[..., None]
    x = kept * x + (1 - kept) * np.maximum(x, grey * 1.5 + 0.5)
    return x + flakes + flakes[::-1, ::-1]


def frost(x: Pixels, rng: Generator, kept: float, ice: float, scale: float) -> Pixels:
    picture = _frost_picture(int(rng.integers(5)), scale)  # the sixth was never drawn
    height, width = x.shape[:2]
    larger = max(height / picture.shape[0], width / picture.shape[1])
    if larger > 1:
        picture = cv2.resize(picture, None, fx=larger, fy=larger)
    top = rng.integers(max(picture.shape[0] - height, 1))
    left = rng.integers(max(picture.shape[1] - width, 1))
    return kept * x + ice * (picture[top : top + height, left : left + width] / 255.0)


def fog(x: Pixels, rng: Generator, strength: float, decay: float, map_size: int) -> Pixels:
    while map_size < max(x.shape):
        map_size *= 2
    with _legacy_generator(rng):
        mist = published.plasma_fractal(map_size, decay)[: x.shape[0], : x.shape[1], None]
    brightest = x.max()
    return (x + strength * mist) * brightest / (brightest + strength)


def brightness(x: Pixels, rng: Generator, more: float) -> Pixels:
    hsv = _to_hsv(x)
    hsv[..., 2] = np.clip(hsv[..., 2] + more, 0, 1)
    return _from_hsv(hsv)


def saturate(x: Pixels, rng: Generator, factor: float, more: float) -> Pixels:
    hsv = _to_hsv(x)
    hsv[..., 1] = np.clip(hsv[..., 1] * factor + more, 0, 1)
    return _from_hsv(hsv)


def contrast(x: Pixels, rng: Generator, factor: float) -> Pixels:
    mean = np.tile(x.mean((0, 1)), x.shape[1])  # a row of them, because NumPy is slow along short axes
    rows = x.reshape(len(x), -1)
    return ((rows - mean) * factor + mean).reshape(x.shape)


def elastic_transform(x: Pixels, rng: Generator, strength: float, sigma: float, affine: float) -> Pixels:
    height, width = x.shape[:2]
    reach = min(height, width) // 3
    centre = np.array((width // 2, height // 2))
    corners = (centre + reach * np.array(((1, 1), (1, -1), (-1, -1)))).astype(np.float32)
    moved = corners + rng.uniform(-affine, affine, size=corners.shape).astype(np.float32)
    matrix = cv2.getAffineTransform(corners, moved)
    # As float32, like the generator's: OpenCV 5 interpolates float64 more coarsely.
    x = cv2.warpAffine(x.astype(np.float32), matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    shift = rng.uniform(-1, 1, size=(height, width, 2))
    shift = strength * _gaussian(shift, sigma, truncate=3, border=cv2.BORDER_REFLECT)
    to = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1) + shift
    # cv2.remap rounds places to 1/32 pixel, more than the mildest transform moves them.
    places = torch.from_numpy((2 * to + 1) / (width, height) - 1)[None]
    image = torch.from_numpy(x).double().permute(2, 0, 1)[None]
    moved = torch.nn.functional.grid_sample(image, places, padding_mode='reflection', align_corners=False)
    return moved[0].permute(1, 2, 0).numpy()


def pixelate(x: Pixels, rng: Generator, factor: float) -> Pixels:
    image = _to_image(x)
    small = image.resize((int(image.width * factor), int(image.height * factor)), Image.Resampling.BOX)
    return np.asarray(small.resize(image.size, Image.Resampling.BOX)) / 255.0


def jpeg_compression(x: Pixels, rng: Generator, quality: int) -> Pixels:
    file = BytesIO()
    _to_image(x).save(file, 'JPEG', quality=quality)
    return np.asarray(Image.open(file)) / 255.0


def spatter(
    x: Pixels,
    rng: Generator,
    mean: float,
    std: float,
    sigma: float,
    threshold: float,
    strength: float,
    mud: int,
) -> Pixels:
    liquid = _gaussian(rng.normal(mean, std, size=x.shape[:2]), sigma)
    if mud:
        cover = _gaussian(np.where(liquid > threshold, 1.0, 0.0), strength)[..., None]
        cover[cover < 0.8] = 0
        return x * (1 - cover) + cover * np.array((63, 42, 20)) / 255
    drops = (np.where(liquid < threshold, 0, liquid) * 255).astype(np.uint8)
    distance = cv2.distanceTransform(255 - cv2.Canny(drops, 50, 150), cv2.DIST_L2, 5)
    rim = cv2.equalizeHist(cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8))
    rim = cv2.filter2D(rim, cv2.CV_8U, np.array(((-2, -1, 0), (-1, 1, 1), (0, 1, 2))))
    water = drops * cv2.blur(rim, (3, 3)).astype(np.float64)
    water *= strength / max(water.max(), 1e-12)
    return x + water[..., None] * np.array((175, 238, 238)) / 255


_FUNCTIONS: dict[str, Any] = {name: globals()[name] for name in (*COMMON, *HELD_OUT)}
_FUNCTIONS |= {name: getattr(bar, name) for name in BAR}


def _gaussian(x: Pixels, sigma: float, truncate: float = 4, border: int = cv2.BORDER_REPLICATE) -> Pixels:
    reach = int(truncate * sigma + 0.5)
    if reach < 24:
        return cv2.GaussianBlur(x, (2 * reach + 1,) * 2, sigma, borderType=border)
    # Of wide ones two products with small matrices take a tenth of the time.
    rows, columns = (_gaussian_matrix(side, reach, sigma, border) for side in x.shape[:2])
    return np.einsum('ij,jk...,lk->il...', rows, x, columns, optimize=True)


@functools.lru_cache(maxsize=8)
def _gaussian_matrix(side: int, reach: int, sigma: float, border: int) -> Pixels:
    return cv2.GaussianBlur(np.eye(side), (1, 2 * reach + 1), sigma, borderType=border)


def _motion(x: Pixels, radius: int, sigma: float, angle: float) -> Pixels:
    height, width, channels = x.shape
    steps = np.arange(2 * radius + 1)
    edge, weights = len(steps), published.getMotionBlurKernel(len(steps), sigma)
    down, right = (np.ceil(steps * f(np.deg2rad(angle)) - 0.5).astype(int) + edge for f in (np.sin, np.cos))
    padded = cv2.copyMakeBorder(np.round(x * 255), edge, edge, edge, edge, cv2.BORDER_REPLICATE)
    padded = padded.reshape(len(padded), -1)
    blurred = np.zeros((height, width * channels))
    for weight, top, left in zip(weights, down, channels * right, strict=True):
        cv2.scaleAdd(padded[top : top + height, left : left + width * channels], weight, blurred, blurred)
    # ImageMagick, which the generators call for this, works in 16 bits and cuts them down to 8.
    return (np.floor(np.round(blurred * 257) / 257) / 255).reshape(x.shape)


def _zoom(x: Pixels, *factors: float) -> Pixels:
    """Enlarge the middle of an image (H, W, C) linearly, corner on corner, and cut it to its old size; sum it up."""
    height, width = x.shape[:2]
    whole = torch.from_numpy(x).permute(2, 0, 1)[None].contiguous()
    total = torch.zeros_like(whole)
    for factor in factors:
        sides = [int(np.ceil(side / factor)) for side in (height, width)]
        top, left = (height - sides[0]) // 2, (width - sides[1]) // 2
        middle = whole[:, :, top : top + sides[0], left : left + sides[1]]
        size = [round(side * factor) for side in sides]
        large = torch.nn.functional.interpolate(middle, size, mode='bilinear', align_corners=True)
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        total += large[:, :, top : top + height, left : left + width]
    return total[0].permute(1, 2, 0).numpy()


@functools.cache
def _frost_picture(number: int, scale: float) -> Pixels:
    name = ('frost1.png', 'frost2.png', 'frost3.png', 'frost4.jpg', 'frost5.jpg')[number]
    data = (importlib.resources.files('imagecorruptions') / 'frost' / name).read_bytes()
    picture = np.asarray(Image.open(BytesIO(data)).convert('RGB'))
    return cv2.resize(picture, None, fx=scale, fy=scale) if scale != 1 else picture


@contextmanager
def _legacy_generator(rng: Generator) -> Iterator[None]:
    """Let NumPy's global generator, which imagecorruptions draws from, follow `rng`, and put it back afterwards."""
    state = np.random.get_state()
    np.random.seed(int(rng.integers(2**32)))
    try:
        yield
    finally:
        np.random.set_state(state)


def _to_image(x: Pixels) -> Image.Image:
    return Image.fromarray(np.round(x * 255).astype(np.uint8))


def _to_hsv(x: Pixels) -> Pixels:
    return cv2.cvtColor(x.astype(np.float32), cv2.COLOR_RGB2HSV)


def _from_hsv(x: Pixels) -> Pixels:
    return cv2.cvtColor(x, cv2.COLOR_HSV2RGB)
