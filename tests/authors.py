"""The authors' code, for whoever has it.

MOLLY_AUTHORS_CODE names a checkout of markusheinonen/supervised-mollification, which needs `pip install lightning
torch-dct`. It is never part of this project, and what compares with it is skipped without.
"""

import importlib
import os
import sys
from argparse import Namespace
from typing import Any

import pytest

needs_authors = pytest.mark.skipif(
    not os.environ.get('MOLLY_AUTHORS_CODE'),
    reason="set MOLLY_AUTHORS_CODE to a checkout of the authors' code to compare with it",
)


def authors_model(size: int, num_classes: int, roles: str = 'xnb', **options: Any) -> Any:
    """Their training module for square images of `size` pixels, with the paper's settings."""
    sys.path.insert(0, os.environ['MOLLY_AUTHORS_CODE'])
    try:
        module = importlib.import_module('src.model')
    finally:
        sys.path.pop(0)
    args = {
        'batch': roles,
        'alpha': 1.0,
        'beta': 2.0,
        'npow': 1.0,
        'bpow': 1.0,
        'ynoise': 'ls',
        'loss': 'ce',
        **options,
    }
    return module.Model(None, Namespace(**args), (3, size, size), num_classes)
