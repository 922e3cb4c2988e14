"""Networks for images as small as those of CIFAR and TinyImageNet, in timm's registry.

`timm.create_model` knows their names once timm-molly is registered. A tag says for which data they are made, with its
number of classes, image size, mean and standard deviation: `preactresnet50.cifar10` (what `preactresnet50` alone
means), `.cifar100`, `.tiny_imagenet`.
"""

from timm_molly.models.allconv import AllConvNet, allconvnet
from timm_molly.models.cifar_resnet import (
    CifarResNet,
    cifar_resnet20,
    cifar_resnet32,
    cifar_resnet44,
    cifar_resnet56,
)
from timm_molly.models.densenet_bc import DenseNetBC, densenet_bc_40_12, densenet_bc_100_12
from timm_molly.models.preact import (
    PreActResNet,
    WideResNet,
    preactresnet18,
    preactresnet34,
    preactresnet50,
    preactresnet101,
    wide_resnet40_2,
)
from timm_molly.models.resnext29 import ResNeXt29, resnext29_4x32d

__all__ = [
    'AllConvNet',
    'CifarResNet',
    'DenseNetBC',
    'PreActResNet',
    'ResNeXt29',
    'WideResNet',
    'allconvnet',
    'cifar_resnet20',
    'cifar_resnet32',
    'cifar_resnet44',
    'cifar_resnet56',
    'densenet_bc_40_12',
    'densenet_bc_100_12',
    'preactresnet18',
    'preactresnet34',
    'preactresnet50',
    'preactresnet101',
    'resnext29_4x32d',
    'wide_resnet40_2',
]
