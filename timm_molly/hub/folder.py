"""A Hub repository as a folder: its files, and reading them without trusting whoever wrote them.

A config names the network, its arguments and the transform. Nothing in it that names a file, an address or a way to
load weights is used, so that no path can lead out of the folder and no pickle is opened.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from timm_molly.errors import UserError
from timm_molly.files import read_json
from timm_molly.plain import is_plain, short
from timm_molly.plugin.register import add_models
from timm_molly.robustness.report import Report
from timm_molly.training import ARGS, MAX_ARGS_BYTES, WEIGHTS
from timm_molly.weights import check_finite, create_model, fingerprint, load_weights, one_line, read_checkpoint

CONFIG, CARD, REPORT = 'config.json', 'README.md', 'report.json'
FIGURES, EVALUATION = 'figures', '.eval_results/timm-molly.yaml'
TAG = 'install_timm-molly'  # where timm does not know a network of ours, it names this, which says what to do
ABOUT = 'timm_molly'  # the key of config.json under which the run is described

# What stands there, and its type.
ABOUT_KEYS = {
    'sha256': str,
    'repo_id': str,
    'aa': str,
    'ema': bool,
    'epoch': int,
    'validation': dict,
    'base_model': str,
    'license': str,
    'dataset_id': str,
}

MAX_BYTES = {CONFIG: 2**23, REPORT: 2**24, ARGS: MAX_ARGS_BYTES, CARD: 2**22}
MAX_SIDE, MAX_CLASSES, MAX_NUMBER = 2**13, 10**6, 10_000
MAX_TRIED = 2**22  # numbers of an image that a network is tried with
INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos', 'random')
CROP_MODES = ('center', 'squash', 'border')
# What timm.create_model and its helpers take for themselves: other weights, other files, other kinds of model.
RESERVED = {
    *('model_name', 'checkpoint_path', 'cache_dir', 'scriptable', 'exportable', 'no_jit', 'features_only'),
    *('out_indices', 'device', 'dtype'),
}


@dataclass(frozen=True)
class Folder:
    """What a folder holds.

    Attributes:
        model: A timm model on the CPU, with its weights, in evaluation mode.
        config: `config.json`, checked.
        report: `report.json` of these weights, or None.
    """

    model: Any
    config: Mapping[str, Any]
    report: Report | None


def read_folder(folder: Path) -> Folder:
    """Read a model with its config and report.

    Raises:
        UserError: A file is missing, too large, malformed, or does not belong to the others.
    """
    config = read_config(folder / CONFIG)
    if not (folder / WEIGHTS).is_file():
        raise UserError(f'{folder} has no {WEIGHTS}')
    cfg, classes = config['pretrained_cfg'], config['num_classes']
    state = read_checkpoint(folder / WEIGHTS, use_ema=False).state
    arguments = {'num_classes': classes, 'in_chans': cfg['input_size'][0], **config['model_args']}
    arguments |= {'pretrained': False, 'pretrained_cfg': cfg}
    sketch = _sketch(config['architecture'], arguments)
    if sketch is not None:  # before anything is made as large as a config may say
        load_weights(sketch, state, config['architecture'], folder / WEIGHTS)
    model = create_model(config['architecture'], arguments)
    load_weights(model, state, config['architecture'], folder / WEIGHTS)
    check_finite(model, folder / WEIGHTS)
    _check_logits(model.eval(), sketch, config, folder / CONFIG)
    digest = fingerprint(model)
    if config[ABOUT].get('sha256', digest) != digest:
        raise UserError(f'{folder / WEIGHTS} are not the weights that {CONFIG} was written for (sha256 {digest})')
    report = read_report(folder / REPORT, digest) if (folder / REPORT).is_file() else None
    return Folder(model, config, report)


def _sketch(name: str, arguments: Mapping[str, Any]) -> Any:
    """Make a model without memory for its weights, or None for those that cannot be made so."""
    try:
        with torch.device('meta'):
            return create_model(name, arguments)
    except UserError:
        return None


def _check_logits(model: Any, sketch: Any, config: Mapping[str, Any], source: Path) -> None:
    """Raise UserError where a network gives no logits for images of its size, as without a pooling."""
    size, expected = config['pretrained_cfg']['input_size'], (1, config['num_classes'])
    wrong = None
    # Without memory first; not all operations can do that.
    for network, device in ((sketch, 'meta'), (model, 'cpu')):
        if network is None or (device == 'cpu' and math.prod(size) > MAX_TRIED):
            continue
        try:
            with torch.inference_mode():
                shape = tuple(network.eval()(torch.zeros(1, *size, device=device)).shape)
        except Exception as error:  # whatever a network may say
            wrong = f'cannot take images of {size}: {one_line(error)}'
            continue
        if shape == expected:
            return
        wrong = f'gives {shape} for an image of {size}, and no logits {expected}'
    if wrong:
        raise UserError(f'{source}: the network {wrong}')


def read_report(report: Report | str | Path, digest: str) -> Report:
    """Load a report, where it is not loaded, and check that it is of the weights of a fingerprint.

    Raises:
        UserError: It is no report, or measured other weights.
    """
    source = 'the report' if isinstance(report, Report) else report
    report = report if isinstance(report, Report) else Report.load(report)
    if report.model.sha256 != digest:
        raise UserError(
            f'{source} measured another model or other weights, {report.model.label}: measure the ones that it is to '
            f'go with (--use-ema for EMA weights)'
        )
    return report


def read_config(path: Path) -> dict[str, Any]:
    """Read a `config.json` as `timm.models.save_for_hf` writes it, and check all that a model is made from.

    Returns:
        'architecture' and 'num_classes'; 'pretrained_cfg' with what describes images and nothing else; 'model_args'
        and 'label_names' where there are any; and what timm-molly noted, under `ABOUT`.

    Raises:
        UserError: It is missing, malformed or unreasonable (what, and its value).
    """
    config = read_json(path, 'file', MAX_BYTES[CONFIG])
    _check(isinstance(config, dict), path, 'a config is a mapping', config)
    cfg, name = config.get('pretrained_cfg'), config.get('architecture')
    _check(isinstance(cfg, dict), path, 'pretrained_cfg must be a mapping', cfg)
    good = isinstance(name, str) and bool(re.fullmatch(r'\w[\w.-]{0,99}', name))
    _check(good, path, 'no architecture of timm', name)
    classes = config.get('num_classes', cfg.get('num_classes'))
    good = _is_int(classes) and 0 < classes <= MAX_CLASSES
    _check(good, path, f'num_classes must be 1 to {MAX_CLASSES}', classes)
    taken = {**_images(cfg, path), 'num_classes': classes, **_layers(cfg, path)}
    arguments = config.get('model_args') or {}
    check_arguments(arguments, f'{path}: model_args')
    for key, value in (('num_classes', classes), ('in_chans', taken['input_size'][0])):
        given = arguments.get(key, value)
        _check(given == value, path, f'model_args {key} must be {value} as elsewhere', given)
    checked = {'architecture': name, 'num_classes': classes, 'pretrained_cfg': taken, 'model_args': arguments}
    labels = _label_names(config.get('label_names'), classes, path)
    if labels is not None:
        checked['label_names'] = taken['label_names'] = labels
    checked[ABOUT] = _about(config.get(ABOUT, {}), path)
    add_models()
    from timm.models import is_model

    _check(is_model(name), path, 'the timm and the timm-molly installed here know no such architecture', name)
    return checked


def _check(good: bool, path: Path, what: str, value: Any) -> None:
    if not good:
        raise UserError(f'{path}: {what}, got {short(value)}')


def _images(cfg: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What describes images: size, normalisation, crop, interpolation."""
    size = cfg.get('input_size')
    good = isinstance(size, list) and len(size) == 3 and all(_is_int(n) and 0 < n <= MAX_SIDE for n in size)
    _check(good, path, f'input_size must be channels, height and width, 1 to {MAX_SIDE}', size)
    assert isinstance(size, list)
    taken: dict[str, Any] = {'input_size': tuple(size)}
    for key in ('mean', 'std'):
        value = cfg.get(key)
        good = isinstance(value, list) and len(value) in (1, size[0]) and all(_is_number(n) for n in value)
        good = good and (key == 'mean' or min(value) > 0)  # type: ignore[arg-type]
        _check(good, path, f'{key} must be {size[0]} finite numbers', value)
        taken[key] = tuple(value)  # type: ignore[arg-type]
    crop, mode, interpolation = cfg.get('crop_pct'), cfg.get('crop_mode', 'center'), cfg.get('interpolation', 'bicubic')
    _check(_is_number(crop) and 0 < crop <= 8, path, 'crop_pct must be a number above 0', crop)  # type: ignore[operator]
    _check(mode in CROP_MODES, path, f'crop_mode must be one of {", ".join(CROP_MODES)}', mode)
    good = interpolation in INTERPOLATIONS
    _check(good, path, f'interpolation must be one of {", ".join(INTERPOLATIONS)}', interpolation)
    return {**taken, 'crop_pct': crop, 'crop_mode': mode, 'interpolation': interpolation}


