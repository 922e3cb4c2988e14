"""The All Convolutional Network."""

from functools import partial
from typing import Any

from timm.layers import ConvNormAct
from timm.models import register_model
from torch import nn

from timm_molly.models.small import SmallNet, create, init_weights, make_default_cfgs

__all__ = ['AllConvNet']

default_cfgs = make_default_cfgs(['allconvnet'], lambda side: side // 4 - 2, first_conv='stem.0.conv')


class AllConvNet(SmallNet):
    """All-CNN, https://arxiv.org/abs/1412.6806, as the corruption literature trains it: with batch norm and GELU.

    Max-pooling and dropout of 0.5 take the place of the strided convolutions, as in AugMix
    (https://arxiv.org/abs/1912.02781), and a linear layer that of the last one. The code published there pads its 1x1
    convolutions by a pixel and pools off the centre; these do not.

    Args:
        in_chans: Number of channels of the images.
        head: `num_classes`, `global_pool` and `drop_rate` of `SmallNet`.
    """

    def __init__(self, in_chans: int = 3, **head: Any) -> None:
        conv = partial(ConvNormAct, kernel_size=3, bias=True, act_layer='quick_gelu')
        stages = [
            nn.Sequential(conv(96, 96), conv(96, 96)),
            nn.Sequential(nn.MaxPool2d(2), nn.Dropout(0.5), conv(96, 192), conv(192, 192), conv(192, 192)),
            nn.Sequential(
                nn.MaxPool2d(2),
                nn.Dropout(0.5),
                conv(192, 192, padding=0),
                conv(192, 192, kernel_size=1),
                conv(192, 192, kernel_size=1),
            ),
        ]
        widths = (96, 96, 192, 192)
        stem = nn.Sequential(conv(in_chans, 96))
        super().__init__(stem, stages, nn.Identity(), widths, in_chans, **head)
        init_weights(self)


@register_model
def allconvnet(pretrained: bool = False, **kwargs: Any) -> AllConvNet:
    """All-CNN for small images."""
    return create(AllConvNet, 'allconvnet', pretrained, num_maps=4, **kwargs)
