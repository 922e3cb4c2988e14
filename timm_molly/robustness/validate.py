"""`timm-molly validate`: measure a model cell by cell, on disk as they finish, and write the report."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import tqdm

from timm_molly.config import MollyConfig, split_aa
from timm_molly.files import write_text
from timm_molly.robustness import benchmark, report
from timm_molly.robustness import corruptions as C
from timm_molly.robustness.benchmark import Cell, Loader
from timm_molly.robustness.metrics import CellMetrics
from timm_molly.robustness.model import Subject, load_model

Results = dict[tuple[str, float], dict[str, Any]]

CHOICES = {'common': C.COMMON, 'held-out': C.HELD_OUT, 'all': (*C.COMMON, *C.HELD_OUT), **C.GROUPS}


def validate(args: argparse.Namespace) -> None:
    """Run the command on its parsed flags: measure, write the report and print its table."""
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
    names, severities = _chosen(args.corruptions), tuple(sorted(set(args.severities)))
    if args.data_dir is None and not args.dataset and (args.corrupted_dir is None or args.mollification):
        raise ValueError('no data: give --data-dir, or --corrupted-dir with an official set')
    if args.data_dir and any((Path(args.data_dir) / name).is_dir() for name in C.COMMON):
        raise ValueError(f'{args.data_dir} is a set of corrupted images: give it as --corrupted-dir')
    if args.corrupted_dir is not None and (args.table or args.mollification):
        raise ValueError('--corrupted-dir has corruptions of its own; leave --table and --mollification out')
    subject = load_model(args)
    side = min(subject.data_config['input_size'][1:])
    images = open_images(args, subject) if args.data_dir or args.dataset else None
    transform = subject.transform()
    cells = [benchmark.clean(images, transform)] if images is not None else []
    what: dict[str, Any]
    if args.mollification:
        config = taught(args.aa, subject)
        cells += mollified(images, transform, config, args.seed, side)
        what = {'kind': 'mollification', 'settings': str(config), 'seed': args.seed, 'image_size': side}
    else:
        what = {'corruptions': list(names), 'severities': list(severities)}
        if args.corrupted_dir is not None:
            # The published images are cropped already.
            transform = subject.transform(args.crop_pct or 1.0)
            cells += benchmark.official(
                args.corrupted_dir, transform, names, severities, img_mode(subject), subject.num_classes
            )
            corrupted = cells[-1].images
            check_classes(corrupted.classes, subject, args.corrupted_dir, bool(args.class_map))
            if images is not None and not images.streamed and len(images) != len(corrupted):
                raise ValueError(
                    f'{args.corrupted_dir} has {len(corrupted)} images a severity, but the clean set has {len(images)}'
                )
            what = {'kind': 'official', 'name': args.corrupted_dir.resolve().name, **what}
        else:
            table = args.table or C.table_for(side)
            C.check_size(side, table)
            cells += benchmark.on_the_fly(images, transform, names, severities, table, args.seed)
            what = {'kind': 'on the fly', 'table': table, 'seed': args.seed, 'image_size': side, **what}
    if args.output is None:
        args.output = default_output(args, 'validate')
    results = measure(args, subject, cells, settings(args, subject, what))
    made = report.build(subject.record, what, data_record(args, subject, results), results, command)
    report.write(made, args.output)
    return made


def open_images(args: argparse.Namespace, subject: Subject) -> benchmark.Images:
    """Open the clean data set and check that its classes are the model's.

    Raises:
        ValueError: It cannot be opened, or has other classes.
    """
    images = benchmark.open_dataset(
        img_mode(subject),
        name=args.dataset,
        root=args.data_dir,
        split=args.split,
        download=args.dataset_download,
        class_map=args.class_map,
        is_training=False,
    )
    check_classes(images.classes, subject, args.data_dir, bool(args.class_map))
    return images


def check_classes(classes: Sequence[str] | None, subject: Subject, where: object, mapped: bool = False) -> None:
    """Raise ValueError where class folders are not the model's, which would give wrong figures."""
    if classes is None:
        return
    known = subject.num_classes
    if (len(classes) > known) if mapped else (len(classes) != known):
        raise ValueError(
            f'{where} has {len(classes)} class folders, but {subject.record["name"]} has {known} classes'
            + ('' if mapped else ' (--num-classes, or --class-map for a part of the classes)')
        )
    labels = (getattr(subject.model, 'pretrained_cfg', None) or {}).get('label_names')
    if labels and not mapped and set(labels) & set(classes) and list(labels) != list(classes):
        different = set(labels) ^ set(classes)
        raise ValueError(
            f'the class folders of {where} are not the classes that {subject.record["name"]} names: they differ in '
            + (benchmark.some(different) if different else 'their order')
        )


def mollified(images: Any, transform: Any, config: MollyConfig, seed: int, side: int) -> list[Cell]:
    """Cells of mollification, after a check of the smallest blur against the image."""
    if config.min_scale > side:
        raise ValueError(f'the smallest blur of {config} is {config.min_scale:g} pixels, more than the side, {side}')
    cells = benchmark.mollified(images, transform, config, seed)
    if not cells:
        raise ValueError(f'{config} neither noises nor blurs, so there is nothing to measure')
    return cells


def taught(aa: str | None, subject: Subject) -> MollyConfig:
    """The settings whose label schedule is shown beside the curves: of --aa, or of the training, or the paper's."""
    if aa is not None and split_aa(aa)[0] is None:
        raise ValueError(f'{aa!r} has no molly in it; try --aa molly')
    configs = [split_aa(each)[0] for each in (aa, subject.aa) if each]
    return next((config for config in configs if config is not None), MollyConfig())


