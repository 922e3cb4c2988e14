"""Measuring a model cell by cell, on disk as they finish, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tqdm

from timm_molly.files import write_text
from timm_molly.robustness import benchmark, report
from timm_molly.robustness import corruptions as C
from timm_molly.robustness.benchmark import Cell, Loader
from timm_molly.robustness.metrics import METRICS, CellMetrics
from timm_molly.robustness.model import Subject
from timm_molly.training import WEIGHTS
from timm_molly.weights import one_line, some

Results = dict[tuple[str, float], dict[str, Any]]


def check_inputs(args: argparse.Namespace) -> None:
    """Raise ValueError for numbers and a folder that nothing could be measured with, before a model is asked for."""
    for flag, value, low in (('-b', args.batch_size, 1), ('-j', args.workers, 0), ('--seed', args.seed, 0)):
        if value < low:
            raise ValueError(f'{flag} must be {low} or more, got {value}')
    if args.data_dir and not args.dataset and not Path(args.data_dir).is_dir():
        raise ValueError(f'no such folder: {args.data_dir} (--data-dir)')
    if args.seed >= 2**31:
        raise ValueError(f'--seed must be below 2**31, got {args.seed}')


def open_images(args: argparse.Namespace, subject: Subject) -> benchmark.Images:
    """Open the clean data set and check that its classes are the model's.

    Raises:
        ValueError: It cannot be opened, or has other classes.
    """
    images = benchmark.open_dataset(
        subject.img_mode,
        name=args.dataset,
        root=args.data_dir,
        split=args.split,
        download=args.dataset_download,
        class_map=args.class_map,
        input_key=args.input_key,
        target_key=args.target_key,
        num_samples=args.num_samples,
        is_training=False,
    )
    if images.has_16_bits:
        print(
            "note: 16-bit grey images are scaled to 8 bits here. timm's own training cuts them off at 255, which "
            'leaves next to nothing but white: save them with 8 bits before you train',
            file=sys.stderr,
        )
    if args.dataset or args.class_map:
        check_classes(images.classes, subject, args.data_dir, bool(args.class_map))
    else:
        check_classes(images.classes, subject, f'split {args.split!r} of {args.data_dir}', False, _others(args))
    return images


def _others(args: argparse.Namespace) -> dict[str, set[str]]:
    """Class folders of the splits of an image folder, by split."""
    splits = {split: Path(args.data_dir, split) for split in benchmark.SPLITS}
    return {
        split: {each.name for each in folder.iterdir() if each.is_dir() and any(each.iterdir())}
        for split, folder in splits.items()
        if folder.is_dir()
    }


def check_classes(
    classes: Sequence[str] | None,
    subject: Subject,
    where: object,
    mapped: bool,
    splits: Mapping[str, set[str]] | None = None,
) -> None:
    """Raise ValueError where class folders are not the model's, which would give wrong figures.

    Args:
        classes: The class folders; None where there are none.
        subject: The model.
        where: What the folders are in.
        mapped: Whether a class map says which classes they are.
        splits: Class folders of all splits of the data, among which one that is missing may be found.
    """
    if classes is None:
        return
    name, known = subject.record['name'], subject.num_classes
    labels = (getattr(subject.model, 'pretrained_cfg', None) or {}).get('label_names')
    if (len(classes) > known) if mapped else (len(classes) != known):
        lacking = {f'{split} has': found - {*classes} for split, found in (splits or {}).items()}
        if isinstance(labels, (list, tuple)) and {*labels} & {*classes}:
            lacking['the model names'] = {*labels} - {*classes}
        lacks = [f'it lacks {some(sorted(names))}, which {who}' for who, names in lacking.items() if names]
        raise ValueError(
            f'{where} has {len(classes)} class folders, but {name} has {known} classes'
            + ''.join(f'; {each}' for each in lacks[:1])
            + ('' if mapped else ' (--num-classes, or --class-map for a part of the classes)')
        )
    if not labels or mapped or list(labels) == list(classes):
        return
    if set(labels) & set(classes):
        different = set(labels) ^ set(classes)
        raise ValueError(
            f'the class folders of {where} are not the classes that {name} names: they differ in '
            + (some(sorted(different)) if different else 'their order')
        )
    print(
        f'note: the class folders of {where} ({some(sorted(classes))}) and the classes that {name} names '
        f'({some(sorted(labels))}) have nothing in common; they are taken to be in the same order',
        file=sys.stderr,
    )


def measure(args: argparse.Namespace, output: Path, subject: Subject, cells: Sequence[Cell], what: Any) -> Results:
    """Measure the cells that are not on disk yet, show progress, and return all by (name, level).

    Args:
        args: The flags.
        output: Folder of the run; it is made.
        subject: The model.
        cells: What to measure, in this order.
        what: The benchmark's record; with model, data and versions it tells this run from others.

    Raises:
        ValueError: The folder holds another run, an image cannot be read, or a label is no class of the model.
    """
    _check_labels(cells)
    _claim(output, {'model': subject.record, 'benchmark': what, 'data': _where(args), 'packages': report.packages()})
    (output / 'cells').mkdir(exist_ok=True)
    paths = {cell.key: output / 'cells' / f'{cell}.json'.replace(' ', '-') for cell in cells}
    todo = [cell for cell in cells if _read(paths[cell.key]) is None]
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
            threads = torch.get_num_threads()
            # On the cores that the workers leave: threads that wait for one that has none stop the whole.
            torch.set_num_threads(max(1, threads - args.workers))
            try:
                try:
                    for cell, result in _measure(args, subject, todo, progress):
                        write_text(paths[cell.key], json.dumps(result, indent=1))
                except (ConnectionError, EOFError):
                    # The signal of a worker's death comes later than its broken pipe: let it come here.
                    time.sleep(1 if args.workers else 0)
                    raise
            except (RuntimeError, ConnectionError, EOFError) as error:
                # PyTorch raises it wherever the program is when a worker dies.
                if args.workers and (not isinstance(error, RuntimeError) or 'DataLoader worker' in str(error)):
                    raise ValueError(
                        f'a worker process died, of too little memory? Try a smaller -j ({error})'
                    ) from None
                if 'out of memory' in str(error):
                    raise ValueError(f'{one_line(error)}: try a smaller -b') from None
                raise
            finally:
                torch.set_num_threads(threads)
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
    model = subject.model
    device = next(model.parameters()).device
    if args.workers and any(cell.name == 'glass_blur' for cell in cells):
        C.warm_up()
    loader = Loader(cells, args.batch_size, args.workers, subject.data_config, device)
    amp = torch.autocast(device.type, getattr(torch, args.amp_dtype)) if args.amp else nullcontext()
    current: Cell | None = None
    metrics, labels = CellMetrics(), hashlib.sha256()
    for cell, x, target in loader:
        if cell is not current:
            if current is not None:
                yield current, {**metrics.result(), 'labels': labels.hexdigest()}
            current, metrics, labels = cell, CellMetrics(), hashlib.sha256()
            progress.set_description(str(cell))
        for label in (int(target.min()), int(target.max())):
            if not 0 <= label < subject.num_classes:
                raise ValueError(f'{cell} has label {label}, none of the {subject.num_classes} classes of the model')
        with amp:
            logits = model(x)
        metrics.update(logits, target)
        labels.update(target.cpu().numpy().tobytes())
        progress.update(len(x))
    if current is not None:
        yield current, {**metrics.result(), 'labels': labels.hexdigest()}


def default_output(args: argparse.Namespace, command: str) -> Path:
    """Name the folder of a run after its checkpoint or model."""
    name: str = args.model
    if args.checkpoint is not None:
        path = args.checkpoint.resolve()
        # train.py's checkpoints have the same names in every training's folder.
        ours = path.name.endswith('.pth.tar') or path.name == WEIGHTS
        name = path.name if path.is_dir() else path.parent.name if ours else path.stem
    return Path('output') / command / name.replace('/', '_').replace(':', '_')


def folder_name(path: Path | str) -> str:
    """The name of a folder as it was given, also for '.' and '..'; of a link the link's own."""
    return os.path.basename(os.path.abspath(path))


