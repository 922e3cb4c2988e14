"""The names of the common corruptions, apart from their code and the packages that it needs."""

from __future__ import annotations

from collections.abc import Sequence

from timm_molly.errors import UserError

GROUPS = {
    'noise': ('gaussian_noise', 'shot_noise', 'impulse_noise'),
    'blur': ('defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur'),
    'weather': ('snow', 'frost', 'fog', 'brightness'),
    'digital': ('contrast', 'elastic_transform', 'pixelate', 'jpeg_compression'),
}
COMMON = tuple(name for group in GROUPS.values() for name in group)
HELD_OUT = ('speckle_noise', 'gaussian_blur', 'spatter', 'saturate')
SEVERITIES = (1, 2, 3, 4, 5)
CHOICES = {'common': COMMON, 'held-out': HELD_OUT, 'all': (*COMMON, *HELD_OUT), **GROUPS}


def chosen(choices: Sequence[str]) -> tuple[str, ...]:
    """List the corruptions that names and groups choose, in the order of `CHOICES['all']`.

    Raises:
        UserError: One is neither.

    Example:
        >>> chosen(['noise', 'fog'])
        ('gaussian_noise', 'shot_noise', 'impulse_noise', 'fog')
    """
    known = CHOICES['all']
    for choice in choices:
        if choice not in CHOICES and choice not in known:
            raise UserError(f'no corruption {choice!r}; there are {", ".join((*CHOICES, *known))}')
    names = {name for choice in choices for name in CHOICES.get(choice, (choice,))}
    return tuple(name for name in known if name in names)
