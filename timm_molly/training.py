"""What timm's train.py leaves of a training: a checkpoint and its settings, and what these say of model and images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from timm_molly.weights import Checkpoint, one_line

ARGS, WEIGHTS = 'args.yaml', 'model.safetensors'
CHECKPOINTS = ('model_best.pth.tar', WEIGHTS)
DATA_KEYS = ('input_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')
MAX_ARGS_BYTES = 2**20


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint in a training's folder, or the file itself.

    Raises:
        ValueError: There is none.
    """
    if not path.exists():
        raise ValueError(f'no such folder or checkpoint: {path}')
    if not path.is_dir():
        return path
    found = next((path / name for name in CHECKPOINTS if (path / name).is_file()), None)
    if found is None:
        raise ValueError(f'{path} has no {" or ".join(CHECKPOINTS)}; is it the folder that train.py wrote?')
    return found


def read_settings(path: Path) -> dict[str, Any]:
    """Read an `args.yaml`.

    Raises:
        ValueError: It is no mapping in YAML.
    """
    if path.stat().st_size > MAX_ARGS_BYTES:
        raise ValueError(f'{path} is larger than any {ARGS}: {path.stat().st_size} bytes')
    try:
        settings = yaml.safe_load(path.read_bytes())
    except Exception as error:  # PyYAML's constructors raise all sorts
        raise ValueError(f'{path} is not YAML: {one_line(error)}') from None
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ValueError(f"{path} is not train.py's: it holds no settings by name")
    return settings


def plain(value: Any, depth: int = 9) -> Any:
    """Make tuples lists, as YAML does, in values that are not nested without end."""
    if depth == 0:
        return None
    if isinstance(value, Mapping):
        return {key: plain(each, depth - 1) for key, each in value.items()}
    return [plain(each, depth - 1) for each in value] if isinstance(value, (list, tuple)) else value


def model_arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What train.py gave to `create_model` that changes what the model computes, but for the number of classes."""
    size = settings.get('input_size')
    given = {
        'in_chans': settings.get('in_chans') or (size[0] if isinstance(size, (list, tuple)) and size else 3),
        'global_pool': settings.get('gp'),
        'bn_momentum': settings.get('bn_momentum'),
        'bn_eps': settings.get('bn_eps'),
        **plain(settings.get('model_kwargs') or {}),
    }
    return {key: plain(value) for key, value in given.items() if value is not None}


def count_classes(name: str, checkpoint: Checkpoint) -> int | None:
    """Number of rows of the last layer, where timm says which layer that is."""
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(name, allow_unregistered=True)
    classifier = getattr(cfg, 'classifier', None)
    classifier = classifier[0] if isinstance(classifier, (list, tuple)) else classifier  # of several, as in DeiT
    weight = checkpoint.state.get(f'{classifier}.weight')
    return len(weight) if isinstance(weight, Tensor) and weight.ndim else None


def image_settings(model: Any, in_chans: int, settings: Mapping[str, Any], source: object) -> dict[str, Any]:
    """What train.py's validation did with its images, from settings that are not empty: a value of each `DATA_KEYS`.

    Raises:
        ValueError: timm cannot make sense of the settings.
    """
    from timm.data import resolve_data_config

    try:
        found = resolve_data_config(dict(settings), model=model)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f'{source} has no sound image settings: {one_line(error)}') from None
    found['crop_mode'] = 'center'  # train.py hands on no other
    found['input_size'] = (in_chans, *found['input_size'][1:])
    return {key: found[key] for key in DATA_KEYS}
