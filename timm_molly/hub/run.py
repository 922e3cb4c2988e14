"""A training run as train.py leaves it: the model that came out of it, and what its files say of it."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm_molly.config import split_aa
from timm_molly.hub.folder import ABOUT, check_arguments, read_folder
from timm_molly.plugin.register import add_models
from timm_molly.training import (
    ARGS,
    DATA_KEYS,
    count_classes,
    find_checkpoint,
    image_settings,
    model_arguments,
    plain,
    read_settings,
)
from timm_molly.weights import (
    Checkpoint,
    check_finite,
    create_model,
    fingerprint,
    load_weights,
    one_line,
    read_checkpoint,
)

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
    source = find_checkpoint(path)
    folder = source.parent
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
    classes = settings.get('num_classes') or checkpoint.settings.get('num_classes') or count_classes(name, checkpoint)
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


def _agree(
    written: dict[str, Any], args: Path | None, checkpoint: Checkpoint, source: Path, name: str | None
) -> Mapping[str, Any]:
    """Return the settings of the training, after checking that nobody says anything else."""
    noted = checkpoint.settings
    if written and noted:
        for key in (*SAME, 'aa', 'num_classes'):
            a, b = plain(written.get(key)), plain(noted.get(key))
            if key in noted and a != b and not (key == 'num_classes' and a is None):  # train.py fills it in
                raise ValueError(f'{args} is not of the training of {source.name}: {key} is {a!r} there, {b!r} here')
    settings = written or noted
    if name is not None and settings.get('model') not in (None, name):
        raise ValueError(f'{args or source} is of model {settings["model"]!r}, not of --model {name!r}')
    return settings


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
    check_arguments(plain(settings.get('model_kwargs') or {}), 'model_kwargs')
    found = {**inherited, **model_arguments(settings)}
    return {key: value for key, value in found.items() if key != 'num_classes'}  # of the model that it started from


def _data_config(
    model: Any, model_args: Mapping[str, Any], settings: Mapping[str, Any], args: Path | None
) -> dict[str, Any]:
    """What train.py's validation did with its images, or what timm says where there are no settings."""
    from timm.data import resolve_data_config

    if settings:
        return image_settings(model, model_args['in_chans'], settings, args or 'the checkpoint')
    found = resolve_data_config({}, model=model)
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
