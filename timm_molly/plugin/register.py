"""The way into timm: a `timm.data.create_loader` that understands `auto_augment='molly'`.

Every train script makes its loader with that function and passes it `--aa`, so this is the only function of timm that
is replaced. Its own part of the string goes to `Mollify`, the rest to timm.

One guard stands behind it: molly that reaches timm's image transforms, which see no labels, got there by a way that
cannot work, and is told so instead of timm's "unknown policy".
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from timm_molly.config import MollyConfig, split_aa
from timm_molly.errors import PackageError, UserError

MIN_TIMM = (1, 0, 15)

_logger = logging.getLogger('timm_molly')


def register() -> None:
    """Make `timm.data.create_loader` understand `auto_augment='molly'`, and add the small-image networks to timm's.

    A second call changes nothing. The autoload entry point has done this already in most processes. Call it before
    `from timm.data import create_loader` where it is switched off.

    Raises:
        PackageError: timm is missing, or has changed too much for this version.
    """
    install(_import_timm_data())
    add_models()


def unregister() -> None:
    """Put timm's functions back as they were; a second call changes nothing.

    Loaders made before stay mollified, and the names of the small-image networks stay known.
    """
    for module, name in _places(_import_timm_data()):
        function = getattr(module, name)
        if hasattr(function, '_timm_molly'):
            setattr(module, name, function.__wrapped__)


def install(timm_data: ModuleType) -> None:
    """Do what `register` does with the module `timm.data`, while timm itself may be only partly imported."""
    for module, name in _places(timm_data):
        function = getattr(module, name)
        if not hasattr(function, '_timm_molly'):
            wrapper = _mollified if name == 'create_loader' else _refusing
            setattr(module, name, wrapper(function))
    if not hasattr(timm_data, 'create_loader'):
        raise PackageError(
            f'timm {_timm_version()} has no timm.data.create_loader, which --aa molly needs: '
            f'update timm-molly (pip install -U timm-molly)'
        )


def add_models() -> None:
    """Add the networks of `timm_molly.models` to timm's registry, but to no timm older than is supported."""
    if _too_old():
        return
    try:
        importlib.import_module('timm_molly.models')
    except (ImportError, AttributeError) as error:
        raise PackageError(
            f'the networks of timm-molly do not fit timm {_timm_version()} ({error}): '
            f'update both (pip install -U timm-molly timm)'
        ) from error


def _places(timm_data: ModuleType) -> list[tuple[ModuleType, str]]:
    """List the names that are replaced: `create_loader` where scripts import it from, and the guard."""
    places = [
        (timm_data, 'create_loader'),
        (importlib.import_module('timm.data.loader'), 'create_loader'),
        (importlib.import_module('timm.data.transforms_factory'), 'transforms_imagenet_train'),
    ]
    return [(module, name) for module, name in places if hasattr(module, name)]


