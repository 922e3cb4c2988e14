"""The way into timm: a `timm.data.create_loader` that understands `auto_augment='molly'`, and a `create_naflex_loader`.

Every train script makes its loader with one of them and passes it `--aa`, so these are the only functions of timm that
are replaced. Their own part of the string goes to `Mollify`, the rest to timm.

One guard stands behind it: molly that reaches timm's image transforms, which see no labels, got there by a way that
cannot work, and is told so instead of timm's "unknown policy".
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import logging
import os
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from timm_molly.config import MollyConfig, split_aa
from timm_molly.errors import PackageError, UserError
from timm_molly.plugin.script import of_script

if TYPE_CHECKING:
    from timm_molly.mollify import Mollify
    from timm_molly.plugin.batch import BatchPicture

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
            guard = name == 'transforms_imagenet_train'
            wrapper = _refusing(function) if guard else _mollified(function, naflex=name == 'create_naflex_loader')
            setattr(module, name, wrapper)
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
    """List the names that are replaced: the loaders' factories where scripts import them from, and the guard."""
    places = [
        (timm_data, 'create_loader'),
        (timm_data, 'create_naflex_loader'),
        (importlib.import_module('timm.data.loader'), 'create_loader'),
        (importlib.import_module('timm.data.transforms_factory'), 'transforms_imagenet_train'),
    ]
    if hasattr(timm_data, 'create_naflex_loader'):
        places.append((importlib.import_module('timm.data.naflex_loader'), 'create_naflex_loader'))
    return [(module, name) for module, name in places if hasattr(module, name)]


def _mollified(create_loader: Callable[..., Any], naflex: bool) -> Callable[..., Any]:
    """Wrap timm's `create_loader` or `create_naflex_loader`."""
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
            if arguments.arguments['is_training'] and os.environ.get('TIMM_MOLLY_BATCH'):
                _log('TIMM_MOLLY_BATCH is set, but --aa has no molly: no picture of the first batch.')
            return create_loader(*args, **kwargs)

        arguments.arguments['auto_augment'] = rest
        options = arguments.arguments
        _check_timm()
        multi_label = _multi_label(options)
        _check_scale(config, _patch_sides(options) if naflex else _longer_sides(options))
        if naflex and options['is_training'] and not options['use_prefetcher']:
            raise UserError(f'--aa {aa} with the NaFlex loader needs the prefetcher: train without --no-prefetcher')
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

        mollify = Mollify(config, max(1, options['num_aug_splits']), multi_label=multi_label)
        _log(f'Mollification is on: {_describe(config, multi_label)}. Stacks with: {_stack(options)}.')
        for note in _notes(options, multi_label):
            _log(f'note: {note}')
        picture = _picture(mollify, options)
        if not naflex:
            return MollyLoader(loader, mollify, picture)

        from timm_molly.plugin.naflex import NaFlexMollyLoader

        size = options['patch_size'] or 16  # timm's own default; not looked at where there are several
        sides = (size, size) if isinstance(size, int) else tuple(size)
        return NaFlexMollyLoader(loader, mollify, sides, options.get('patchify_channels_last', True), picture)

    wrapper._timm_molly = True  # type: ignore[attr-defined]
    return wrapper


def _picture(mollify: Mollify, options: dict[str, Any]) -> BatchPicture | None:
    """What draws the first batch, where the environment asks for it."""
    if not os.environ.get('TIMM_MOLLY_BATCH'):
        return None
    from timm_molly.plugin.batch import BatchPicture

    return BatchPicture.asked_for(mollify, options['mean'], options['std'])


def _describe(config: MollyConfig, multi_label: bool) -> str:
    """Say the settings in words."""
    powers = f'power {config.noise_power:g} for noise, {config.blur_power:g} for blur'
    labels = f'hard labels, each loss weighted with {powers}' if config.weighted else f'label {powers}'
    if multi_label and not config.weighted:
        labels += '; each label towards 1/2'
    return f'{config} (roles {" ".join(config.roles)}, t ~ Beta({config.alpha:g}, {config.beta:g}), {labels})'


