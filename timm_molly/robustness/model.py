"""The model to be measured: a timm name or a checkpoint, loaded without running pickled code."""

from __future__ import annotations

import argparse
import ast
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from timm_molly.plugin import add_models
from timm_molly.weights import create_model, fingerprint, load_weights, one_line, read_checkpoint


@dataclass(frozen=True)
class Subject:
    """A model ready to be measured.

    Attributes:
        model: In evaluation mode, on its device.
        data_config: What timm resolves from the flags and the model: input_size, mean, std, crop_pct, ...
        aa: The --aa of its training where the checkpoint tells, else None.
        record: What the report says of it.
    """

    model: nn.Module
    data_config: dict[str, Any]
    aa: str | None
    record: dict[str, Any]

    @property
    def num_classes(self) -> int:
        """Number of logits K."""
        return int(self.record['num_classes'])

    @property
    def image_size(self) -> list[int]:
        """Height and width of the input in pixels."""
        return list(self.data_config['input_size'][1:])

    @property
    def img_mode(self) -> str:
        """Pillow's mode of the images that the model takes."""
        return 'RGB' if self.data_config['input_size'][0] == 3 else 'L'

    def transform(self, crop_pct: float | None = None) -> Any:
        """Make timm's evaluation transform up to the uint8 array (C, H, W), which its prefetching loader normalises."""
        from timm.data import create_transform

        keys = ('input_size', 'interpolation', 'mean', 'std', 'crop_mode')
        return create_transform(
            **{key: self.data_config[key] for key in keys},
            crop_pct=crop_pct or self.data_config['crop_pct'],
            is_training=False,
            use_prefetcher=True,
        )


def load_model(args: argparse.Namespace) -> Subject:
    """Create a timm model and load its weights without running pickled code.

    Raises:
        ValueError: The name, the flags or the checkpoint will not do.
    """
    from timm.data import resolve_data_config

    add_models()  # also where autoload is off
    if args.checkpoint is not None and args.pretrained:
        raise ValueError('--pretrained and --checkpoint both name weights; leave one out')
    if args.use_ema and args.checkpoint is None:
        raise ValueError('--use-ema needs --checkpoint')
    if args.checkpoint is not None and not args.checkpoint.is_file():
        raise ValueError(f'no such checkpoint: {args.checkpoint}')
    in_chans = args.input_size[0] if args.input_size else 3
    if in_chans not in (1, 3):
        raise ValueError(f'images have 1 or 3 channels, got --input-size {" ".join(map(str, args.input_size))}')
    kwargs = _model_kwargs(args.model_kwargs)
    arguments = {'pretrained': args.checkpoint is None, 'num_classes': args.num_classes, 'in_chans': in_chans, **kwargs}
    model = create_model(args.model, arguments, args.trust_pickle)
    aa = None
    if args.checkpoint is not None:
        checkpoint = read_checkpoint(args.checkpoint, args.use_ema, args.trust_pickle)
        load_weights(model, checkpoint.state, args.model, args.checkpoint)
        aa = checkpoint.settings.get('aa')
    try:
        device = torch.device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        model = model.to(device).eval()
    except (RuntimeError, AssertionError) as error:  # the latter from PyTorch without CUDA
        raise ValueError(f'--device {args.device} cannot be used: {one_line(error)}') from None
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)  # its first convolution turns the images
    for flag, values in (('--mean', args.mean), ('--std', args.std)):
        if values and len(values) not in (1, in_chans):
            raise ValueError(f'{flag} needs 1 or {in_chans} numbers, one a channel, got {len(values)}')
    if args.crop_pct is not None and args.crop_pct <= 0:
        raise ValueError(f'--crop-pct must be above 0, got {args.crop_pct}')
    data_config = resolve_data_config(vars(args), model=model, use_test_size=True)
    _try(model, args.model, data_config['input_size'], device)
    record = {
        'name': args.model,
        'checkpoint': '/'.join(args.checkpoint.resolve().parts[-2:]) if args.checkpoint else None,
        'ema': args.use_ema,
        'aa': aa if isinstance(aa, str) else None,
        'parameters': sum(p.numel() for p in model.parameters()),
        'num_classes': model.num_classes,
        'sha256': fingerprint(model),
        'input_size': list(data_config['input_size']),
        'mean': list(data_config['mean']),
        'std': list(data_config['std']),
        'crop_pct': data_config['crop_pct'],
        'crop_mode': data_config['crop_mode'],
        'interpolation': data_config['interpolation'],
        'device': device.type,
        'amp': args.amp_dtype if args.amp else None,
    }
    return Subject(model, data_config, record['aa'], record)


@torch.inference_mode()
def _try(model: nn.Module, name: str, input_size: tuple[int, ...], device: torch.device) -> None:
    """Raise ValueError where a model cannot take images of a size, before anything is measured or written."""
    size = ' x '.join(map(str, input_size))
    try:
        logits = model(torch.zeros(1, *input_size, device=device))
    except Exception as error:  # whatever a model may say
        raise ValueError(
            f'{name} cannot take images of {size}: {one_line(error)} (--img-size, --model-kwargs img_size=...)'
        ) from None
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, model.num_classes) or not model.num_classes:
        raise ValueError(f'{name} gives no logits (B, K) of {model.num_classes} classes, so it is no classifier')


def _model_kwargs(pairs: list[str]) -> dict[str, Any]:
    """Read key=value as timm's --model-kwargs does: Python literals, or else text."""
    kwargs = {}
    for pair in pairs:
        key, equals, value = pair.partition('=')
        if not equals or not key.isidentifier():
            raise ValueError(f'--model-kwargs takes key=value, got {pair!r}')
        try:
            kwargs[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            kwargs[key] = value
    return kwargs
