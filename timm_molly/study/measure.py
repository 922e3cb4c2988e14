"""Measuring a run of a study: its images and its network as in its training, with the grid's flags over them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, cast, get_type_hints

from timm_molly.classifier import Classifier, Preparation
from timm_molly.errors import UserError
from timm_molly.plain import checked, from_plain, keywords
from timm_molly.robustness.conditions import Published
from timm_molly.robustness.measurement import Measurement
from timm_molly.robustness.report import Report

# What a grid's `validate` may hold: of the measurement, of the images, and of the network, each with its type.
MEASUREMENT = {field.name for field in fields(Measurement)} - {'mollification', 'aa'}
PREPARATION = {str(name): kind for name, kind in get_type_hints(Preparation).items()}
NETWORK = {'use_ema': bool, 'trust_pickle': bool, 'num_classes': int, 'model_kwargs': tuple[str, ...]}
FLAGS = MEASUREMENT | PREPARATION.keys() | NETWORK.keys()

# Flags that train.py and validate have by the same names.
SHARED = (
    *('data_dir', 'dataset', 'dataset_download', 'class_map', 'input_key', 'target_key'),
    *('device', 'channels_last', 'workers'),
)
LISTS = ('corruptions', 'severities', 'mean', 'std', 'model_kwargs')  # which a grid may also give as one value


def measurement(train: Mapping[str, Any], validate: Mapping[str, Any]) -> Measurement:
    """What is measured of a training: its validation images, with the grid's flags over what follows from it.

    Args:
        train: Flags of train.py.
        validate: Flags of `timm-molly validate`.

    Raises:
        UserError: A flag has a value of another type (which).
    """
    follows = {key: train.get(key) for key in SHARED}
    follows |= {'split': train.get('val_split'), 'batch_size': train.get('validation_batch_size')}
    return from_plain(Measurement, {**_given(follows), **_own(validate)}, 'validate')


def check(train: Mapping[str, Any], validate: Mapping[str, Any]) -> None:
    """Check flags before anything is trained.

    Raises:
        UserError: They cannot work, or corrupted images are not there.
    """
    own = _own(validate)
    for name, kind in {**PREPARATION, **NETWORK}.items():
        if name in own:
            checked(kind, own[name], f'validate: {name}')
    keywords(own.get('model_kwargs', ()))
    found = measurement(train, validate)
    try:
        conditions = found.check()
    except UserError as error:
        raise UserError(f'validate: {error}') from None
    if isinstance(conditions, Published):
        folder = Path(conditions.root)
        lacking = [
            name for name in conditions.chosen if not any((folder / file).exists() for file in (name, f'{name}.npy'))
        ]
        if lacking:
            raise UserError(f'{folder} lacks {", ".join(lacking)}; corruptions below validate chooses some')


def load(folder: Path, validate: Mapping[str, Any]) -> Classifier:
    """Load what a training ended with: the weights of the last epoch, averaged where the training averaged them.

    Args:
        folder: Of the run.
        validate: Flags of `timm-molly validate`.

    Raises:
        UserError: There is no such checkpoint, or its weights do not fit.
    """
    own = _own(validate)
    preparation = cast(Preparation, {key: own[key] for key in PREPARATION if key in own})
    return Classifier.from_run(
        folder / 'train' / 'last.pth.tar',
        use_ema=own.get('use_ema'),
        num_classes=own.get('num_classes'),
        model_kwargs=keywords(own.get('model_kwargs', ())),
        trust_pickle=own.get('trust_pickle', False),
        **preparation,
    )


def measure(classifier: Classifier, folder: Path, train: Mapping[str, Any], validate: Mapping[str, Any]) -> Report:
    """Measure what a training ended with, and save the report in the run's folder.

    Args:
        classifier: What `load` gives.
        folder: Of the run.
        train: Flags of train.py.
        validate: Flags of `timm-molly validate`.

    Raises:
        UserError: The images or the network will not do.
    """
    found, output = measurement(train, validate), folder / 'report'
    assert classifier.training is not None
    words = ['timm-molly', 'validate', '--checkpoint', str(classifier.training.checkpoint)]
    words += ['--use-ema'] * classifier.training.ema + found.words() + ['--output', str(output)]
    report = found.run(classifier, output, shlex.join(words))
    report.save(output)
    return report


def _own(validate: Mapping[str, Any]) -> dict[str, Any]:
    """Flags of a grid that are given, those of lists as lists."""
    given = _given(validate)
    return {key: [v] if key in LISTS and not isinstance(v, (list, tuple)) else v for key, v in given.items()}


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flags.items() if value is not None and value != '' and value != []}
