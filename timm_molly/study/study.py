"""Train and measure a grid, and say what came out: `timm-molly study`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm_molly.errors import UserError
from timm_molly.files import hint_beside, locked, make_folder
from timm_molly.robustness.images import open_dataset
from timm_molly.study import measure, results
from timm_molly.study.grid import Entry, choose, read_grid
from timm_molly.study.jobs import Engine, local_engine, run_jobs, slurm_engine
from timm_molly.study.run import known
from timm_molly.study.runner import kept, run_all
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


@dataclass(frozen=True)
class _Plan:
    """What a call of `study` asks for, once it has been checked."""

    title: str
    entries: Sequence[Entry]  # of the grid
    chosen: Sequence[Entry]
    script: Path
    about: Mapping[str, Any]
    folder: Path
    words: Sequence[str]  # of the command line, but for what chooses the entries

    @property
    def runs(self) -> Path:
        return self.folder / 'runs'

    def line(self, entry: Entry) -> list[str]:
        """Words of the command line that run an entry."""
        return ['study', *self.words, '--only', str(entry)]


def study(
    grid: str | Path,
    *,
    script: str | Path | None = None,
    data_dir: str | Path | None = None,
    corrupted_dir: str | Path | None = None,
    jobs: int | None = None,
    slurm: Mapping[str, str] | None = None,
    against: str | None = None,
    only: Sequence[str] = (),
    output: str | Path | None = None,
) -> Study:
    """Train a grid of recipes with timm's train.py, measure each, and write tables, a figure and JSON.

    What is finished is kept: the same call goes on after whatever stopped it. Calls at the same time, in processes or
    on machines that see the same folder, share the work: each run is done by one of them.

    Args:
        grid: YAML file, as `grid.read_grid` says.
        script: timm's train.py; that of TIMM_TRAIN_SCRIPT if None.
        data_dir: Images, in place of the grid's.
        corrupted_dir: Corrupted test images likewise.
        jobs: Runs at once: 1 if None, and with `slurm` as many as the cluster gives. More than one needs submitit.
        slurm: Flags of sbatch by name, such as {'partition': 'gpu', 'gpus': '1', 'time': '4:00:00'}, to run each as a
            job of SLURM, with submitit.
        against: Row that differences are shown to, in place of the same recipe without molly.
        only: Rows such as 'plain+molly', or 'plain+molly/0' for one seed; all if empty.
        output: Folder; output/study/ and the name of the grid if None.

    Raises:
        UserError: What has to be changed, before anything is trained.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f'jobs must be 1 or more, got {jobs}')
    plan = _plan(grid, script, data_dir, corrupted_dir, only, output)
    if against and against not in {entry.row for entry in plan.entries}:
        raise UserError(f'against {against}: the grid has no such row')
    make_folder(plan.folder)
    for entry in plan.entries:
        known(entry, plan.runs / str(entry), plan.about)  # refuses before anything is trained
    ended = kept(plan.chosen, plan.runs, plan.about)
    todo = [entry for entry in plan.chosen if entry not in ended]
    engine = _engine(plan, jobs, slurm) if todo else None
    if engine:
        lines = {entry: [sys.executable, '-m', 'timm_molly', *plan.line(entry)] for entry in todo}
        ended |= run_jobs(lines, plan.runs, plan.about, engine)
    elif todo:
        ended |= run_all(todo, plan.runs, plan.script, plan.about)
    with locked(plan.folder / '.lock'):
        every = {e: ended.get(e) or known(e, plan.runs / str(e), plan.about) for e in plan.entries}
        shown = {entry: result for entry, result in every.items() if result}
        collected = results.collect(plan.title, shown, plan.runs, plan.about)
        names = results.write(collected, plan.folder)
        names += results.write(collected, plan.folder, against) if against else []
    finished = all(ended[entry]['status'] == 'finished' for entry in plan.chosen)
    return Study(plan.title, results.tables(collected, 'text', against), tuple(names), plan.folder, finished)


def lines(
    grid: str | Path,
    *,
    script: str | Path | None = None,
    data_dir: str | Path | None = None,
    corrupted_dir: str | Path | None = None,
    only: Sequence[str] = (),
    output: str | Path | None = None,
) -> list[str]:
    """Return the lines of a shell that do the runs of a study which have no figures yet, for a scheduler.

    They may be run in any order, at the same time, and again. `study` then writes the tables.

    Args:
        grid: This and the others as of `study`.
        script: train.py.
        data_dir: Images.
        corrupted_dir: Corrupted test images.
        only: Rows or single runs.
        output: Folder.

    Raises:
        UserError: As `study`.
    """
    plan = _plan(grid, script, data_dir, corrupted_dir, only, output)
    ended = kept(plan.chosen, plan.runs, plan.about)
    return [shlex.join(['timm-molly', *plan.line(entry)]) for entry in plan.chosen if entry not in ended]


def _plan(
    grid: str | Path,
    script: str | Path | None,
    data_dir: str | Path | None,
    corrupted_dir: str | Path | None,
    only: Sequence[str],
    output: str | Path | None,
) -> _Plan:
    images = {'data_dir': data_dir, 'corrupted_dir': corrupted_dir}
    given = {key: str(value) for key, value in images.items() if value}
    path = Path(grid)
    found = read_grid(path, {key: value for key, value in given.items() if key == 'data_dir'}, given)
    chosen = choose(found.entries, only) if only else found.entries
    train = train_script(script)
    check_data(chosen)
    flags, about = ask(train)
    check_flags(chosen, flags, train)
    folder = Path(output or Path('output/study') / path.stem)
    words = [str(path), '--train-script', str(train), '--output', str(folder)]
    for key, value in given.items():
        words += [f'--{key.replace("_", "-")}', value]
    return _Plan(found.title, found.entries, chosen, train, about, folder, words)


def _engine(plan: _Plan, jobs: int | None, flags: Mapping[str, str] | None) -> Engine | None:
    """What runs jobs; None for this process."""
    folder = plan.folder / 'jobs' / '%j'
    if flags is not None:
        return slurm_engine(folder, flags, jobs)
    if jobs is None or jobs == 1:
        return None
    chosen = any(':' in str(entry.train.get('device')) for entry in plan.chosen)  # cuda:1, of all
    return local_engine(folder, jobs, share_gpus=not chosen)


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
                near = hint_beside(split['data_dir'])
                raise UserError(f'no such data folder: {split["data_dir"]}{near} (--data-dir, or data_dir in the grid)')
            if not split['dataset']:
                open_dataset('RGB', name='', root=split['data_dir'], split=split['split'], is_training=False)
        if (key := str(flags := {**own, **validate})) not in checked:
            checked.add(key)
            measure.check(train, flags)
