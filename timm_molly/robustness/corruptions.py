"""The 15 common corruptions of Hendrycks & Dietterich (2019, arXiv 1903.12261) and the 4 held out, on the fly.

The strengths are those of the three published sets: ImageNet-C (224 pixels), Tiny-ImageNet-C (64) and CIFAR-10/100-C
(32). The package `imagecorruptions` has the first set alone, so what depends on the strength is written here; what does
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
from scipy.ndimage import gaussian_filter

try:
    import cv2
    from imagecorruptions import corruptions as published
except ImportError as error:
    raise ImportError(f'corruptions need {error.name}: pip install "timm-molly[robustness]" ({error})') from None

from timm_molly.robustness.names import COMMON, GROUPS, HELD_OUT, SEVERITIES

__all__ = ['COMMON', 'GROUPS', 'HELD_OUT', 'SEVERITIES', 'TABLES', 'check_size', 'corrupt', 'table_for', 'warm_up']

Pixels = NDArray[Any]  # float (H, W, 3) in [0, 1]

# Arguments of the functions below, by table and corruption, one tuple a severity.
TABLES: dict[str, dict[str, tuple[tuple[float, ...], ...]]] = {
    'imagenet-c': {
        'gaussian_noise': ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
        'shot_noise': ((60,), (25,), (12,), (5,), (3,)),
        'impulse_noise': ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
        'defocus_blur': ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        'glass_blur': ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        'motion_blur': ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        'zoom_blur': ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        'snow': (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        'frost': ((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)),
        'fog': ((1.5, 2, 256), (2, 2, 256), (2.5, 1.7, 256), (2.5, 1.5, 256), (3, 1.4, 256)),
        'brightness': ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
        'contrast': ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
        # In pixels, reckoned from a side of 244 by the published generator.
        'elastic_transform': (
            (488, 170.8, 24.4),
            (488, 19.52, 48.8),
            (12.2, 2.44, 4.88),
            (17.08, 2.44, 4.88),
            (29.28, 2.44, 4.88),
        ),
        'pixelate': ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)),
        'jpeg_compression': ((25,), (18,), (15,), (10,), (7,)),
        'speckle_noise': ((0.15,), (0.2,), (0.35,), (0.45,), (0.6,)),
        'gaussian_blur': ((1,), (2,), (3,), (4,), (6,)),
        'spatter': (
            (0.65, 0.3, 4, 0.69, 0.6, 0),
            (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ),
        'saturate': ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    },
    'tiny-imagenet-c': {
        'gaussian_noise': ((0.04,), (0.08,), (0.12,), (0.15,), (0.18,)),
        'shot_noise': ((250,), (100,), (50,), (30,), (15,)),
        'impulse_noise': ((0.01,), (0.02,), (0.05,), (0.08,), (0.14,)),
        'defocus_blur': ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
        'glass_blur': ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
        'motion_blur': ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        'zoom_blur': ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        'snow': (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
        ),
        'frost': ((1, 0.3, 0.3), (0.9, 0.4, 0.3), (0.8, 0.45, 0.3), (0.75, 0.5, 0.3), (0.7, 0.55, 0.3)),
        'fog': ((0.4, 3, 64), (0.7, 3, 64), (1, 2.5, 64), (1.5, 2, 64), (2, 1.75, 64)),
        'brightness': ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
        'contrast': ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
        'elastic_transform': (
            (0, 0, 5.12),
            (3.2, 19.2, 3.84),
            (6.4, 5.12, 3.84),
            (6.4, 1.92, 1.92),
            (10.24, 1.92, 1.28),
        ),
        'pixelate': ((0.9,), (0.8,), (0.7,), (0.6,), (0.5,)),
        'jpeg_compression': ((65,), (58,), (50,), (40,), (25,)),
        'speckle_noise': ((0.15,), (0.2,), (0.25,), (0.3,), (0.35,)),
        'gaussian_blur': ((0.5,), (0.75,), (1,), (1.25,), (1.5,)),
        'spatter': (
            (0.62, 0.1, 0.7, 0.7, 0.6, 0),
            (0.65, 0.1, 0.8, 0.7, 0.6, 0),
            (0.65, 0.3, 1, 0.69, 0.6, 0),
            (0.65, 0.1, 0.7, 0.68, 0.6, 1),
            (0.65, 0.1, 0.5, 0.67, 0.6, 1),
        ),
        'saturate': ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
    },
    'cifar-c': {
        'gaussian_noise': ((0.04,), (0.06,), (0.08,), (0.09,), (0.1,)),
        'shot_noise': ((500,), (250,), (100,), (75,), (50,)),
        'impulse_noise': ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
        'defocus_blur': ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        'glass_blur': ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        'motion_blur': ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        'zoom_blur': ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        'snow': (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        'frost': ((1, 0.2, 0.2), (1, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)),
        'fog': ((0.2, 3, 32), (0.5, 3, 32), (0.75, 2.5, 32), (1, 2, 32), (1.5, 1.75, 32)),
        'brightness': ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
        'contrast': ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
        'elastic_transform': (
            (0, 0, 2.56),
            (1.6, 6.4, 2.24),
            (2.56, 1.92, 1.92),
            (3.2, 1.28, 1.6),
            (3.2, 0.96, 0.96),
        ),
        'pixelate': ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
        'jpeg_compression': ((80,), (65,), (58,), (50,), (40,)),
        'speckle_noise': ((0.06,), (0.1,), (0.12,), (0.16,), (0.2,)),
        'gaussian_blur': ((0.4,), (0.6,), (0.7,), (0.8,), (1,)),
        'spatter': (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
        'saturate': ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    },
}


def corrupt(image: Image.Image, corruption: str, severity: int, table: str, index: int, seed: int = 0) -> Image.Image:
    """Corrupt one image as the published generators do.

    The official ImageNet-C and Tiny-ImageNet-C files were stored as JPEG of quality 85 afterwards; this is not.

    Args:
        image: An RGB or grey image.
        corruption: One of `COMMON` or `HELD_OUT`.
        severity: 1 to 5.
        table: 'imagenet-c', 'tiny-imagenet-c' or 'cifar-c'.
        index: Place of the image in its data set, 0 or more. With `seed`, 0 or more, the corruption and the severity it
            decides every random draw: images with the same index get the same noise.
        seed: See `index`.

    Returns:
        An image of the same size and mode.

    Raises:
        ValueError: An unknown name or mode, a number out of range, or a side smaller than `min_side(table)`.
    """
    if image.mode not in ('RGB', 'L'):
        raise ValueError(f'the image must be RGB or grey (L), got {image.mode}')
    pixels = corrupt_pixels(np.asarray(image.convert('RGB')), corruption, severity, table, index, seed)
    return Image.fromarray(pixels).convert(image.mode)


def corrupt_pixels(
    pixels: NDArray[np.uint8], corruption: str, severity: int, table: str, index: int = 0, seed: int = 0
) -> NDArray[np.uint8]:
    """Corrupt the pixels (H, W, 3), uint8, of one colour image; otherwise as `corrupt`."""
    if table not in TABLES:
        raise ValueError(f'the table must be one of {", ".join(TABLES)}, got {table!r}')
    if corruption not in TABLES[table]:
        raise ValueError(f'the corruption must be one of {", ".join(TABLES[table])}, got {corruption!r}')
    if severity not in SEVERITIES:
        raise ValueError(f'the severity must be 1 to 5, got {severity!r}')
    if index < 0 or seed < 0:
        raise ValueError(f'index and seed must be 0 or more, got {index} and {seed}')
    check_size(min(pixels.shape[:2]), table)
    rng = np.random.default_rng((seed, index, severity, zlib.crc32(corruption.encode())))
    x: Pixels = pixels / 255.0
    x = _FUNCTIONS[corruption](x, rng, *TABLES[table][corruption][severity - 1])
    # The published sets cut grey levels down rather than rounding them.
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)


def table_for(side: int) -> str:
    """Name the table made for images nearest to a side in pixels."""
    return 'cifar-c' if side < 48 else 'tiny-imagenet-c' if side < 128 else 'imagenet-c'


def min_side(table: str) -> int:
    """Smallest side in pixels that a table's widest motion blur, of snow or of the image, fits into."""
    strengths = TABLES[table]
    return max(2 * int(r) + 1 for r in (*(s[0] for s in strengths['motion_blur']), *(s[4] for s in strengths['snow'])))


