"""ResNeXt-29 for small images."""

from typing import Any

from timm.models import register_model
from timm.models.resnet import Bottleneck, make_blocks
from torch import nn

from timm_molly.models.small import SmallNet, conv_stem, create, init_weights, make_default_cfgs

__all__ = ['ResNeXt29']

default_cfgs = make_default_cfgs(['resnext29_4x32d'], lambda side: side // 4)


class ResNeXt29(SmallNet):
    """ResNeXt-29 for small images: https://arxiv.org/abs/1611.05431.

    Args:
        cardinality: Number of groups of the 3x3 convolutions.
        base_width: Channels of a group in the first stage.
        in_chans: Number of channels of the images.
        drop_path_rate: Largest probability of leaving out a block (stochastic depth); it grows with depth from 0.
        head: `num_classes`, `global_pool` and `drop_rate` of `SmallNet`.
    """

    def __init__(
        self,
        cardinality: int,
        base_width: int,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        **head: Any,
    ) -> None:
        channels = (64, 128, 256)
        stages, _ = make_blocks(
            (Bottleneck,) * 3,
            channels,
            (3, 3, 3),
            inplanes=64,
            cardinality=cardinality,
            base_width=base_width,
            norm_layer=nn.BatchNorm2d,
            drop_path_rate=drop_path_rate,
        )
        super().__init__(
            conv_stem(in_chans, 64, ('norm', nn.BatchNorm2d(64)), ('act', nn.ReLU(inplace=True))),
            [stage for _, stage in stages],
            nn.Identity(),
            (64, *(width * Bottleneck.expansion for width in channels)),
            in_chans,
            **head,
        )
        init_weights(self)


@register_model
def resnext29_4x32d(pretrained: bool = False, **kwargs: Any) -> ResNeXt29:
    """ResNeXt-29 with 4 groups of 32 channels, which AugMix and others write ResNeXt-29 (32x4)."""
    net = dict(cardinality=4, base_width=32)
    return create(ResNeXt29, 'resnext29_4x32d', pretrained, num_maps=4, **dict(net, **kwargs))
