"""A training run as train.py leaves it: the model that came out of it, and what its files say of it."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from timm_molly.config import split_aa
from timm_molly.hub.folder import ABOUT, ARGS, MAX_BYTES, WEIGHTS, check_arguments, read_folder
from timm_molly.plugin import add_models
from timm_molly.weights import (
    Checkpoint,
    check_finite,
    create_model,
    fingerprint,
    load_weights,
    one_line,
    read_checkpoint,
)

CHECKPOINTS = ('model_best.pth.tar', WEIGHTS)
DATA_KEYS = ('input_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')
# What args.yaml and the checkpoint's own arguments must agree on to be of one training.
SAME = ('model', 'model_kwargs', 'in_chans', 'gp', 'img_size', 'input_size', 'mean', 'std', 'interpolation', 'crop_pct')


@dataclass(frozen=True)
class Run:
    """A trained model, and what is known of its training.

    Attributes:
        model: A timm model on the CPU, with its weights, in evaluation mode.
        architecture: Its name in timm, without a tag.
        model_args: Arguments beyond those of the name, to make it again.
        data_config: What the images went through in the training's validation: input_size, mean, std, ...
        label_names: Names of the classes in the order of the logits, or None.
        args: Path of args.yaml, or None.
        about: What goes into config.json of it: sha256, aa, ema, epoch, validation, base_model.
    """

    model: Any
    architecture: str
    model_args: Mapping[str, Any]
    data_config: Mapping[str, Any]
    label_names: Any
    args: Path | None
    about: Mapping[str, Any]


def read_run(path: Path, name: str | None = None, use_ema: bool | None = None) -> Run:
    """Read a run from its folder, or from a checkpoint, with the `args.yaml` beside it if there is one.

    Args:
        path: Folder with `args.yaml` and `model_best.pth.tar`, or a checkpoint.
        name: timm's name of the model, needed where neither `args.yaml` nor the checkpoint says it.
        use_ema: Take the EMA weights; None takes them where there are any.

    Raises:
        ValueError: A file is missing or malformed, files are not of one training, weights do not fit or are not finite.
    """
    if not path.exists():
        raise ValueError(f'no such folder or checkpoint: {path}')
    folder = path if path.is_dir() else path.parent
    source = next((p for p in (folder / n for n in CHECKPOINTS) if p.is_file()), None) if path.is_dir() else path
    if source is None:
        raise ValueError(f'{path} has no {" or ".join(CHECKPOINTS)}; is it the folder that train.py wrote?')
    args = folder / ARGS if (folder / ARGS).is_file() else None
    written = read_settings(args) if args else {}
    checkpoint = read_checkpoint(source, use_ema)
    settings = _agree(written, args, checkpoint, source, name)
    if name is None and not isinstance(settings.get('model'), str):
        raise ValueError(f'neither {folder / ARGS} nor {source.name} says which model it is: add --model')
    name, aa = str(settings.get('model') or name), settings.get('aa') or None
    if aa is not None:
        if not isinstance(aa, str):
            raise ValueError(f'{args or source}: aa must be text, got {aa!r}')
        split_aa(aa)

    add_models()  # also where autoload is off
    model_args = _model_args(name, settings)
    classes = settings.get('num_classes') or checkpoint.settings.get('num_classes') or _count_classes(name, checkpoint)
    model = create_model(name, {'num_classes': classes, **model_args, 'pretrained': False})
    load_weights(model, checkpoint.state, name, source)
    check_finite(model, source)
    about = {
        'sha256': fingerprint(model),
        'aa': aa,
        'ema': checkpoint.ema or None,
        'epoch': checkpoint.epoch,
        'validation': _validation(folder / 'summary.csv', checkpoint, settings),
        'base_model': _base_model(name, settings),
    }
    return Run(
        model.eval(),
        model.pretrained_cfg['architecture'],
        model_args,
        _data_config(model, model_args, settings, args),
        _label_names(settings, model.num_classes),
        args,
        {key: value for key, value in about.items() if value is not None},
    )


def read_hub_folder(folder: Path) -> tuple[Run, dict[str, Any] | None]:
    """Read a run back from a folder made for the Hub, with its report if there is one.

    Raises:
        ValueError: A file is missing, malformed, or does not belong to the others.
    """
    found = read_folder(folder)
    config = found.config
    args = folder / ARGS if (folder / ARGS).is_file() else None
    if args:
        read_settings(args)
    run = Run(
        found.model,
        config['architecture'],
        config['model_args'],
        {key: config['pretrained_cfg'][key] for key in DATA_KEYS},
        config.get('label_names'),
        args,
        {'sha256': fingerprint(found.model), **config[ABOUT]},
    )
    return run, found.report


def read_settings(path: Path) -> dict[str, Any]:
    """Read an `args.yaml`.

    Raises:
        ValueError: It is no mapping in YAML.
    """
    if path.stat().st_size > MAX_BYTES[ARGS]:
        raise ValueError(f'{path} is larger than any {ARGS}: {path.stat().st_size} bytes')
    try:
        settings = yaml.safe_load(path.read_bytes())
    except Exception as error:  # PyYAML's constructors raise all sorts
        raise ValueError(f'{path} is not YAML: {one_line(error)}') from None
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ValueError(f"{path} is not train.py's: it holds no settings by name")
    return settings


def _agree(
    written: dict[str, Any], args: Path | None, checkpoint: Checkpoint, source: Path, name: str | None
) -> Mapping[str, Any]:
    """Return the settings of the training, after checking that nobody says anything else."""
    noted = checkpoint.settings
    if written and noted:
        for key in (*SAME, 'aa', 'num_classes'):
            a, b = _plain(written.get(key)), _plain(noted.get(key))
            if key in noted and a != b and not (key == 'num_classes' and a is None):  # train.py fills it in
                raise ValueError(f'{args} is not of the training of {source.name}: {key} is {a!r} there, {b!r} here')
    settings = written or noted
    if name is not None and settings.get('model') not in (None, name):
        raise ValueError(f'{args or source} is of model {settings["model"]!r}, not of --model {name!r}')
    return settings


def _plain(value: Any, depth: int = 9) -> Any:
    """Make tuples lists, as YAML does, in values that are not nested without end."""
    if depth == 0:
        return None
    if isinstance(value, Mapping):
        return {key: _plain(each, depth - 1) for key, each in value.items()}
    return [_plain(each, depth - 1) for each in value] if isinstance(value, (list, tuple)) else value


def _model_args(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What train.py gave to `create_model` that changes what the model computes."""
    from timm.models import _hub

    inherited: Mapping[str, Any] = {}
    source, _, model_id = name.partition(':')
    try:
        if source == 'hf-hub':
            inherited = _hub.load_model_config_from_hf(model_id)[2]
        elif source == 'local-dir':
            inherited = _hub.load_model_config_from_path(model_id)[2]
    except Exception as error:  # the Hub's client raises all sorts
        raise ValueError(f'cannot read the config of {name}, from which training started: {one_line(error)}') from None
    check_arguments(inherited, f'{name}: model_args')
    kwargs = _plain(settings.get('model_kwargs') or {})
    check_arguments(kwargs, 'model_kwargs')
    size = settings.get('input_size')
    given = {
        'in_chans': settings.get('in_chans') or (size[0] if isinstance(size, (list, tuple)) and size else 3),
        'global_pool': settings.get('gp'),
        'bn_momentum': settings.get('bn_momentum'),
        'bn_eps': settings.get('bn_eps'),
        **kwargs,
    }
    found = {**inherited, **{key: _plain(value) for key, value in given.items() if value is not None}}
    return {key: value for key, value in found.items() if key != 'num_classes'}  # of the model that it started from