def check_size(side: int, table: str) -> None:
    """Raise ValueError where images of a side in pixels are too small for a table."""
    if side < min_side(table):
        fit = [name for name in TABLES if side >= min_side(name)]
        advice = f'take the strengths of {" or ".join(fit)}' if fit else 'make the input larger'
        raise ValueError(f'{table} needs images of {min_side(table)} pixels or more, got {side}: {advice}')


def warm_up() -> None:
    """Compile what glass blur needs, so that worker processes find it compiled."""
    corrupt(Image.new('RGB', (32, 32)), 'glass_blur', 1, 'cifar-c', 0)


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
    return (x + sum(_zoom(x, zoom) for zoom in zooms)) / (len(zooms) + 1)


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
    mean = x.mean((0, 1))
    return (x - mean) * factor + mean


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


def _gaussian(x: Pixels, sigma: float, truncate: float = 4, border: int = cv2.BORDER_REPLICATE) -> Pixels:
    side = 2 * int(truncate * sigma + 0.5) + 1
    return cv2.GaussianBlur(x, (side, side), sigma, borderType=border)


def _motion(x: Pixels, radius: int, sigma: float, angle: float) -> Pixels:
    # ImageMagick, which the generators call for this, works in 16 bits and cuts them down to 8.
    blurred = published._motion_blur(np.round(x * 255), radius, sigma, angle)
    return np.floor(np.round(blurred * 257) / 257) / 255


def _zoom(x: Pixels, factor: float) -> Pixels:
    """Enlarge the middle of an image (H, W, C) linearly, corner on corner, and cut it to its old size."""
    height, width = x.shape[:2]
    sides = [int(np.ceil(side / factor)) for side in (height, width)]
    top, left = (height - sides[0]) // 2, (width - sides[1]) // 2
    middle = torch.from_numpy(x[top : top + sides[0], left : left + sides[1]]).permute(2, 0, 1)[None]
    size = [round(side * factor) for side in sides]
    large = torch.nn.functional.interpolate(middle, size, mode='bilinear', align_corners=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return large[0, :, top : top + height, left : left + width].permute(1, 2, 0).numpy()


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
