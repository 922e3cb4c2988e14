"""A training as it is published: what only its files say, beside the classifier that came out of it."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm_molly.classifier import Classifier
from timm_molly.config import split_aa
from timm_molly.errors import UserError
from timm_molly.training import ARGS, Training, count_classes, find_checkpoint, plain, read_settings
from timm_molly.weights import Checkpoint, check_finite, read_checkpoint

# What args.yaml and the checkpoint's own arguments must agree on to be of one training.
SAME = ('model', 'model_kwargs', 'in_chans', 'gp', 'img_size', 'input_size', 'mean', 'std', 'interpolation', 'crop_pct')


def read_run(path: Path, name: str | None = None, use_ema: bool | None = None) -> Classifier:
    """Load a training from its folder, or from a checkpoint, with the `args.yaml` beside it if there is one.

    Args:
        path: Folder with `args.yaml` and `model_best.pth.tar`, or a checkpoint.
        name: timm's name of the model, needed where neither `args.yaml` nor the checkpoint says it.
        use_ema: Take the EMA weights; None takes them where there are any.

    Returns:
        The classifier, with the names of its classes where the data set is at hand, and in `about` what a folder for
        the Hub notes: sha256, aa, ema, epoch, validation, base_model.

    Raises:
        UserError: A file is missing or malformed, files are not of one training, weights do not fit or are not finite.
    """
    source = find_checkpoint(path)
    args = source.with_name(ARGS)
    written = read_settings(args) if args.is_file() else {}
    checkpoint = read_checkpoint(source, use_ema)
    settings = _agreed(written, checkpoint, source, name)
    trained = settings.get('model') or name
    if not isinstance(trained, str):
        raise UserError(f'neither {args} nor {source.name} says which model it is: add --model')
    aa = settings.get('aa') or None
    if aa is not None:
        if not isinstance(aa, str):
            raise UserError(f'{args if written else source}: aa must be text, got {aa!r}')
        split_aa(aa)
    classes = settings.get('num_classes') or checkpoint.settings.get('num_classes')
    classes = classes or count_classes(trained, checkpoint)
    classifier = Classifier.from_checkpoint(checkpoint, source, settings, trained, classes)
    check_finite(classifier.model, source)
    assert classifier.training is not None
    about = {
        'sha256': classifier.sha256,
        'aa': aa,
        'ema': checkpoint.ema or None,
        'epoch': checkpoint.epoch,
        'validation': _validation(source.with_name('summary.csv'), classifier.training),
        'base_model': _base_model(trained, settings),
    }
    return dataclasses.replace(classifier, about={key: value for key, value in about.items() if value is not None})


def _agreed(written: Mapping[str, Any], checkpoint: Checkpoint, source: Path, name: str | None) -> Mapping[str, Any]:
    """Return the settings of the training, after checking that nobody says anything else."""
    noted, args = checkpoint.settings, source.with_name(ARGS)
    if written and noted:
        for key in (*SAME, 'aa', 'num_classes'):
            a, b = plain(written.get(key)), plain(noted.get(key))
            if key in noted and a != b and not (key == 'num_classes' and a is None):  # train.py fills it in
                raise UserError(f'{args} is not of the training of {source.name}: {key} is {a!r} there, {b!r} here')
    settings = written or noted
    if name is not None and settings.get('model') not in (None, name):
        where = args if written else source
        raise UserError(f'{where} is of model {settings["model"]!r}, not of --model {name!r}')
    return settings


def _validation(path: Path, training: Training) -> dict[str, float] | None:
    """What train.py measured of these very weights, from the row of summary.csv that chose the checkpoint."""
    settings = training.settings
    averaged = bool(settings.get('model_ema')) and not settings.get('model_ema_force_cpu')
    if not path.is_file() or averaged != training.ema or training.metric is None:
        return None
    chosen_by = f'eval_{settings.get("eval_metric") or "top1"}'
    try:
        with path.open(encoding='utf-8', errors='replace', newline='') as file:
            rows = list(csv.DictReader(file))
    except csv.Error:
        return None
    for row in rows:
        try:
            if int(row['epoch']) == training.epoch and math.isclose(float(row[chosen_by]), training.metric):
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