def measure(args: argparse.Namespace, subject: Subject, cells: Sequence[Cell], about: dict[str, Any]) -> Results:
    """Measure the cells that are not on disk yet, show progress, and return all by (name, level).

    Args:
        args: The flags, `output` being set.
        subject: The model.
        cells: What to measure, in this order.
        about: What tells this run from others; a folder that holds a run with other settings is refused.

    Raises:
        ValueError: The folder holds another run, an image cannot be read, or a label is no class of the model.
    """
    output: Path = args.output
    _claim(output, about)
    (output / 'cells').mkdir(exist_ok=True)
    paths = {cell.key: output / 'cells' / f'{cell}.json'.replace(' ', '-') for cell in cells}
    todo = [cell for cell in cells if not paths[cell.key].is_file()]
    if todo:
        images = [0 if cell.images.streamed else len(cell.images) for cell in cells]
        missing = [0 if cell.images.streamed else len(cell.images) for cell in todo]
        with tqdm.tqdm(
            total=sum(images) or None,
            initial=sum(images) - sum(missing),
            unit='img',
            dynamic_ncols=True,
            mininterval=0.5,
        ) as progress:
            for cell, result in _measure(args, subject, todo, progress):
                write_text(paths[cell.key], json.dumps(result, indent=1))
    # Read back, so that a report is the same whether its cells are of this run or of an earlier one.
    results = {key: _read(path) for key, path in paths.items()}
    first, *others = cells
    for cell in others:
        if results[cell.key]['labels'] != results[first.key]['labels']:
            raise ValueError(f'{first} and {cell} have different labels, so they are not the same images')
    return results


@torch.inference_mode()
def _measure(
    args: argparse.Namespace, subject: Subject, cells: Sequence[Cell], progress: Any
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Yield each cell with its result as it finishes."""
    config, model = subject.data_config, subject.model
    device = next(model.parameters()).device
    if args.workers and any(cell.name == 'glass_blur' for cell in cells):
        C.warm_up()
    channels = config['input_size'][0]
    loader = Loader(cells, args.batch_size, args.workers, config['mean'], config['std'], channels, device)
    amp = torch.autocast(device.type, getattr(torch, args.amp_dtype)) if args.amp else nullcontext()
    current: Cell | None = None
    metrics, labels = CellMetrics(), hashlib.sha256()
    for cell, x, target in loader:
        if cell is not current:
            if current is not None:
                yield current, {**metrics.result(), 'labels': labels.hexdigest()}
            current, metrics, labels = cell, CellMetrics(), hashlib.sha256()
            progress.set_description(str(cell))
        with amp:
            logits = model(x)
        if logits.ndim != 2:
            raise ValueError(f'{subject.record["name"]} gives {tuple(logits.shape)}, not logits (B, K) of a classifier')
        for label in (int(target.min()), int(target.max())):
            if not 0 <= label < logits.shape[1]:
                raise ValueError(f'{cell} has label {label}, none of the {logits.shape[1]} classes of the model')
        metrics.update(logits, target)
        labels.update(target.cpu().numpy().tobytes())
        progress.update(len(x))
    if current is not None:
        yield current, {**metrics.result(), 'labels': labels.hexdigest()}


def default_output(args: argparse.Namespace, command: str) -> Path:
    """Name the folder of a run after its checkpoint or model."""
    name: str = args.checkpoint.resolve().parent.name if args.checkpoint else args.model
    return Path('output') / command / name.replace('/', '_').replace(':', '_')


def settings(args: argparse.Namespace, subject: Subject, what: dict[str, Any]) -> dict[str, Any]:
    """What a run must have in common with an earlier one to go on with its cells."""
    data = {'dataset': args.dataset, 'data_dir': str(args.data_dir), 'split': args.split, 'class_map': args.class_map}
    return {'model': subject.record, 'benchmark': what, 'data': data, 'packages': report.packages()}


def data_record(args: argparse.Namespace, subject: Subject, results: Results) -> dict[str, Any]:
    """What the report says of the images."""
    first = next(iter(results.values()))
    name = args.dataset or (Path(args.data_dir).resolve().name if args.data_dir else None)
    return {
        'dataset': name,
        'split': args.split if name else None,
        'images': first['images'],
        'num_classes': subject.num_classes,
        'labels': first['labels'],
    }


def img_mode(subject: Subject) -> str:
    """Pillow's mode of the images that the model takes."""
    return 'RGB' if subject.data_config['input_size'][0] == 3 else 'L'


def _chosen(choices: Sequence[str]) -> tuple[str, ...]:
    known = CHOICES['all']
    for choice in choices:
        if choice not in CHOICES and choice not in known:
            raise ValueError(f'no corruption {choice!r}; there are {", ".join((*CHOICES, *known))}')
    chosen = {name for choice in choices for name in CHOICES.get(choice, (choice,))}
    return tuple(name for name in known if name in chosen)


def _claim(output: Path, about: dict[str, Any]) -> None:
    """Take a folder for a run, or go on with it if that has the same settings."""
    about = json.loads(json.dumps(about))
    path = output / 'settings.json'
    output.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        write_text(path, json.dumps(about, indent=1))
        return
    different = report.differences(_read(path), about)
    if different:
        raise ValueError(f'{output} holds another run ({"; ".join(different)}): choose another --output')


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f'{path} is damaged ({error}): delete it, or choose another --output') from None
