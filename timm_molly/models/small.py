"""What all small-image networks share: their shape, timm's methods, and their entries in timm's registry.

Networks made for ImageNet start with two or three reductions by 2, which leaves little of an image of 32 pixels. These
start with a 3x3 convolution at full size and halve the size before every stage but the first.

Annotations are not postponed in these modules: torch.fx followed by torch.jit.script cannot read postponed ones.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead, create_conv2d
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs
from torch import nn

# The tags of every model, the first one the default: what the data set asks of a network. Means and standard
# deviations are those of the training images' pixels; the literature uses ImageNet's for TinyImageNet.
DATA: dict[str, dict[str, Any]] = {
    'cifar10': {
        'num_classes': 10,
        'input_size': (3, 32, 32),
        'mean': (0.4914, 0.4822, 0.4465),
        'std': (0.2470, 0.2435, 0.2616),
    },
    'cifar100': {
        'num_classes': 100,
        'input_size': (3, 32, 32),
        'mean': (0.5071, 0.4865, 0.4409),
        'std': (0.2673, 0.2564, 0.2762),
    },
    'tiny_imagenet': {
        'num_classes': 200,
        'input_size': (3, 64, 64),
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
    },
}


class SmallNet(nn.Module):
    """A classifier of images (B, in_chans, H, W), with the methods that timm's models have.

    Args:
        stem: Takes the images to `widths[0]` channels, at full size.
        stages: Stage i takes `widths[i]` channels to `widths[i + 1]`, at 1 / 2**i of the full size.
        norm: Comes after the stages; features are taken before it.
        widths: Number of channels after the stem and each stage.
        in_chans: Number of channels of the images.
        num_classes: Number of logits; 0 for pooled features in their place.
        global_pool: `'avg'`, another of timm's pooling types, or `''` for none.
        drop_rate: Dropout probability before the classifier.
    """

    def __init__(
        self,
        stem: nn.Sequential,
        stages: Iterable[nn.Module],
        norm: nn.Module,
        widths: Sequence[int],
        in_chans: int = 3,
        num_classes: int = 10,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.norm = norm
        self.num_features = self.head_hidden_size = widths[-1]
        self.head = ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate)
        *_, (last, _) = stem.named_children()
        self.feature_info = [{'num_chs': widths[0], 'reduction': 1, 'module': f'stem.{last}'}] + [
            {'num_chs': width, 'reduction': 2**i, 'module': f'stages.{i}'} for i, width in enumerate(widths[1:])
        ]

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Tell timm which parameters lie at which depth, for layer-wise learning rates: stem, each stage, head."""
        return {'stem': r'^stem', 'blocks': r'^stages\.(\d+)'}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: keep the activations between stages alone, and compute the others again."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the last layer, whose output is the logits."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer with a fresh one; with 0 classes, with none."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the feature map (B, num_features, h, w)."""
        x = self.stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():  # type: ignore[attr-defined]
            x = checkpoint_seq(self.stages, x)
        else:
            x = self.stages(x)
        return self.norm(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Return the logits (B, num_classes) of a feature map, or the features before the last layer."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, num_classes) of images (B, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))


Net = TypeVar('Net', bound=SmallNet)


def conv_stem(in_chans: int, width: int, *layers: tuple[str, nn.Module]) -> nn.Sequential:
    """Return a 3x3 convolution at full size, named as `default_cfg` says, and what else comes before the stages."""
    return nn.Sequential(OrderedDict([('conv', create_conv2d(in_chans, width, 3)), *layers]))


def init_weights(net: nn.Module) -> None:
    """Draw weights as the CIFAR versions of these networks do: He et al. (2015) over a filter's outputs."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def make_default_cfgs(names: Iterable[str], map_size: Callable[[int], int], first_conv: str = 'stem.conv') -> Any:
    """Return the `default_cfgs` of models that have no published weights: one for each data set of `DATA`.

    Args:
        names: Names of the models.
        map_size: Side of the last feature map, from the side of the images.
        first_conv: Name of the first convolution.
    """
    return generate_default_cfgs(
        {
            f'{name}.{tag}': {
                **data,
                'pool_size': (map_size(data['input_size'][1]),) * 2,
                'crop_pct': 1.0,
                'interpolation': 'bicubic',
                'first_conv': first_conv,
                'classifier': 'head.fc',
                'license': 'apache-2.0',
            }
            for name in names
            for tag, data in DATA.items()
        }
    )


def create(net: type[Net], variant: str, pretrained: bool, num_maps: int, **kwargs: Any) -> Net:
    """Build a model as timm builds its own, from its entry in the registry and the arguments of `create_model`."""
    feature_cfg = {'flatten_sequential': True, 'out_indices': tuple(range(num_maps))}
    return build_model_with_cfg(net, variant, pretrained, feature_cfg=feature_cfg, **kwargs)