def _count_classes(name: str, checkpoint: Checkpoint) -> int | None:
    """Number of rows of the last layer, where timm says which layer that is."""
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(name, allow_unregistered=True)
    classifier = getattr(cfg, 'classifier', None)
    classifier = classifier[0] if isinstance(classifier, (list, tuple)) else classifier  # of several, as in DeiT
    weight = checkpoint.state.get(f'{classifier}.weight')
    return len(weight) if isinstance(weight, Tensor) and weight.ndim else None


def _data_config(
    model: Any, model_args: Mapping[str, Any], settings: Mapping[str, Any], args: Path | None
) -> dict[str, Any]:
    """What train.py's validation did with its images."""
    from timm.data import resolve_data_config

    try:
        found = resolve_data_config(dict(settings), model=model)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f'{args or "the checkpoint"} has no sound image settings: {one_line(error)}') from None
    if settings:
        found['crop_mode'] = 'center'  # train.py hands on no other
        found['input_size'] = (model_args['in_chans'], *found['input_size'][1:])
    return {key: found[key] for key in DATA_KEYS}


def _label_names(settings: Mapping[str, Any], num_classes: int) -> list[str] | None:
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
    index = getattr(getattr(dataset, 'reader', dataset), 'class_to_idx', None) or {}
    names = sorted(index, key=index.__getitem__)
    return [str(n) for n in names] if len(names) == num_classes else None


def _validation(path: Path, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> dict[str, float] | None:
    """What train.py measured of these very weights, from the row of summary.csv that chose the checkpoint."""
    averaged = bool(settings.get('model_ema')) and not settings.get('model_ema_force_cpu')
    if not path.is_file() or averaged != checkpoint.ema or checkpoint.metric is None:
        return None
    chosen_by = f'eval_{settings.get("eval_metric") or "top1"}'
    try:
        with path.open(encoding='utf-8', errors='replace', newline='') as file:
            rows = list(csv.DictReader(file))
    except csv.Error:
        return None
    for row in rows:
        try:
            if int(row['epoch']) == checkpoint.epoch and math.isclose(float(row[chosen_by]), checkpoint.metric):
                found = {key[5:]: float(value) for key, value in row.items() if key and key.startswith('eval_')}
                return {key: value for key, value in found.items() if math.isfinite(value)}
        except (KeyError, TypeError, ValueError):  # a line that was cut short
            continue
    return None


def _base_model(name: str, settings: Mapping[str, Any]) -> str | None:
    """The Hub's name of the model that training started from, where the settings tell."""
    from timm.models import get_pretrained_cfg

    if not settings.get('pretrained') or settings.get('pretrained_path') or settings.get('initial_checkpoint'):
        return None
    source, _, model_id = name.partition(':')
    if model_id:
        return model_id.partition('@')[0] if source == 'hf-hub' else None
    return getattr(get_pretrained_cfg(name, allow_unregistered=True), 'hf_hub_id', None)
