"""The model to be measured: a timm name or a checkpoint, loaded without running pickled code."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn


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
    import timm
    from timm.data import resolve_data_config

    if args.checkpoint is not None and args.pretrained:
        raise ValueError('--pretrained and --checkpoint both name weights; leave one out')
    if args.use_ema and args.checkpoint is None:
        raise ValueError('--use-ema needs --checkpoint')
    if args.checkpoint is not None and not args.checkpoint.is_file():
        raise ValueError(f'no such checkpoint: {args.checkpoint}')
    in_chans = args.input_size[0] if args.input_size else 3
    with _without_pickled_code(args.trust_pickle):
        try:
            model = timm.create_model(
                args.model, pretrained=args.checkpoint is None, num_classes=args.num_classes, in_chans=in_chans
            )
        except Exception as error:  # timm, the Hub's client and the loaders raise all sorts
            raise ValueError(f'timm cannot create {args.model!r}: {one_line(error)}') from None
    aa = None
    if args.checkpoint is not None:
        state, aa = _read_checkpoint(args.checkpoint, args.use_ema, args.trust_pickle)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f'{args.checkpoint} does not fit {args.model}: {one_line(error)}') from None
    try:
        device = torch.device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        model = model.to(device).eval()
    except (RuntimeError, AssertionError) as error:  # the latter from PyTorch without CUDA
        raise ValueError(f'--device {args.device} cannot be used: {one_line(error)}') from None
    data_config = resolve_data_config(vars(args), model=model, use_test_size=True)
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    record = {
        'name': args.model,
        'checkpoint': '/'.join(args.checkpoint.resolve().parts[-2:]) if args.checkpoint else None,
        'ema': args.use_ema,
        'aa': aa,
        'parameters': sum(p.numel() for p in model.parameters()),
        'num_classes': model.num_classes,
        'sha256': digest.hexdigest(),
        'input_size': list(data_config['input_size']),
        'mean': list(data_config['mean']),
        'std': list(data_config['std']),
        'crop_pct': data_config['crop_pct'],
        'crop_mode': data_config['crop_mode'],
        'interpolation': data_config['interpolation'],
        'amp': args.amp_dtype if args.amp else None,
    }
    return Subject(model, data_config, aa, record)


def _read_checkpoint(path: Path, use_ema: bool, trust: bool) -> tuple[dict[str, Any], str | None]:
    """Read weights, and the --aa that train.py noted beside them."""
    from timm.models import clean_state_dict

    if path.suffix == '.safetensors':
        import safetensors.torch

        try:
            checkpoint: Any = safetensors.torch.load_file(path)
        except Exception as error:  # SafetensorError is no ValueError
            raise ValueError(f'{path} is not a safetensors file that can be read: {error}') from None
    else:
        try:
            with _without_pickled_code(trust):
                checkpoint = torch.load(path, map_location='cpu', weights_only=not trust)
        except pickle.UnpicklingError:
            raise ValueError(
                f'{path} needs pickled code to load, which could do anything on your machine; '
                'if you trust whoever made it, add --trust-pickle'
            ) from None
        except (RuntimeError, EOFError, ValueError) as error:
            raise ValueError(f'{path} is not a checkpoint that can be read: {one_line(error)}') from None
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{path} holds a {type(checkpoint).__name__}, not weights by name')
    keys = ('state_dict_ema', 'model_ema') if use_ema else ('state_dict', 'model')
    state = next((checkpoint[key] for key in keys if checkpoint.get(key) is not None), None)
    if state is None:
        if use_ema:
            raise ValueError(f'{path} has no EMA weights; leave --use-ema out')
        state = checkpoint
    aa = getattr(checkpoint.get('args'), 'aa', None)
    return clean_state_dict(state), aa if isinstance(aa, str) else None


@contextmanager
def _without_pickled_code(trust: bool) -> Iterator[None]:
    """Let torch.load take tensors and the plain argparse.Namespace of train.py only, whoever calls it."""
    if trust:
        yield
        return
    name, before = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', os.environ.get('TORCH_FORCE_WEIGHTS_ONLY_LOAD')
    os.environ[name] = '1'
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def one_line(error: Exception) -> str:
    """Shorten an error of another library to what fits into a line."""
    text = ' '.join(str(error).split()) or type(error).__name__
    return text if len(text) < 400 else f'{text[:400]} ...'
