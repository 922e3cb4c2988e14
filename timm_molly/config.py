"""The settings of mollification, and the aa string that spells them."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, fields
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from timm_molly import functional
from timm_molly.errors import UserError, hint

ROLES = 'xnbe'
# What timm's auto_augment strings start with.
POLICIES = ('rand', 'augmix', 'original', 'originalr', 'v0', 'v0r', '3a')


@dataclass(frozen=True)
class MollyConfig:
    """Settings of mollification; the defaults are the paper's.

    The string form is timm's grammar: sections joined by `-`, each a key and its value, in any order after `molly`.

    | section | field | meaning |
    | --- | --- | --- |
    | `m<roles>` | `roles` | what an image can become, drawn with equal chance; repeat a letter to draw it more often |
    | `a<f>`, `b<f>` | `alpha`, `beta` | t ~ Beta(alpha, beta); a larger beta is milder |
    | `kn<f>`, `kb<f>`, `k<f>` | `noise_power`, `blur_power`, both | label power: larger keeps more confidence |
    | `s<f>` | `min_scale` | smallest blur, in pixels |
    | `w` | `weighted` | labels stay hard; an image's loss counts less by as much as they would lose |

    Roles: `x` clean, `n` noise, `b` blur, `e` nothing but noise and the uniform label.

    Examples:
        `'molly'` is the paper's setting, `'molly-b4-mxxnb'` milder and clean half of the time.

    Raises:
        UserError: A value is outside its range.
    """

    roles: str = 'xnb'
    alpha: float = 1.0
    beta: float = 2.0
    noise_power: float = 1.0
    blur_power: float = 1.0
    min_scale: float = 0.3
    weighted: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.roles, str) or not self.roles or set(self.roles) - set(ROLES):
            raise UserError(
                f'molly roles must be one or more of the letters {", ".join(ROLES)} '
                f'(clean, noise, blur, nothing but noise), such as xnb, got {self.roles!r}'
            )
        if not isinstance(self.weighted, bool):
            raise UserError(f'molly weighted must be True or False, got {self.weighted!r}')
        for field in fields(self)[1:-1]:
            value = getattr(self, field.name)
            if not (isinstance(value, Real) and 0 < float(value) < math.inf):
                hint = (
                    '; labels that keep their confidence have a large power, 1000 say' if 'power' in field.name else ''
                )
                raise UserError(f'molly {field.name} must be a finite number above 0, got {value!r}{hint}')

    def gamma(self, role: str, t: Tensor) -> Tensor:
        """What images of a role lose at strengths t, of any shape, in [0, 1]: label smoothing, or weight."""
        return functional.label_gamma(role, t, self.noise_power, self.blur_power)

    def confidence(self, role: str, t: Tensor, num_classes: int, smoothing: float = 0.0) -> Tensor:
        """Confidence that their labels keep among a number of classes, shaped as `t`: 1 where they are `weighted`.

        Label smoothing of the training, in [0, 1], takes its part of what is left.

        Example:
            >>> import torch
            >>> MollyConfig().confidence('b', torch.tensor([0.0, 0.5, 1.0]), num_classes=10)
            tensor([1.0000, 0.5500, 0.1000])
        """
        gamma = self.gamma(role, t)
        left = torch.zeros_like(gamma) if self.weighted else gamma
        return functional.confidence(left + smoothing * (1 - left), num_classes)

    def weight(self, role: str, t: Tensor) -> Tensor:
        """Weight of their loss, shaped as `t`: 1 - gamma where they are `weighted`, 1 where not.

        Example:
            >>> MollyConfig(weighted=True).weight('b', torch.tensor([0.0, 0.5, 1.0]))
            tensor([1.0000, 0.5000, 0.0000])
        """
        gamma = self.gamma(role, t)
        return 1 - gamma if self.weighted else torch.ones_like(gamma)

    @classmethod
    def from_string(cls, string: str) -> MollyConfig:
        """Parse an aa string such as `'molly-b4-mxn'`; `str(config)` is the way back.

        Raises:
            UserError: It does not start with `molly`, or a section is unknown, malformed, out of range or given twice.

        Example:
            >>> config = MollyConfig.from_string('molly-b4-mxxnb')
            >>> config.roles, config.beta
            ('xxnb', 4.0)
        """
        name, *sections = string.split('-')
        if name != 'molly':
            if '+' in string:
                raise UserError(
                    f"this takes molly's part alone, and timm's transforms the other policy; got {string!r}"
                )
            glued = re.fullmatch(rf'molly[_=:]?({_SECTION.pattern})', name)
            meant = f' (did you mean molly-{glued[1]}?)' if glued else hint(name, ['molly'])
            raise UserError(
                f"a mollification string starts with 'molly' and joins its sections with '-' "
                f"(and another policy with '+'), got {string!r}{meant}"
            )
        config = cls()
        values: dict[str, str | float | bool] = {}
        for section in sections:
            key, text = _split_section(section, string)
            for field in _FIELDS[key]:
                if field in values:
                    raise UserError(f'{field} is given twice in {string!r}, the second time by {section!r}')
                values[field] = True if key == 'w' else text if key == 'm' else float(text)
            try:
                config = cls(**values)  # type: ignore[arg-type]
            except UserError as error:
                raise UserError(f'section {section!r} in {string!r}: {error}') from None
        return config

    def __str__(self) -> str:
        keys = {
            'weighted': 'w',
            'roles': 'm',
            'alpha': 'a',
            'beta': 'b',
            'noise_power': 'kn',
            'blur_power': 'kb',
            'min_scale': 's',
        }
        if self.noise_power == self.blur_power:
            keys = {**keys, 'noise_power': 'k'}
            del keys['blur_power']
        changed = {key: getattr(self, name) for name, key in keys.items() if getattr(self, name) != _DEFAULTS[name]}
        return '-'.join(['molly', *(key + _spell(value) for key, value in changed.items())])


_FIELDS = {
    'm': ('roles',),
    'a': ('alpha',),
    'b': ('beta',),
    'kn': ('noise_power',),
    'kb': ('blur_power',),
    'k': ('noise_power', 'blur_power'),
    's': ('min_scale',),
    'w': ('weighted',),
}
_SECTION = re.compile(r'(m)([a-z]+)|(kn|kb|k|a|b|s)(\d+\.?\d*|\.\d+)|(w)()')
_DEFAULTS = {field.name: field.default for field in fields(MollyConfig)}
_SECTIONS = (
    'm<roles> (letters x, n, b, e), a<number> and b<number> (t ~ Beta(a, b)), '
    'kn<number>, kb<number> or k<number> (label power), s<number> (smallest blur in pixels), '
    'w (hard labels, weighted losses)'
)


def split_aa(aa: str) -> tuple[MollyConfig | None, str | None]:
    """Split timm's `--aa` string into mollification and the policy that is timm's own.

    Policies are joined by `+`, in any order: `'rand-m9-mstd0.5-inc1+molly-b4'`.

    Returns:
        The settings (None if molly is not asked for) and timm's part of the string (None if there is none).

    Raises:
        UserError: molly is misspelt, given twice, or joined to a policy with anything but `+`, or there is more than
            one policy beside it, or one that is none of timm's.

    Example:
        >>> config, rest = split_aa('rand-m9-mstd0.5-inc1+molly-b4')
        >>> str(config), rest
        ('molly-b4', 'rand-m9-mstd0.5-inc1')
    """
    if 'molly' not in aa.lower():
        for policy in aa.split('+'):
            name = policy.strip().partition('-')[0]
            if name not in POLICIES and (meant := hint(name.lower(), ['molly'])):
                raise UserError(f'no policy {policy!r} in {aa!r}{meant}')
        return None, aa
    policies = [policy.strip() for policy in aa.split('+')]
    ours = [policy for policy in policies if policy.lower().startswith('molly')]
    others = [policy for policy in policies if policy not in ours]
    if len(ours) != 1 or len(others) > 1 or any('molly' in policy.lower() or not policy for policy in others):
        raise UserError(
            f"--aa takes molly once, joined with '+' to at most one other policy, such as "
            f"'rand-m9-mstd0.5-inc1+molly-b4', got {aa!r}"
        )
    config = MollyConfig.from_string(ours[0])
    if others and others[0].partition('-')[0] not in POLICIES:
        raise UserError(f'timm has no policy {others[0]!r}, which {aa!r} names; it has {", ".join(POLICIES)}')
    return config, others[0] if others else None


def _split_section(section: str, string: str) -> tuple[str, str]:
    match = _SECTION.fullmatch(section)
    if match is None:
        meant = f' (did you mean {near}?)' if (near := _near(section)) else ''
        if section in _FIELDS:
            meant = f' ({section} needs {"roles: mxn" if section == "m" else f"a number: {section}2"}, say)'
        raise UserError(f'unknown or malformed section {section!r} in {string!r}{meant}. Sections are {_SECTIONS}')
    key, text = (group for group in match.groups() if group is not None)
    return key, text


def _near(section: str) -> str | None:
    """The section that may be meant by one that is not: 'b4' by 'beta=4', 'mxnb' by 'xnb', 'w' by 'weighted'."""
    word, value = re.fullmatch(r'([a-z_]*)[^a-z0-9.]*(.*)', section.lower(), re.DOTALL).groups()  # type: ignore[union-attr]
    keys = {name: key for key, names in _FIELDS.items() for name in names if len(names) == 1} | {'power': 'k'}
    near = difflib.get_close_matches(word, [*keys, *keys.values()], 1)
    found = f'{keys.get(near[0], near[0])}{value}' if near else ''
    if _SECTION.fullmatch(section.lower()):
        found = section.lower()
    elif not set(section.lower()) - set(ROLES):
        found = f'm{section.lower()}'
    return found if _SECTION.fullmatch(found) else None


def _spell(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return ''
    # No exponent: its '-' would end the section.
    return value if isinstance(value, str) else np.format_float_positional(value, trim='-')
