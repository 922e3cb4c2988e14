"""Mollification for timm: train on noised and blurred images whose labels lose confidence by the same amount.

`timm-molly` adds one flag to the `train.py` people already run, `--aa molly`. README.md in this folder says how it
works and what to read in which order; each folder has such a page.

Names load on first use: PyTorch imports this package in every process that imports torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = '0.2.0'

if TYPE_CHECKING:
    from timm_molly import functional, hub, loss, robustness
    from timm_molly.classifier import Classifier, load
    from timm_molly.config import MollyConfig
    from timm_molly.errors import UserError
    from timm_molly.hub.push import push
    from timm_molly.mollify import Mollify
    from timm_molly.plugin.register import register, unregister
    from timm_molly.robustness.compare import compare
    from timm_molly.robustness.evaluate import evaluate
    from timm_molly.robustness.fit import fit
    from timm_molly.robustness.report import Report
    from timm_molly.target import CoupledTarget

__all__ = [
    'Classifier',
    'CoupledTarget',
    'Mollify',
    'MollyConfig',
    'Report',
    'UserError',
    'compare',
    'evaluate',
    'fit',
    'functional',
    'hub',
    'load',
    'loss',
    'push',
    'register',
    'robustness',
    'unregister',
]

_HOME = {
    'Classifier': 'classifier',
    'CoupledTarget': 'target',
    'Mollify': 'mollify',
    'MollyConfig': 'config',
    'Report': 'robustness.report',
    'UserError': 'errors',
    'compare': 'robustness.compare',
    'evaluate': 'robustness.evaluate',
    'fit': 'robustness.fit',
    'load': 'classifier',
    'push': 'hub.push',
    'register': 'plugin.register',
    'unregister': 'plugin.register',
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f'{__name__}.{_HOME[name]}'), name)
    if name in __all__:
        return importlib.import_module(f'{__name__}.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
