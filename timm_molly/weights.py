"""Creating timm models and reading their weights, without running pickled code."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from timm_molly.errors import UserError, hint

# PyTorch's own switches, which torch.load obeys whatever its caller asks for.
_FORCE_SAFE, _FORCE_UNSAFE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'


@dataclass(frozen=True)
class Checkpoint:
    """Weights, and what train.py noted beside them.

    Attributes:
        state: Tensors by name.
        ema: Whether they are the EMA weights.
        settings: The training's arguments; empty where the file has none.
        epoch: Of the training, from 0, or None.
        metric: What the epoch was chosen by, or None.
    """

    state: Mapping[str, Tensor]
    ema: bool
    settings: Mapping[str, Any]
    epoch: int | None
    metric: float | None


def create_model(name: str, arguments: Mapping[str, Any], trust: bool = False) -> Any:
    """Do what `timm.create_model` does, without pickled code unless it is to be trusted.

    Args:
        name: timm's name of the model.
        arguments: What else `timm.create_model` is given.
        trust: Run code that the model's weights may have pickled.

    Raises:
        UserError: timm cannot make it, or its weights need pickled code.
    """
    import timm

    with _without_pickled_code(trust):
        try:
            return timm.create_model(name, **arguments)
        except Exception as error:  # timm, the Hub's client and the loaders raise all sorts
            if 'weights_only' in str(error) or isinstance(error, pickle.UnpicklingError):
                raise _needs_code(name) from None
            base = name.partition('.')[0]
            meant = '' if ':' in name or timm.is_model(base) else hint(base, timm.list_models())
            raise UserError(f'timm cannot create {name!r}: {one_line(error)}{meant}') from None


def read_checkpoint(path: Path, use_ema: bool | None, trust: bool = False) -> Checkpoint:
    """Read a checkpoint of train.py, or weights by name in a .pth or .safetensors file, alone or beside other things.

    The second norms of `--split-bn` are left out: they serve training alone.

    Args:
        path: The file.
        use_ema: Take the EMA weights; None takes them where there are any.
        trust: Run code that the file may have pickled.

    Raises:
        UserError: It cannot be read, needs pickled code, or has no such weights.
    """
    from timm.models import clean_state_dict

    if path.suffix == '.safetensors':
        import safetensors.torch

        try:
            checkpoint: Any = safetensors.torch.load_file(path)
        except Exception as error:  # SafetensorError is no ValueError
            raise UserError(f'{path} is not a safetensors file that can be read: {one_line(error)}') from None
    else:
        try:
            with _without_pickled_code(trust):
                checkpoint = torch.load(path, map_location='cpu', weights_only=not trust)
        except Exception as error:  # the unpickler raises all sorts on damaged files
            if isinstance(error, pickle.UnpicklingError) and 'GLOBAL' in str(error):
                raise _needs_code(path) from None
            raise UserError(f'{path} is not a checkpoint that can be read: {one_line(error)}') from None
    if not isinstance(checkpoint, dict):
        raise UserError(f'{path} holds no weights by name')

    def find(*keys: str) -> Any:
        return next((checkpoint[key] for key in keys if checkpoint.get(key) is not None), None)

    averaged = None if use_ema is False else find('state_dict_ema', 'model_ema')
    if use_ema and averaged is None:
        raise UserError(f'{path} has no EMA weights; leave --use-ema out')
    state = find('state_dict', 'model') if averaged is None else averaged
    if state is None:  # under another name, if there is one set of weights and no other
        inner = [value for value in checkpoint.values() if isinstance(value, dict) and _all_tensors(value)]
        state = inner[0] if len(inner) == 1 else checkpoint
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise UserError(f'{path} holds no weights by name')
    args, epoch, metric = (checkpoint.get(key) for key in ('args', 'epoch', 'metric'))
    return Checkpoint(
        {name: value for name, value in clean_state_dict(state).items() if '.aux_bn.' not in name},
        averaged is not None,
        vars(args) if isinstance(args, argparse.Namespace) else {},
        epoch if isinstance(epoch, int) else None,
        metric if isinstance(metric, float) else None,
    )


def load_weights(model: nn.Module, state: Mapping[str, Any], name: str, source: object) -> None:
    """Load weights into a model that they fit, all of them; on the device `meta`, see whether they do.

    What torch's modules fill in themselves may be missing: a norm's `num_batches_tracked`, which PyTorch before 0.4.1
    did not save.

    Args:
        model: The model.
        state: Tensors by name.
        name: What the model is called.
        source: Where the weights are from.

    Raises:
        UserError: They do not fit (which, and how), or are no tensors. The model may have changed by then.
    """
    own = model.state_dict()
    common = [key for key in own if key in state]
    foreign = [key for key in common if not isinstance(state[key], Tensor)]
    if foreign:
        raise UserError(f'{source} does not fit {name}: {some(foreign)} is no tensor')
    shapes = {
        key: f'{key} is {_kind(state[key])}, not {_kind(own[key])}'
        for key in common
        if _kind(state[key]) != _kind(own[key])
    }
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', '.*meta parameter')
            loaded = model.load_state_dict(
                {key: value for key, value in state.items() if key not in shapes}, strict=False
            )
    except RuntimeError as error:  # tensors without values
        raise UserError(f'{source} does not fit {name}: {one_line(error)}') from None
    missing, unknown = sorted({*loaded.missing_keys} - {*shapes}), sorted(loaded.unexpected_keys)
    wrong = [
        f'{len(keys)} {what}: {some(keys)}'
        for what, keys in (('missing', missing), ('unknown', unknown), ('of another shape', [*shapes.values()]))
        if keys
    ]
    if wrong:
        raise UserError(f'{source} does not fit {name}: {"; ".join(wrong)}')


def check_finite(model: nn.Module, source: object) -> None:
    """Raise UserError where a weight is NaN, or a parameter infinite."""
    parameters = dict(model.named_parameters())
    broken = [
        name
        for name, value in model.state_dict().items()
        if value.is_floating_point() and not (value.isfinite() if name in parameters else ~value.isnan()).all()
    ]
    if broken:
        raise UserError(f'{source} has weights that are not finite, as of a training that diverged: {some(broken)}')


def fingerprint(model: nn.Module) -> str:
    """Return the sha256 of a model's weights and their names: the same for the same model, wherever it is."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _without_pickled_code(trust: bool) -> Iterator[None]:
    """Let torch.load take tensors and the plain argparse.Namespace of train.py only, whoever calls it."""
    if trust:
        yield
        return
    before = {name: os.environ.pop(name, None) for name in (_FORCE_SAFE, _FORCE_UNSAFE)}
    os.environ[_FORCE_SAFE] = '1'
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            yield
    finally:
        del os.environ[_FORCE_SAFE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _needs_code(what: object) -> UserError:
    return UserError(
        f'{what} needs pickled code to load, which could do anything on your machine; if you trust whoever made it, '
        f'timm-molly validate loads it with --trust-pickle'
    )


def one_line(error: object) -> str:
    """Shorten an error of another library, or what it says, to what fits into a line."""
    text = ' '.join(str(error).split()) or type(error).__name__
    return text if len(text) < 400 else f'{text[:400]} ...'


def _all_tensors(values: Mapping[Any, Any]) -> bool:
    return bool(values) and all(isinstance(value, Tensor) for value in values.values())


def _kind(tensor: Tensor) -> str:
    return f'{tuple(tensor.shape)}{"" if tensor.is_floating_point() else " of integers"}'


def some(names: Sequence[str]) -> str:
    """List a few of many names."""
    shown = ', '.join(names[:5])
    return shown if len(names) <= 5 else f'{shown} and {len(names) - 5} more'