def data_record(args: argparse.Namespace, subject: Subject, results: Results) -> dict[str, Any]:
    """What the report says of the images."""
    first = next(iter(results.values()))
    name = args.dataset or (folder_name(args.data_dir) if args.data_dir else None)
    return {
        'dataset': name,
        'split': args.split if name else None,
        'images': first['images'],
        'num_classes': subject.num_classes,
        'class_map': bool(args.class_map),
        'labels': first['labels'],
    }


def _check_labels(cells: Sequence[Cell]) -> None:
    """Raise ValueError where cells are known not to be of the same images, before any is measured."""
    first, *others = [(cell, cell.images.labels) for cell in cells]
    for cell, labels in others:
        if labels is not None and first[1] is not None and not np.array_equal(labels, first[1]):
            raise ValueError(f'{first[0]} and {cell} have different labels, so they are not the same images')


def _where(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that say which images are read."""
    resolved = {
        name: str(Path(getattr(args, name)).resolve()) if getattr(args, name, None) else None
        for name in ('data_dir', 'corrupted_dir', 'class_map')
    }
    return {**resolved, **{name: getattr(args, name) for name in ('dataset', 'split', 'input_key', 'target_key')}}


def _claim(output: Path, about: dict[str, Any]) -> None:
    """Take a folder for a run, or go on with it if that has the same settings."""
    about = json.loads(json.dumps(about))
    path = output / 'settings.json'
    output.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        if (output / 'cells').exists():
            raise ValueError(f'{output} holds cells of a run but not its settings.json: choose another --output')
        write_text(path, json.dumps(about, indent=1))
        return
    try:
        found = json.loads(path.read_text())
        different = report.differences(dict(found), about)
    except (ValueError, TypeError) as error:
        raise ValueError(f'{path} is damaged ({error}): delete {output}, or choose another --output') from None
    if different:
        raise ValueError(f'{output} holds another run ({"; ".join(different)}): choose another --output')


def _read(path: Path) -> Any:
    """Read a finished cell; None where there is none, or a damaged one, which is measured again."""
    try:
        cell = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return cell if isinstance(cell, dict) and {'images', 'labels', 'bins', *METRICS} <= cell.keys() else None
