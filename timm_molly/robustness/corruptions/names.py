"""The names of the corruptions, apart from their code and the packages that it needs."""

from __future__ import annotations

from collections.abc import Sequence

from timm_molly.errors import UserError, hint

GROUPS = {
    'noise': ('gaussian_noise', 'shot_noise', 'impulse_noise'),
    'blur': ('defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur'),
    'weather': ('snow', 'frost', 'fog', 'brightness'),
    'digital': ('contrast', 'elastic_transform', 'pixelate', 'jpeg_compression'),
}
COMMON = tuple(name for group in GROUPS.values() for name in group)
HELD_OUT = ('speckle_noise', 'gaussian_blur', 'spatter', 'saturate')
# C-bar, with its authors' spelling, since folders and arrays are named so. Its two sets share five.
IMAGENET_C_BAR = (
    *('blue_noise_sample', 'brownish_noise', 'checkerboard_cutout', 'inverse_sparkles', 'sparkles'),
    *('caustic_refraction', 'cocentric_sine_waves', 'perlin_noise', 'plasma_noise', 'single_frequency_greyscale'),
)
CIFAR_10_C_BAR = (
    *('blue_noise_sample', 'brownish_noise', 'checkerboard_cutout', 'inverse_sparkles', 'sparkles'),
    *('circular_motion_blur', 'lines', 'pinch_and_twirl', 'ripple', 'transverse_chromatic_abberation'),
)
BAR = (*IMAGENET_C_BAR, *CIFAR_10_C_BAR[5:])
# By table of strengths; for images of 64 pixels there is no set, and they get that of 32.
BAR_OF = {'imagenet-c': IMAGENET_C_BAR, 'tiny-imagenet-c': CIFAR_10_C_BAR, 'cifar-c': CIFAR_10_C_BAR}
ALL = (*COMMON, *HELD_OUT, *BAR)
SEVERITIES = (1, 2, 3, 4, 5)
CHOICES = {'common': COMMON, 'held-out': HELD_OUT, 'all': (*COMMON, *HELD_OUT), 'bar': BAR, **GROUPS}


def chosen(choices: Sequence[str], table: str | None = None) -> tuple[str, ...]:
    """List the corruptions that names and groups choose, in the order of `ALL`.

    Args:
        choices: Names and groups.
        table: Table of strengths, whose set of C-bar 'bar' means; None for any of both.

    Raises:
        UserError: One is neither, or is of the other set of C-bar.

    Example:
        >>> chosen(['noise', 'fog'])
        ('gaussian_noise', 'shot_noise', 'impulse_noise', 'fog')
    """
    for choice in choices:
        if choice not in CHOICES and choice not in ALL:
            known = (*CHOICES, *ALL)
            raise UserError(f'no corruption {choice!r}{hint(choice, known)}; there are {", ".join(known)}')
    groups = {**CHOICES, 'bar': BAR_OF[table]} if table else CHOICES
    names = {name for choice in choices for name in groups.get(choice, (choice,))}
    if table and names - {*COMMON, *HELD_OUT, *BAR_OF[table]}:
        other = [name for name in BAR if name in names and name not in BAR_OF[table]]
        raise UserError(f'{table} has no strengths of {", ".join(other)}; of C-bar it has {", ".join(BAR_OF[table])}')
    return tuple(name for name in ALL if name in names)
