"""DenseNet-BC for small images."""

from typing import Any

from timm.layers import BatchNormAct2d
from timm.models import register_model
from timm.models.densenet import DenseBlock, DenseTransition
from torch import nn

from timm_molly.models.small import SmallNet, conv_stem, create, init_weights, make_default_cfgs

__all__ = ['DenseNetBC']

default_cfgs = make_default_cfgs(['densenet_bc_40_12', 'densenet_bc_100_12'], lambda side: side // 4)


class DenseNetBC(SmallNet):
    """DenseNet-BC for small images: https://arxiv.org/abs/1608.06993, bottlenecks of 4 k channels, compression 0.5.

    Args:
        depth: Number of layers, 6 n + 4.
        growth_rate: Channels that a layer adds, k in the paper.
        in_chans: Number of channels of the images.
        head: `num_classes`, `global_pool` and `drop_rate` of `SmallNet`.
    """

    def __init__(self, depth: int, growth_rate: int, in_chans: int = 3, **head: Any) -> None:
        num_layers = (depth - 4) // 6
        widths = [2 * growth_rate]
        stages: list[nn.Module] = []
        for i in range(3):
            width = widths[-1] if i == 0 else widths[-1] // 2
            block = DenseBlock(num_layers, width, bn_size=4, growth_rate=growth_rate)
            stages.append(block if i == 0 else nn.Sequential(DenseTransition(widths[-1], width), block))
            widths.append(width + num_layers * growth_rate)
        stem, norm = conv_stem(in_chans, widths[0]), BatchNormAct2d(widths[-1])
        super().__init__(stem, stages, norm, widths, in_chans, **head)
        init_weights(self)


@register_model
def densenet_bc_40_12(pretrained: bool = False, **kwargs: Any) -> DenseNetBC:
    """DenseNet-BC with 40 layers that add 12 channels each, for small images."""
    net = dict(depth=40, growth_rate=12)
    return create(DenseNetBC, 'densenet_bc_40_12', pretrained, num_maps=4, **dict(net, **kwargs))


@register_model
def densenet_bc_100_12(pretrained: bool = False, **kwargs: Any) -> DenseNetBC:
    """DenseNet-BC with 100 layers that add 12 channels each, for small images."""
    net = dict(depth=100, growth_rate=12)
    return create(DenseNetBC, 'densenet_bc_100_12', pretrained, num_maps=4, **dict(net, **kwargs))