def _layers(cfg: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What timm knows of the network's first and last layers, and of the sizes that it takes."""
    taken = {}
    for key in ('first_conv', 'classifier', 'pool_size', 'fixed_input_size', 'min_input_size'):
        value = cfg.get(key)
        _check(_is_plain(value), path, f'{key} is no plain value', value)
        taken[key] = tuple(value) if isinstance(value, list) else value
    taken['fixed_input_size'] = bool(taken['fixed_input_size'])
    return taken


def _label_names(labels: Any, classes: int, path: Path) -> Any:
    if labels is None:
        return None
    names = list(labels.values()) if isinstance(labels, dict) else labels
    good = isinstance(names, list) and all(isinstance(n, str) for n in names) and len(names) <= classes
    good = good and (isinstance(labels, dict) or len(names) == classes)
    _check(good, path, f'label_names must be {classes} names', labels)
    return labels


def _about(about: Any, path: Path) -> dict[str, Any]:
    """What timm-molly noted, by the keys that are ours."""
    _check(isinstance(about, dict), path, f'{ABOUT} must be a mapping', about)
    for key, kind in ABOUT_KEYS.items():
        good = isinstance(about.get(key), (kind, type(None)))
        _check(good, path, f'{ABOUT} {key} is malformed', about.get(key))
    for key, value in (about.get('validation') or {}).items():
        _check(_is_number(value), path, f'{ABOUT} validation {key} must be a number', value)
    return {key: about[key] for key in ABOUT_KEYS if about.get(key) is not None}


def check_arguments(arguments: Any, source: str) -> None:
    """Check what a model is made with besides its name.

    Raises:
        UserError: It is no mapping of names to plain values, or names other weights, files or places.
    """
    if not isinstance(arguments, dict):
        raise UserError(f'{source} must be a mapping, got {arguments!r}')
    for key, value in arguments.items():
        good = isinstance(key, str) and key.isidentifier() and key not in RESERVED and not key.startswith('pretrained')
        if not good:
            raise UserError(f'{source} has an argument that is not for a model, {str(key)[:80]!r}')
        if not _is_plain(value):
            raise UserError(f'{source} {key} is no plain value')


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_int(value) or isinstance(value, float)) and abs(value) <= MAX_NUMBER


def _is_plain(value: Any) -> bool:
    """Tell whether a value is null, true, false, a moderate number, a name, or a short list or mapping of such."""
    return is_plain(value, _is_moderate, depth=3, most=400)


def _is_moderate(value: Any) -> bool:
    if isinstance(value, str):
        return bool(re.fullmatch(r'[\w.+-]{0,64}', value))
    return value is None or isinstance(value, bool) or _is_number(value)
