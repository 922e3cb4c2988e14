"""What timm's train.py leaves of a training: a checkpoint and its settings, and what these say of model and images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from timm_molly.errors import UserError
from timm_molly.files import hint_beside, read_bytes
from timm_molly.weights import Checkpoint, one_line

ARGS, WEIGHTS = 'args.yaml', 'model.safetensors'
CHECKPOINTS = ('model_best.pth.tar', WEIGHTS)
DATA_KEYS = ('input_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')
MAX_ARGS_BYTES = 2**20


@dataclass(frozen=True)
class Training:
    """What is known of the training that a classifier came out of.

    Attributes:
        checkpoint: Its file.
        ema: Whether the weights are the EMA weights.
        settings: train.py's arguments by name; empty where nothing tells them.
        epoch: From 0, or None.
        metric: What the epoch was chosen by, or None.
    """

    checkpoint: Path
    ema: bool
    settings: Mapping[str, Any]
    epoch: int | None = None
    metric: float | None = None

    @property
    def args(self) -> Path | None:
        """The args.yaml beside the checkpoint, where there is one."""
        path = self.checkpoint.with_name(ARGS)
        return path if path.is_file() else None


def smoothing_of(settings: Mapping[str, Any]) -> float | None:
    """Label smoothing among train.py's arguments, in [0, 1]; None where there is none."""
    value = settings.get('smoothing')
    return float(value) if isinstance(value, (int, float)) and 0 <= value <= 1 else None


def is_run(folder: Path) -> bool:
    """Tell whether a folder is one that train.py wrote."""
    return any((folder / name).is_file() for name in (*CHECKPOINTS, ARGS))


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint in a training's folder, or the file itself.

    Raises:
        UserError: There is none.
    """
    if not path.exists():
        raise UserError(f'no such folder or checkpoint: {path}{hint_beside(path)}')
    if not path.is_dir():
        return path
    found = next((path / name for name in CHECKPOINTS if (path / name).is_file()), None)
    if found is None:
        raise UserError(f'{path} has no {" or ".join(CHECKPOINTS)}; is it the folder that train.py wrote?')
    return found


def read_settings(path: Path) -> dict[str, Any]:
    """Read an `args.yaml`.

    Raises:
        UserError: It is no mapping in YAML.
    """
    content = read_bytes(path, ARGS, MAX_ARGS_BYTES)
    try:
        settings = yaml.safe_load(content)
    except Exception as error:  # PyYAML's constructors raise all sorts
        raise UserError(f'{path} is not YAML: {one_line(error)}') from None
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise UserError(f"{path} is not train.py's: it holds no settings by name")
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


def inherited_arguments(name: str) -> dict[str, Any]:
    """What a model that training started from was made with, where that is on the Hub or in a folder for it.

    Raises:
        UserError: Its config cannot be read.
    """
    from timm.models import _hub

    source, _, model_id = name.partition(':')
    if source not in ('hf-hub', 'local-dir'):
        return {}
    read = _hub.load_model_config_from_hf if source == 'hf-hub' else _hub.load_model_config_from_path
    try:
        found: dict[str, Any] = read(model_id)[2]
    except Exception as error:  # the Hub's client raises all sorts
        raise UserError(f'cannot read the config of {name}, from which training started: {one_line(error)}') from None
    return found


def count_classes(name: str, checkpoint: Checkpoint) -> int | None:
    """Number of rows of the last layer, where timm says which layer that is."""
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(name, allow_unregistered=True)
    classifier = getattr(cfg, 'classifier', None)
    classifier = classifier[0] if isinstance(classifier, (list, tuple)) else classifier  # of several, as in DeiT
    weight = checkpoint.state.get(f'{classifier}.weight')
    return len(weight) if isinstance(weight, Tensor) and weight.ndim else None


def class_index(dataset: Any) -> Mapping[str, int]:
    """Index of each class by its name, of timm's and torchvision's data sets, or what they wrap; empty if none says."""
    while dataset is not None:
        index = getattr(getattr(dataset, 'reader', dataset), 'class_to_idx', None)
        if isinstance(index, Mapping):
            return index
        dataset = getattr(dataset, 'dataset', None)  # in timm's AugMixDataset, in torch's Subset
    return {}


def label_names(settings: Mapping[str, Any], num_classes: int | None) -> list[str] | None:
    """Names of the classes from the validation images, where they are on this machine."""
    from timm.data import create_dataset

    root, name = settings.get('data_dir') or settings.get('data'), str(settings.get('dataset') or '')
    if not isinstance(root, str) or not Path(root).is_dir() or name.partition('/')[0] not in ('', 'torch'):
        return None
    split, class_map = settings.get('val_split') or 'validation', str(settings.get('class_map') or '')
    if class_map and not class_map.endswith('.txt'):  # which timm may unpickle
        return None
    try:
        dataset = create_dataset(name, root=root, split=split, class_map=class_map)
    except Exception:  # not there any more, or only in part
        return None
    index = class_index(dataset)
    names = sorted(index, key=index.__getitem__)
    return [str(n) for n in names] if len(names) == num_classes else None


def image_settings(model: Any, in_chans: int, settings: Mapping[str, Any], source: object) -> dict[str, Any]:
    """What train.py's validation did with its images, from settings that are not empty: a value of each `DATA_KEYS`.

    Raises:
        UserError: timm cannot make sense of the settings.
    """
    from timm.data import resolve_data_config

    try:
        found = resolve_data_config(dict(settings), model=model)
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f'{source} has no sound image settings: {one_line(error)}') from None
    found['crop_mode'] = 'center'  # train.py hands on no other
    found['input_size'] = (in_chans, *found['input_size'][1:])
    return {key: found[key] for key in DATA_KEYS}
