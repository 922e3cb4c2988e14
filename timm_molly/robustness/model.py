"""The model to be measured: a timm name or a checkpoint, loaded without running pickled code."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_data_config
from torch import nn

from timm_molly import training
from timm_molly.hub.folder import check_arguments
from timm_molly.plugin import add_models
from timm_molly.weights import Checkpoint, create_model, fingerprint, load_weights, one_line, read_checkpoint

# Flags that say over a training's settings how model and images are made.
FLAGS = ('num_classes', 'img_size', 'input_size', 'mean', 'std', 'crop_pct', 'interpolation')
# What of a training's settings is used.
TAKEN = ('model', *FLAGS, 'in_chans', 'gp', 'bn_eps', 'model_kwargs', 'aa')


@dataclass(frozen=True)
class Subject:
    """A model ready to be measured.

    Attributes:
        model: In evaluation mode, on its device.
        data_config: What timm resolves from the flags and the model: input_size, mean, std, crop_pct, ...
        aa: The --aa of its training where the checkpoint tells, else None.
        record: What the report says of it.
        settings: Of its training; empty where nothing tells them.
    """

    model: nn.Module
    data_config: dict[str, Any]
    aa: str | None
    record: dict[str, Any]
    settings: Mapping[str, Any]

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

    What the flags do not say of model and images, the settings of a checkpoint's training do: those that it holds
    itself, or else the `args.yaml` beside it. Images are then prepared as in that training's own validation.

    Raises:
        ValueError: The name, the flags or the checkpoint will not do.
    """
    add_models()  # also where autoload is off
    if args.checkpoint is not None and args.pretrained:
        raise ValueError('--pretrained and --checkpoint both name weights; leave one out')
    if args.use_ema and args.checkpoint is None:
        raise ValueError('--use-ema needs --checkpoint')
    if args.crop_pct is not None and args.crop_pct <= 0:
        raise ValueError(f'--crop-pct must be above 0, got {args.crop_pct}')
    given = {key: getattr(args, key) for key in FLAGS if getattr(args, key) not in (None, '')}
    kwargs = _model_kwargs(args.model_kwargs)
    source = checkpoint = None
    settings: Mapping[str, Any] = {}
    if args.checkpoint is not None:
        source = training.find_checkpoint(args.checkpoint)
        checkpoint = read_checkpoint(source, args.use_ema, args.trust_pickle)
        settings = _settings(args.model, checkpoint, source)
    name = args.model or settings.get('model')
    if not isinstance(name, str):
        raise ValueError('which model? Add --model' + (f': {source} does not say it' if source else ''))
    merged = _merged(settings, given)
    arguments = {**training.model_arguments(merged), **kwargs}
    in_chans = arguments['in_chans']
    if in_chans not in (1, 3):
        raise ValueError(f'images have 1 or 3 channels, got {in_chans} (--input-size)')
    for flag, values in (('--mean', args.mean), ('--std', args.std)):
        if values and len(values) not in (1, in_chans):
            raise ValueError(f'{flag} needs 1 or {in_chans} numbers, one a channel, got {len(values)}')
    if settings and checkpoint and not merged.get('num_classes'):  # train.py fills it in after it wrote args.yaml
        merged['num_classes'] = training.count_classes(name, checkpoint)
    arguments |= {'num_classes': merged.get('num_classes'), 'pretrained': checkpoint is None}
    model = create_model(name, arguments, args.trust_pickle)
    if checkpoint is not None:
        _load(model, checkpoint, name, source)
    try:
        device = torch.device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        model = model.to(device).eval()
    except (RuntimeError, AssertionError) as error:  # the latter from PyTorch without CUDA
        raise ValueError(f'--device {args.device} cannot be used: {one_line(error)}') from None
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)  # its first convolution turns the images
    if settings:
        data_config = training.image_settings(model, in_chans, merged, source)
        data_config['crop_mode'] = args.crop_mode or data_config['crop_mode']
        _say_taken({key: value for key, value in merged.items() if key not in given}, args.model, kwargs, source)
    else:
        data_config = resolve_data_config(vars(args), model=model, use_test_size=True)
        if source is not None:
            _say_guessed(given, name, data_config, source)
    num_classes = _try(model, name, data_config['input_size'], device)
    aa = settings.get('aa')
    record = {
        'name': name,
        'checkpoint': '/'.join(source.resolve().parts[-2:]) if source else None,
        'ema': args.use_ema,
        'aa': aa if isinstance(aa, str) else None,
        'parameters': sum(p.numel() for p in model.parameters()),
        'num_classes': num_classes,
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
    return Subject(model, data_config, record['aa'], record, settings)


def _settings(name: str | None, checkpoint: Checkpoint, source: Path) -> Mapping[str, Any]:
    """Settings of the training that a checkpoint is of; empty where nothing says them, or they are of another model."""
    args = source.with_name(training.ARGS)
    settings = checkpoint.settings or (training.read_settings(args) if args.is_file() else {})
    trained = settings.get('model')
    if name and isinstance(trained, str) and trained.partition('.')[0] != name.partition('.')[0]:
        print(f'note: {source} is of a training of {trained}, so that its settings are not used', file=sys.stderr)
        return {}
    check_arguments(training.plain(settings.get('model_kwargs') or {}), f'{source}: model_kwargs')
    return settings


def _merged(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, and over them the flags that were given."""
    kept = dict(settings)
    if 'img_size' in given or 'input_size' in given:  # two ways to say the same
        kept['img_size'] = kept['input_size'] = None
    if 'input_size' in given:
        kept['in_chans'] = None
    return {**kept, **given}


def _load(model: nn.Module, checkpoint: Checkpoint, name: str, source: object) -> None:
    try:
        load_weights(model, checkpoint.state, name, source)
    except ValueError as error:
        classes = training.count_classes(name, checkpoint)
        if classes in (None, getattr(model, 'num_classes', None)):
            raise
        raise ValueError(f'{error}. Its last layer has {classes} classes: add --num-classes {classes}') from None


def _say_taken(settings: Mapping[str, Any], name: str | None, kwargs: Mapping[str, Any], source: object) -> None:
    """Print what was taken from a training's settings, as flags."""
    words = []
    for key in TAKEN:
        value = settings.get(key)
        if value in (None, '') or (key == 'model' and name):
            continue
        if isinstance(value, Mapping):
            value = [f'{k}={v}' for k, v in value.items() if k not in kwargs]
        values = value if isinstance(value, (list, tuple)) else [value]
        words += [f'--{key.replace("_", "-")}', *map(str, values)] if values else []
    if words:
        print(f'as in the training of {source}: {" ".join(words)}', file=sys.stderr)


def _say_guessed(given: Mapping[str, Any], name: str, data_config: Mapping[str, Any], source: object) -> None:
    """Say what of the images neither a training nor a flag told."""
    size = ' x '.join(map(str, data_config['input_size']))
    guesses = [f'input {size} (--img-size)'] if not {'img_size', 'input_size'} & given.keys() else []
    guesses += [f'{key} {data_config[key]} (--{key})' for key in ('mean', 'std') if key not in given]
    if guesses:
        print(
            f'note: nothing says how the images of {source} were prepared; a guess, from {name} in timm: '
            f'{", ".join(guesses)}',
            file=sys.stderr,
        )


@torch.inference_mode()
def _try(model: nn.Module, name: str, input_size: tuple[int, ...], device: torch.device) -> int:
    """Count the logits; ValueError where a model gives none for images of a size, before anything is written."""
    size = ' x '.join(map(str, input_size))
    try:
        logits = model(torch.zeros(1, *input_size, device=device))
    except Exception as error:  # whatever a model may say
        raise ValueError(
            f'{name} cannot take images of {size}: {one_line(error)} (--img-size, --model-kwargs img_size=...)'
        ) from None
    found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    classes = getattr(model, 'num_classes', None)  # which only timm's own models are sure to have
    if not isinstance(found, tuple) or len(found) != 2 or not found[1] or classes not in (None, found[1]):
        said = '' if classes is None else f' of {classes} classes'
        raise ValueError(f'{name} gives no logits (B, K){said} but {found}, so it is no classifier')
    return int(found[1])


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
