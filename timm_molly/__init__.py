"""Mollification for timm: train on noised and blurred images whose labels lose confidence by the same amount.

`timm-molly` adds one flag to the `train.py` people already run, `--aa molly`. Its parts, in the order of the data:
`functional` (the formulas), `target` (`CoupledTarget`), `config` (the aa string), `mollify` (the batch operation),
`loader` and `plugin` (the way into timm).

Names load on first use: PyTorch imports this package in every process that imports torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = '0.1.0'

if TYPE_CHECKING:
    from timm_molly import functional, hub, loss
    from timm_molly.config import MollyConfig
    from timm_molly.mollify import Mollify
    from timm_molly.plugin import register, unregister
    from timm_molly.target import CoupledTarget

__all__ = ['CoupledTarget', 'Mollify', 'MollyConfig', 'functional', 'hub', 'loss', 'register', 'unregister']

_HOME = {
    'CoupledTarget': 'target',
    'Mollify': 'mollify',
    'MollyConfig': 'config',
    'register': 'plugin',
    'unregister': 'plugin',
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f'{__name__}.{_HOME[name]}'), name)
    if name in __all__:
        return importlib.import_module(f'{__name__}.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
