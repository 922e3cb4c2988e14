"""The strengths of the published sets of common corruptions and of C-bar, by image size.

ImageNet-C has images of 224 pixels, Tiny-ImageNet-C of 64, and CIFAR-10-C and CIFAR-100-C of 32.
"""

from __future__ import annotations

from timm_molly.errors import UserError

# Arguments of the functions in `transforms`, by table and corruption, one tuple a severity.
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

# Those of C-bar, from 0 to 10; the published folders are named after them.
_C_BAR: dict[str, dict[str, tuple[float, ...]]] = {
    'imagenet-c': {
        'blue_noise_sample': (0.8, 1.6, 2.4, 4.0, 5.6),
        'brownish_noise': (1.0, 2.0, 3.0, 4.0, 5.0),
        'checkerboard_cutout': (2.0, 3.0, 4.0, 5.0, 6.0),
        'inverse_sparkles': (1.0, 2.0, 4.0, 9.0, 10.0),
        'sparkles': (1.0, 2.0, 3.0, 5.0, 6.0),
        'caustic_refraction': (2.35, 3.2, 4.9, 6.6, 9.15),
        'cocentric_sine_waves': (3.0, 5.0, 8.0, 9.0, 10.0),
        'perlin_noise': (4.6, 5.2, 5.8, 7.6, 8.8),
        'plasma_noise': (4.75, 7.0, 8.5, 9.25, 10.0),
        'single_frequency_greyscale': (1.0, 1.5, 2.0, 4.5, 5.0),
    },
    'cifar-c': {
        'blue_noise_sample': (0.7, 1.4, 2.1, 3.5, 4.2),
        'brownish_noise': (2.5, 4.0, 5.5, 6.5, 7.0),
        'checkerboard_cutout': (1.0, 2.0, 3.0, 4.0, 5.0),
        'inverse_sparkles': (1.0, 1.5, 2.5, 4.5, 5.0),
        'sparkles': (0.7, 3.5, 5.6, 6.3, 7.0),
        'circular_motion_blur': (2.8, 3.6, 4.4, 5.2, 6.0),
        'lines': (0.5, 1.0, 1.5, 2.0, 2.5),
        'pinch_and_twirl': (5.5, 6.0, 6.5, 8.5, 10.0),
        'ripple': (5.5, 6.0, 6.5, 7.5, 8.0),
        'transverse_chromatic_abberation': (1.0, 2.0, 5.0, 9.0, 10.0),
    },
}
_C_BAR['tiny-imagenet-c'] = _C_BAR['cifar-c']
for _table, _of in TABLES.items():
    _of |= {name: tuple((each,) for each in row) for name, row in _C_BAR[_table].items()}


def table_for(side: int) -> str:
    """Name the table made for images nearest to a side in pixels."""
    return 'cifar-c' if side < 48 else 'tiny-imagenet-c' if side < 128 else 'imagenet-c'


def strengths_of(table: str, corruption: str) -> tuple[tuple[float, ...], ...]:
    """The arguments of a corruption, a tuple a severity.

    Raises:
        UserError: There is no such table, or it has none of this corruption.
    """
    if table not in TABLES:
        raise UserError(f'the table must be one of {", ".join(TABLES)}, got {table!r}')
    if corruption not in TABLES[table]:
        raise UserError(f'{table} has no strengths of {corruption!r}; it has {", ".join(TABLES[table])}')
    return TABLES[table][corruption]


def min_side(table: str) -> int:
    """Smallest side in pixels that a table's widest motion blur, of snow or of the image, fits into."""
    strengths = TABLES[table]
    return max(2 * int(r) + 1 for r in (*(s[0] for s in strengths['motion_blur']), *(s[4] for s in strengths['snow'])))


def check_size(side: int, table: str) -> None:
    """Raise UserError where images of a side in pixels are too small for a table."""
    if side < min_side(table):
        fit = [name for name in TABLES if side >= min_side(name)]
        advice = f'take the strengths of {" or ".join(fit)}' if fit else 'make the input larger'
        raise UserError(f'{table} needs images of {min_side(table)} pixels or more, got {side}: {advice}')
