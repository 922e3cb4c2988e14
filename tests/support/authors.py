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


def authors_network(name: str, size: int, num_classes: int) -> Any:
    """Their network for square images of `size` pixels.

    Where theirs averages over a part of the last feature map, or takes each position of it to a weight of its own at 64
    pixels, it is mended to average over all of it; their AllConvNet's 1x1 convolutions lose their padding of a pixel.
    """
    import torch

    sys.path.insert(0, os.environ['MOLLY_AUTHORS_CODE'])
    try:
        networks = {
            module: importlib.import_module(f'src.networks.{module}')
            for module in ('presnet', 'wrn', 'resnext', 'densenet', 'allconvnet')
        }
    finally:
        sys.path.pop(0)
    res = (3, size, size)
    if name.startswith('preactresnet'):
        return getattr(networks['presnet'], f'PreActResNet{name[12:]}')(res, num_classes)
    if name == 'wide_resnet40_2':
        return networks['wrn'].WRN40x2(res, num_classes)
    if name.startswith('densenet_bc'):
        *_, depth, growth = name.split('_')
        return networks['densenet'].DenseNet(res, int(growth), int(depth), 0.5, num_classes, True)
    if name == 'resnext29_4x32d':
        network = networks['resnext'].ResNext29((3, 32, 32), num_classes)
        network.avgpool = torch.nn.AdaptiveAvgPool2d(1)
        return network
    network = networks['allconvnet'].AllConvNet((3, 32, 32), num_classes)
    network.features[-1] = torch.nn.AdaptiveAvgPool2d(1)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (1, 1):
            module.padding = (0, 0)
    return network
