"""`timm-molly study`: train and measure a grid, and say what came out."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from timm_molly.robustness.benchmark import open_dataset
from timm_molly.robustness.validate import check_flags as check_validate
from timm_molly.study import results
from timm_molly.study.grid import Entry, choose, parse_validate, read_grid
from timm_molly.study.runner import ask, check_flags, known, run


def study(args: argparse.Namespace) -> int:
    """Run the command on its parsed flags; return 1 where a run has no figures.

    Raises:
        ValueError: What the user has to change, before anything is trained.
    """
    if args.jobs < 1:
        raise ValueError(f'--jobs must be 1 or more, got {args.jobs}')
    given = {key: str(value) for key in ('data_dir', 'corrupted_dir') if (value := getattr(args, key))}
    grid = read_grid(args.grid, {key: value for key, value in given.items() if key == 'data_dir'}, given)
    chosen = choose(grid.entries, args.only) if args.only else grid.entries
    if args.against and args.against not in {entry.row for entry in grid.entries}:
        raise ValueError(f'--against {args.against}: the grid has no such row')
    script = train_script(args.train_script)
    check_data(chosen)
    flags, about = ask(script)
    check_flags(chosen, flags, script)
    output = args.output or Path('output/study') / args.grid.stem
    output.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(output / '.lock').acquire(timeout=0)
    except Timeout:
        raise ValueError(f'another study is running in {output}') from None
    with lock:
        runs = output / 'runs'
        found = {entry: known(entry, runs / str(entry), about) for entry in grid.entries if entry not in chosen}
        found |= run(chosen, runs, script, about, args.jobs)
        ended = {entry: result for entry in grid.entries if (result := found[entry])}
        made = results.collect(grid.title, ended, runs, about)
        names = results.write(made, output) + (results.write(made, output, args.against) if args.against else [])
    print(f'\n{grid.title}\n\n{results.tables(made, "text", args.against)}\n\nwrote {", ".join(names)} to {output}')
    return 0 if all(ended[entry]['status'] == 'finished' for entry in chosen) else 1


def train_script(given: Path | None) -> Path:
    """Find timm's train.py, which is not in timm's wheel.

    Raises:
        ValueError: It is not there, with how to get it.
    """
    named = given or os.environ.get('TIMM_TRAIN_SCRIPT')
    if named and Path(named).is_file():
        return Path(named).resolve()
    from timm.version import __version__ as version

    tag = 'main' if 'dev' in version else f'v{version}'
    raise ValueError(
        (f'no such train script: {named}' if named else 'which train.py? Give --train-script, or set TIMM_TRAIN_SCRIPT')
        + f". timm's wheel has none; the one that fits timm {version}: git clone --depth 1 --branch {tag} "
        'https://github.com/huggingface/pytorch-image-models, then --train-script pytorch-image-models/train.py'
    )


def check_data(entries: Iterable[Entry]) -> None:
    """Raise ValueError where images that the entries name are not there."""
    checked = set()
    for entry in entries:
        train, validate = entry.train, entry.validate
        own = {key: train.get(key) for key in ('data_dir', 'dataset', 'dataset_download')}
        splits = [{**own, 'split': train.get('train_split') or 'train'}]
        splits += [{**own, 'split': train.get('val_split') or 'validation'}]
        splits += [{**splits[-1], **{key: value for key, value in validate.items() if key in splits[-1]}}]
        for split in splits:
            if (key := str(split)) in checked:
                continue
            checked.add(key)
            kind = str(split['dataset'] or '').partition('/')[0]
            if not split['data_dir'] and kind not in ('hfds', 'hfids', 'tfds', 'wds'):
                raise ValueError('no data: give --data-dir, or data_dir in the grid')
            made = split['dataset_download'] or kind in ('hfds', 'hfids')  # by the data set's library
            if split['data_dir'] and not Path(split['data_dir']).is_dir() and not made:
                raise ValueError(f'no such data folder: {split["data_dir"]} (--data-dir, or data_dir in the grid)')
            if not split['dataset']:
                open_dataset('RGB', name='', root=split['data_dir'], split=split['split'], is_training=False)
        if (key := str(flags := {**own, **validate})) not in checked:
            checked.add(key)
            check_measurement(flags)


def check_measurement(flags: Mapping[str, Any]) -> None:
    """Raise ValueError where flags of `timm-molly validate` cannot work, or corrupted images are not there."""
    try:
        chosen = check_validate(parse_validate(flags))[0]
    except ValueError as error:
        raise ValueError(f'validate: {error}') from None
    if not (corrupted := flags.get('corrupted_dir')):
        return
    folder = Path(corrupted)
    lacking = [name for name in chosen if not any((folder / file).exists() for file in (name, f'{name}.npy'))]
    if lacking:
        raise ValueError(f'{folder} lacks {", ".join(lacking)}; corruptions below validate chooses some')