def _refusing(transforms: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the function with which timm makes its training transforms, to refuse molly there."""
    signature = inspect.signature(transforms)

    @functools.wraps(transforms)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        aa = signature.bind(*args, **kwargs).arguments.get('auto_augment')
        if isinstance(aa, str) and 'molly' in aa.lower():
            raise UserError(
                f"auto_augment={aa!r} reached timm's image transforms, which cannot mollify because they see no "
                f'label: use timm.data.create_loader or create_naflex_loader, imported after timm_molly is registered '
                f'(train.py --aa molly), or timm_molly.Mollify on your own batches'
            )
        return transforms(*args, **kwargs)

    wrapper._timm_molly = True  # type: ignore[attr-defined]
    return wrapper


def _multi_label(options: dict[str, Any]) -> bool:
    """Whether the targets are multi-label, as the loader's arguments show.

    Raises:
        UserError: They are, but this timm cannot train on them.
    """
    dataset = options['dataset']
    while dataset is not None:
        if type(getattr(dataset, 'target_transform', None)).__name__ == 'MultiLabelTarget':
            break
        dataset = getattr(dataset, 'dataset', None)
    mixup = options.get('collate_fn') or options.get('mixup_fn')
    if dataset is None and not getattr(mixup, 'multi_label', False):
        return False
    task = importlib.util.find_spec('timm.task')
    if task is None or not hasattr(importlib.import_module('timm.task'), 'MultiLabelClassificationTask'):
        raise UserError(
            f'timm {_timm_version()} has no MultiLabelClassificationTask, so multi-label targets cannot be mollified: '
            'update timm to 1.0.31 or newer, or train without --aa molly'
        )
    return True


def _check_scale(config: MollyConfig, sides: list[int]) -> None:
    """Refuse a smallest blur that is wider than the images will be."""
    if config.min_scale > min(sides):
        raise UserError(
            f'the smallest blur of {str(config)!r}, section s, is {config.min_scale:g} pixels, '
            f'more than the side of the images, {min(sides)}'
        )


def _longer_sides(options: dict[str, Any]) -> list[int]:
    sizes = options.get('input_size_choices') or [options['input_size']]
    return [size if isinstance(size, int) else max(size[-2:]) for size in sizes]


def _patch_sides(options: dict[str, Any]) -> list[int]:
    """The longer sides of a NaFlex loader's patches: an image may be as small as one."""
    sizes = options['patch_size_choices'] or [options['patch_size'] or 16]
    return [size if isinstance(size, int) else max(size) for size in sizes]


def _stack(options: dict[str, Any]) -> str:
    mixup: Any = options.get('collate_fn') or options.get('mixup_fn')
    smoothing = getattr(of_script('args'), 'smoothing', 0)
    parts = [
        options['auto_augment'] or "timm's basic augmentation",
        getattr(mixup, 'mixup_alpha', 0) and f'mixup {mixup.mixup_alpha:g}',
        getattr(mixup, 'cutmix_alpha', 0) and f'cutmix {mixup.cutmix_alpha:g}',
        options['re_prob'] and f'random erasing {options["re_prob"]:g}',
        options['num_aug_splits'] and f'{options["num_aug_splits"]} augmentation splits',
        smoothing > 1e-6 and f'label smoothing {smoothing:g} (--smoothing 0 for none, as the paper has it)',
    ]
    return ', '.join(part for part in parts if part)


def _notes(options: dict[str, Any], multi_label: bool) -> Iterator[str]:
    """Say what a train script's flags do that was hardly meant."""
    from timm_molly.training import class_index  # here, as what else only training needs

    if _drops_bce():
        yield (
            "without label smoothing and mixup, timm's train.py takes cross-entropy in place of --bce-loss; "
            '--smoothing 1e-9 keeps it.'
        )
    classes, outputs = len(class_index(options['dataset'])), getattr(of_script('args'), 'num_classes', None)
    if classes and outputs and classes != outputs and not multi_label:
        yield f'the images have {classes} classes, the network {outputs}: is --num-classes {classes} missing?'


def _drops_bce() -> bool:
    """Whether timm's train.py was asked for binary cross-entropy by flags with which it takes another loss."""
    args = getattr(of_script('args'), '__dict__', {})
    asked = args.get('bce_loss') and not args.get('jsd_loss') and 'loss' not in args
    return bool(asked and not any(args.get(key) for key in ('smoothing', 'mixup', 'cutmix', 'cutmix_minmax')))


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
