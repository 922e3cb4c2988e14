"""Measuring robustness and calibration: corruptions, conditions, metrics, and the report.

Names load on first use, so that reading a report needs none of the packages that corrupt images.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from timm_molly.robustness.conditions import Corruptions, Mollification, Published, bar, common
    from timm_molly.robustness.corruptions.corrupt import Corrupt
    from timm_molly.robustness.metrics import Calibration
    from timm_molly.robustness.report import Report

__all__ = ['Calibration', 'Corrupt', 'Corruptions', 'Mollification', 'Published', 'Report', 'bar', 'common']

_HOME = {
    'Calibration': 'metrics',
    'Corrupt': 'corruptions.corrupt',
    'Corruptions': 'conditions',
    'Mollification': 'conditions',
    'Published': 'conditions',
    'Report': 'report',
    'bar': 'conditions',
    'common': 'conditions',
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f'{__name__}.{_HOME[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
