"""Train and measure a grid, and say what came out: `timm-molly study`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from timm_molly.errors import UserError
from timm_molly.files import make_folder, try_lock
from timm_molly.robustness.images import open_dataset
from timm_molly.study import measure, results
from timm_molly.study.grid import Entry, choose, read_grid
from timm_molly.study.run import known
from timm_molly.study.runner import run
from timm_molly.study.script import ask, check_flags, train_script


@dataclass(frozen=True)
class Study:
    """What came out of a study.

    Attributes:
        title: Of the grid.
        tables: Its tables as text.
        files: Names of the files that were written.
        output: Their folder.
        finished: Whether each of the chosen runs has figures.
    """

    title: str
    tables: str
    files: tuple[str, ...]
    output: Path
    finished: bool


def study(
    grid: str | Path,
    *,
    script: str | Path | None = None,
    data_dir: str | Path | None = None,
    corrupted_dir: str | Path | None = None,
    jobs: int = 1,
    against: str | None = None,
    only: Sequence[str] = (),
    output: str | Path | None = None,
) -> Study:
    """Train a grid of recipes with timm's train.py, measure each, and write tables, a figure and JSON.

    What is finished is kept: the same call goes on after whatever stopped it.

    Args:
        grid: YAML file, as `grid.read_grid` says.
        script: timm's train.py; that of TIMM_TRAIN_SCRIPT if None.
        data_dir: Images, in place of the grid's.
        corrupted_dir: Corrupted test images likewise.
        jobs: Runs at once.
        against: Row that differences are shown to, in place of the same recipe without molly.
        only: Rows such as 'plain+molly', or 'plain+molly/0' for one seed; all if empty.
        output: Folder; output/study/ and the name of the grid if None.

    Raises:
        UserError: What has to be changed, before anything is trained.
    """
    if jobs < 1:
        raise UserError(f'jobs must be 1 or more, got {jobs}')
    images = {'data_dir': data_dir, 'corrupted_dir': corrupted_dir}
    given = {key: str(value) for key, value in images.items() if value}
    path = Path(grid)
    found = read_grid(path, {key: value for key, value in given.items() if key == 'data_dir'}, given)
    chosen = choose(found.entries, only) if only else found.entries
    if against and against not in {entry.row for entry in found.entries}:
        raise UserError(f'against {against}: the grid has no such row')
    train = train_script(script)
    check_data(chosen)
    flags, about = ask(train)
    check_flags(chosen, flags, train)
    folder = make_folder(Path(output or Path('output/study') / path.stem))
    with _lock(folder):
        runs = folder / 'runs'
        ended = {entry: known(entry, runs / str(entry), about) for entry in found.entries if entry not in chosen}
        ended |= run(chosen, runs, train, about, jobs)
        kept = {entry: result for entry in found.entries if (result := ended[entry])}
        collected = results.collect(found.title, kept, runs, about)
        names = results.write(collected, folder) + (results.write(collected, folder, against) if against else [])
    finished = all(kept[entry]['status'] == 'finished' for entry in chosen)
    return Study(found.title, results.tables(collected, 'text', against), tuple(names), folder, finished)


def _lock(folder: Path) -> FileLock:
    lock = try_lock(folder / '.lock')
    if lock is None:
        raise UserError(f'another study is running in {folder}')
    return lock


def check_data(entries: Iterable[Entry]) -> None:
    """Raise UserError where images that the entries name are not there."""
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
                raise UserError('no data: give --data-dir, or data_dir in the grid')
            made = split['dataset_download'] or kind in ('hfds', 'hfids')  # by the data set's library
            if split['data_dir'] and not Path(split['data_dir']).is_dir() and not made:
                raise UserError(f'no such data folder: {split["data_dir"]} (--data-dir, or data_dir in the grid)')
            if not split['dataset']:
                open_dataset('RGB', name='', root=split['data_dir'], split=split['split'], is_training=False)
        if (key := str(flags := {**own, **validate})) not in checked:
            checked.add(key)
            measure.check(train, flags)
