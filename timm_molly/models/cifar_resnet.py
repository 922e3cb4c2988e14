"""The residual networks for CIFAR, of 20 to 56 layers."""

from itertools import pairwise
from typing import Any

import torch
from timm.layers import BatchNormAct2d, DropPath
from timm.models import register_model, resnet
from torch import nn
from torch.nn import functional as F

from timm_molly.models.small import SmallNet, conv_stem, create, init_weights, make_default_cfgs

__all__ = ['CifarResNet']

default_cfgs = make_default_cfgs([f'cifar_resnet{depth}' for depth in (20, 32, 44, 56)], lambda side: side // 4)


class PaddedShortcut(nn.Module):
    """Option A of He et al.: every second pixel, with zeros for the channels that are new, half on each side."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.pad = (0, 0, 0, 0, new_channels // 2, new_channels - new_channels // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, C + new_channels, H / 2, W / 2)."""
        return F.pad(x[:, :, ::2, ::2], self.pad)


def _stage(width: int, wider: int, drop_path_rates: list[float]) -> nn.Sequential:
    """A block for each rate; the first takes `width` channels to `wider`, at half the size where they are more."""
    first: dict[str, Any] = {'stride': 2, 'downsample': PaddedShortcut(wider - width)} if wider > width else {}
    return nn.Sequential(
        *(
            resnet.BasicBlock(
                wider if i else width, wider, drop_path=DropPath(rate) if rate else None, **({} if i else first)
            )
            for i, rate in enumerate(drop_path_rates)
        )
    )


class CifarResNet(SmallNet):
    """ResNet for CIFAR: https://arxiv.org/abs/1512.03385, section 4.2, with shortcuts that have no weights.

    Args:
        depth: Number of layers, 6 n + 2.
        in_chans: Number of channels of the images.
        drop_path_rate: Largest probability of leaving out a block (stochastic depth); it grows with depth from 0.
        head: `num_classes`, `global_pool` and `drop_rate` of `SmallNet`.
    """

    def __init__(self, depth: int, in_chans: int = 3, drop_path_rate: float = 0.0, **head: Any) -> None:
        widths = (16, 16, 32, 64)
        blocks = (depth - 2) // 6
        rates = torch.linspace(0, drop_path_rate, 3 * blocks).view(3, blocks).tolist()
        stages = [_stage(*pair, dropped) for pair, dropped in zip(pairwise(widths), rates, strict=True)]
        stem = conv_stem(in_chans, widths[0], ('norm', BatchNormAct2d(widths[0])))
        super().__init__(stem, stages, nn.Identity(), widths, in_chans, **head)
        init_weights(self)


@register_model
def cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-20 for small images."""
    return create(CifarResNet, 'cifar_resnet20', pretrained, num_maps=4, **dict({'depth': 20}, **kwargs))


@register_model
def cifar_resnet32(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-32 for small images."""
    return create(CifarResNet, 'cifar_resnet32', pretrained, num_maps=4, **dict({'depth': 32}, **kwargs))


@register_model
def cifar_resnet44(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-44 for small images."""
    return create(CifarResNet, 'cifar_resnet44', pretrained, num_maps=4, **dict({'depth': 44}, **kwargs))


@register_model
def cifar_resnet56(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-56 for small images."""
    return create(CifarResNet, 'cifar_resnet56', pretrained, num_maps=4, **dict({'depth': 56}, **kwargs))
