"""Pre-activation residual networks: PreActResNet, which the mollification paper trains, and Wide ResNet."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import BatchNormAct2d, create_conv2d
from timm.models import register_model, resnetv2
from torch import nn

from timm_molly.models.small import SmallNet, conv_stem, create, init_weights, make_default_cfgs

__all__ = ['PreActResNet', 'WideResNet']

default_cfgs = {
    **make_default_cfgs([f'preactresnet{depth}' for depth in (18, 34, 50, 101)], lambda side: side // 8),
    **make_default_cfgs(['wide_resnet40_2'], lambda side: side // 4),
}


class PreActBasic(resnetv2.PreActBasic):
    """timm's basic block, with a shortcut from the block's input itself, not from its pre-activation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_chs, H, W) to (B, out_chs, H / stride, W / stride)."""
        shortcut = x
        if self.downsample is not None:
            shortcut = self.downsample(x)
        x = self.conv1(self.norm1(x))
        x = self.conv2(self.norm2(x))
        return self.drop_path(x) + shortcut


class PreActBottleneck(resnetv2.PreActBottleneck):
    """timm's bottleneck block, with a shortcut from the block's input itself, not from its pre-activation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_chs, H, W) to (B, out_chs, H / stride, W / stride)."""
        shortcut = x
        if self.downsample is not None:
            shortcut = self.downsample(x)
        x = self.conv1(self.norm1(x))
        x = self.conv2(self.norm2(x))
        x = self.conv3(self.norm3(x))
        return self.drop_path(x) + shortcut


def _stages(
    block: type[nn.Module],
    layers: Sequence[int],
    widths: Sequence[int],
    bottle_ratio: float,
    drop_path_rate: float,
) -> list[nn.Module]:
    rates = torch.linspace(0, drop_path_rate, sum(layers)).tolist()
    return [
        resnetv2.ResNetStage(
            widths[i],
            widths[i + 1],
            stride=1 if i == 0 else 2,
            dilation=1,
            depth=depth,
            bottle_ratio=bottle_ratio,
            block_dpr=rates[sum(layers[:i]) : sum(layers[: i + 1])],
            block_fn=block,
            conv_layer=create_conv2d,
            norm_layer=BatchNormAct2d,
        )
        for i, depth in enumerate(layers)
    ]


class PreActResNet(SmallNet):
    """PreActResNet for small images: https://arxiv.org/abs/1603.05027, as trained in https://arxiv.org/abs/2406.01494.

    As there, shortcuts start before the activation, nothing comes between the last stage and the pooling, and weights
    are drawn as PyTorch draws them.

    Args:
        layers: Number of blocks in each of the four stages.
        bottleneck: Three convolutions a block and four times the channels, in place of two.
        in_chans: Number of channels of the images.
        drop_path_rate: Largest probability of leaving out a block (stochastic depth); it grows with depth from 0.
        head: `num_classes`, `global_pool` and `drop_rate` of `SmallNet`.
    """

    def __init__(
        self,
        layers: Sequence[int],
        bottleneck: bool,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        **head: Any,
    ) -> None:
        expansion = 4 if bottleneck else 1
        widths = [64] + [width * expansion for width in (64, 128, 256, 512)]
        block = PreActBottleneck if bottleneck else PreActBasic
        stages = _stages(block, layers, widths, 1 / expansion, drop_path_rate)
        stem = conv_stem(in_chans, widths[0])
        super().__init__(stem, stages, nn.Identity(), widths, in_chans, **head)


class WideResNet(SmallNet):
    """Wide ResNet for small images: https://arxiv.org/abs/1605.07146.

    Args:
        depth: Number of layers, 6 n + 4.
        widen_factor: Channels of the stages in multiples of 16, 32 and 64.
        in_chans: Number of channels of the images.
        drop_path_rate: Largest probability of leaving out a block (stochastic depth); it grows with depth from 0.
        head: `num_classes`, `global_pool` and `drop_rate` of `SmallNet`.
    """

    def __init__(
        self,
        depth: int,
        widen_factor: int,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        **head: Any,
    ) -> None:
        widths = [16] + [width * widen_factor for width in (16, 32, 64)]
        stages = _stages(resnetv2.PreActBasic, [(depth - 4) // 6] * 3, widths, 1.0, drop_path_rate)
        stem, norm = conv_stem(in_chans, widths[0]), BatchNormAct2d(widths[-1])
        super().__init__(stem, stages, norm, widths, in_chans, **head)
        init_weights(self)


@register_model
def preactresnet18(pretrained: bool = False, **kwargs: Any) -> PreActResNet:
    """PreActResNet-18 for small images."""
    net = dict(layers=(2, 2, 2, 2), bottleneck=False)
    return create(PreActResNet, 'preactresnet18', pretrained, num_maps=5, **dict(net, **kwargs))


@register_model
def preactresnet34(pretrained: bool = False, **kwargs: Any) -> PreActResNet:
    """PreActResNet-34 for small images."""
    net = dict(layers=(3, 4, 6, 3), bottleneck=False)
    return create(PreActResNet, 'preactresnet34', pretrained, num_maps=5, **dict(net, **kwargs))


@register_model
def preactresnet50(pretrained: bool = False, **kwargs: Any) -> PreActResNet:
    """PreActResNet-50 for small images, the network of the mollification paper."""
    net = dict(layers=(3, 4, 6, 3), bottleneck=True)
    return create(PreActResNet, 'preactresnet50', pretrained, num_maps=5, **dict(net, **kwargs))


@register_model
def preactresnet101(pretrained: bool = False, **kwargs: Any) -> PreActResNet:
    """PreActResNet-101 for small images."""
    net = dict(layers=(3, 4, 23, 3), bottleneck=True)
    return create(PreActResNet, 'preactresnet101', pretrained, num_maps=5, **dict(net, **kwargs))


@register_model
def wide_resnet40_2(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """Wide ResNet 40-2 for small images."""
    net = dict(depth=40, widen_factor=2)
    return create(WideResNet, 'wide_resnet40_2', pretrained, num_maps=4, **dict(net, **kwargs))