def _mollified(create_loader: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap timm's `create_loader`."""
    signature = inspect.signature(create_loader)

    @functools.wraps(create_loader)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            arguments = signature.bind(*args, **kwargs)
        except TypeError:
            return create_loader(*args, **kwargs)  # timm says what is wrong with the call
        arguments.apply_defaults()
        aa = arguments.arguments.get('auto_augment')
        config, rest = split_aa(aa) if isinstance(aa, str) else (None, aa)
        if config is None:
            return create_loader(*args, **kwargs)

        arguments.arguments['auto_augment'] = rest
        options = arguments.arguments
        _check_timm()
        _check_single_label(options)
        _check_scale(config, options)
        loader = create_loader(*arguments.args, **arguments.kwargs)
        if not options['is_training']:
            return loader
        if options['no_aug']:
            _log(f'--aa {aa}: no mollification, because --no-aug switches all augmentation off.')
            return loader

        if set(config.roles) == {'x'}:
            _log(f'--aa {aa}: no mollification, because with the roles {config.roles} every image stays clean.')
            return loader

        from timm_molly.mollify import Mollify
        from timm_molly.plugin.loader import MollyLoader  # here, so that only who asks for molly waits for wrapt

        num_splits = max(1, options['num_aug_splits'])
        _log(
            f'Mollification is on: {config} (roles {" ".join(config.roles)}, '
            f't ~ Beta({config.alpha:g}, {config.beta:g}), label power {config.noise_power:g} for noise, '
            f'{config.blur_power:g} for blur). Stacks with: {_stack(options)}.'
        )
        return MollyLoader(loader, Mollify(config, num_splits))

    wrapper._timm_molly = True  # type: ignore[attr-defined]
    return wrapper


def _refusing(transforms: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the function with which timm makes its training transforms, to refuse molly there."""
    signature = inspect.signature(transforms)

    @functools.wraps(transforms)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        aa = signature.bind(*args, **kwargs).arguments.get('auto_augment')
        if isinstance(aa, str) and 'molly' in aa.lower():
            raise UserError(
                f"auto_augment={aa!r} reached timm's image transforms, which cannot mollify because they see no "
                f'label: use timm.data.create_loader imported after timm_molly is registered (train.py --aa molly, '
                f'without --naflex-loader, whose batches are not images), or timm_molly.Mollify on your own batches'
            )
        return transforms(*args, **kwargs)

    wrapper._timm_molly = True  # type: ignore[attr-defined]
    return wrapper


def _check_single_label(options: dict[str, Any]) -> None:
    """Refuse multi-label targets where the loader's arguments already show them."""
    dataset = options['dataset']
    while dataset is not None:
        if type(getattr(dataset, 'target_transform', None)).__name__ == 'MultiLabelTarget':
            break
        dataset = getattr(dataset, 'dataset', None)
    if dataset is not None or getattr(options['collate_fn'], 'multi_label', False):
        raise UserError(
            'mollification smooths one label an image towards the uniform distribution, which has no meaning for '
            'multi-label targets: train without --aa molly'
        )


def _check_scale(config: MollyConfig, options: dict[str, Any]) -> None:
    """Refuse a smallest blur that is wider than the images will be."""
    for size in options.get('input_size_choices') or [options['input_size']]:
        side = size if isinstance(size, int) else max(size[-2:])
        if config.min_scale > side:
            raise UserError(
                f'the smallest blur of {str(config)!r}, section s, is {config.min_scale:g} pixels, '
                f'more than the side of the images, {side}'
            )


def _stack(options: dict[str, Any]) -> str:
    mixup = options['collate_fn']
    parts = [
        options['auto_augment'],
        getattr(mixup, 'mixup_alpha', 0) and f'mixup {mixup.mixup_alpha:g}',
        getattr(mixup, 'cutmix_alpha', 0) and f'cutmix {mixup.cutmix_alpha:g}',
        options['re_prob'] and f'random erasing {options["re_prob"]:g}',
        options['num_aug_splits'] and f'{options["num_aug_splits"]} augmentation splits',
    ]
    return ', '.join(part for part in parts if part) or "timm's basic augmentation"


def _log(message: str) -> None:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not distributed or torch.distributed.get_rank() == 0:
        _logger.info(message)


def _import_timm_data() -> ModuleType:
    try:
        return importlib.import_module('timm.data')
    except ModuleNotFoundError as error:
        if error.name != 'timm':
            raise
        raise PackageError('timm-molly needs timm, which is not installed: pip install timm') from None


def _timm_version() -> str:
    return str(importlib.import_module('timm.version').__version__)


def _too_old() -> bool:
    release = re.match(r'\d+(\.\d+)*', _timm_version())
    return release is not None and tuple(map(int, release[0].split('.'))) < MIN_TIMM


def _check_timm() -> None:
    if _too_old():
        needed = '.'.join(map(str, MIN_TIMM))
        raise PackageError(f'--aa molly needs timm {needed} or newer, found {_timm_version()}: pip install -U timm')
