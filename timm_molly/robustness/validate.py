"""`timm-molly validate`: choose what to measure, measure it, and write the report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm_molly.config import MollyConfig, split_aa
from timm_molly.robustness import benchmark, report
from timm_molly.robustness import corruptions as C
from timm_molly.robustness.benchmark import Cell
from timm_molly.robustness.measure import (
    check_classes,
    check_inputs,
    data_record,
    default_output,
    folder_name,
    measure,
    open_images,
)
from timm_molly.robustness.model import Subject, load_model
from timm_molly.weights import some

CHOICES = {'common': C.COMMON, 'held-out': C.HELD_OUT, 'all': (*C.COMMON, *C.HELD_OUT), **C.GROUPS}


def validate(args: argparse.Namespace) -> None:
    """Run the command on its parsed flags: measure, write the report and print its table."""
    args.output = args.output or default_output(args, 'validate')
    made = run(args, ' '.join(['timm-molly', *sys.argv[1:]]))
    print(f'\n{report.text(made)}\n\nwrote {args.output}/report.json, .csv, .md and pictures')


def run(args: argparse.Namespace, command: str) -> report.Report:
    """Measure the model that the flags name, write the report to `args.output`, and return it.

    Args:
        args: The flags of `timm-molly validate`.
        command: The command line, for the report.

    Raises:
        ValueError: What the user has to change, before the model runs where it can be known.
    """
    names, severities = check_flags(args)
    subject = load_model(args)
    images = open_images(args, subject) if args.data_dir or args.dataset else None
    if args.mollification:
        cells, what = mollification(images, subject, args.aa, args.seed)
    else:
        cells, what = _corruptions(args, subject, images, names, severities)
    results = measure(args, args.output, subject, cells, what)
    made = report.build(subject.record, what, data_record(args, subject, results), results, command)
    report.write(made, args.output)
    return made


def check_flags(args: argparse.Namespace) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Check flags before anything is loaded; return the corruptions and severities that they choose.

    Raises:
        ValueError: One is out of its range, or does not go with another.
    """
    check_inputs(args)
    names = _chosen(args.corruptions)
    _check_combination(args)
    return names, tuple(sorted(set(args.severities)))


def mollification(images: Any, subject: Subject, aa: str | None, seed: int) -> tuple[list[Cell], dict[str, Any]]:
    """Cells of clean, noised and blurred images, and the record of the benchmark.

    Args:
        images: The data set.
        subject: The model.
        aa: Which roles and smallest blur, and the label schedule to show; None for those of the training.
        seed: Seed of the noise.

    Raises:
        ValueError: `aa` has no molly, or none that changes images of this size.
    """
    if aa is not None and split_aa(aa)[0] is None:
        raise ValueError(f'{aa!r} has no molly in it; try --aa molly')
    taught = next((c for c in (split_aa(each)[0] for each in (aa, subject.aa) if each) if c is not None), None)
    config = taught or MollyConfig()
    side = max(subject.image_size)
    if config.min_scale > side:
        raise ValueError(f'the smallest blur of {config} is {config.min_scale:g} pixels, more than the side, {side}')
    transform = subject.transform()
    degraded = benchmark.mollified(images, transform, config, seed)
    if not degraded:
        raise ValueError(f'{config} neither noises nor blurs, so there is nothing to measure')
    what = {
        'kind': 'mollification',
        'roles': ''.join(sorted(set(config.roles) & {'n', 'b'})),
        'min_scale': config.min_scale,
        'seed': seed,
        'image_size': subject.image_size,
        'taught': str(taught) if taught else None,
    }
    return [benchmark.clean(images, transform), *degraded], what


def _corruptions(
    args: argparse.Namespace, subject: Subject, images: Any, names: Sequence[str], severities: Sequence[int]
) -> tuple[list[Cell], dict[str, Any]]:
    """Cells of corrupted images, the clean ones first where there are any, and the record of the benchmark."""
    transform = subject.transform()
    cells = [benchmark.clean(images, transform)] if images is not None else []
    what = {'corruptions': list(names), 'severities': list(severities)}
    if args.corrupted_dir is None:
        side = min(subject.image_size)
        table = args.table or C.table_for(side)
        C.check_size(side, table)
        cells += benchmark.on_the_fly(images, transform, names, severities, table, args.seed)
        return cells, {
            **{'kind': 'on the fly', 'table': table, 'seed': args.seed, 'image_size': subject.image_size},
            **what,
        }
    crop_pct = args.crop_pct or 1.0  # the published images are cropped already
    corrupted = benchmark.official(
        args.corrupted_dir,
        subject.transform(crop_pct),
        names,
        severities,
        subject.img_mode,
        args.class_map,
        subject.num_classes,
    )
    classes = corrupted[0].images.classes
    check_classes(classes, subject, args.corrupted_dir, bool(args.class_map))
    if images is not None and classes and images.classes and classes != images.classes:
        different = set(classes) ^ set(images.classes)
        raise ValueError(f'the class folders of the clean and the corrupted images differ in {some(sorted(different))}')
    what = {'kind': 'official', 'name': folder_name(args.corrupted_dir), 'crop_pct': crop_pct, **what}
    return cells + corrupted, what


def _check_combination(args: argparse.Namespace) -> None:
    """Raise ValueError for flags that do not go together."""
    if args.data_dir is None and not args.dataset and (args.corrupted_dir is None or args.mollification):
        raise ValueError('no data: give --data-dir, or --corrupted-dir with an official set')
    if args.data_dir and any((Path(args.data_dir) / name).is_dir() for name in C.COMMON):
        raise ValueError(f'{args.data_dir} is a set of corrupted images: give it as --corrupted-dir')
    if args.corrupted_dir is not None and not args.corrupted_dir.is_dir():
        raise ValueError(f'no such folder: {args.corrupted_dir} (--corrupted-dir)')
    if args.corrupted_dir is not None and (args.table or args.mollification):
        raise ValueError('--corrupted-dir has corruptions of its own; leave --table and --mollification out')
    if args.mollification and (args.table or args.corruptions != ['common'] or set(args.severities) != {1, 2, 3, 4, 5}):
        raise ValueError('--mollification makes no corruptions; leave --table, --corruptions and --severities out')


def _chosen(choices: Sequence[str]) -> tuple[str, ...]:
    known = CHOICES['all']
    for choice in choices:
        if choice not in CHOICES and choice not in known:
            raise ValueError(f'no corruption {choice!r}; there are {", ".join((*CHOICES, *known))}')
    chosen = {name for choice in choices for name in CHOICES.get(choice, (choice,))}
    return tuple(name for name in known if name in chosen)
