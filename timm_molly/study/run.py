"""One run of a study: its folder, and the processes that train and measure it."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import yaml

from timm_molly.errors import UserError
from timm_molly.files import make_folder, write_json, write_text
from timm_molly.robustness.report import CLEAN, Report, differences
from timm_molly.study import NOT_FINITE, UNREADABLE, script
from timm_molly.study.grid import Entry

PATHS = ('data_dir', 'corrupted_dir', 'class_map')  # that may be elsewhere on another machine
STATUS = ('finished', 'diverged', 'failed')
POLL = 0.5  # seconds


def run(
    entry: Entry,
    folder: Path,
    train_py: Path,
    about: Mapping[str, Any],
    show: Callable[[str], None] = lambda doing: None,
) -> dict[str, Any]:
    """Train an entry, then measure it, each by a process of its own.

    Everything is in the folder of the entry, and what is finished there is not done again:

        settings.json   what the entry is, and with what script and packages
        config.yaml     flags of train.py
        log.txt         what train.py and validate said
        train/          what train.py left; trained.json once it has finished
        report/         of timm-molly validate
        result.json     how it ended

    Args:
        entry: What to run.
        folder: Its folder.
        train_py: timm's train.py.
        about: What to know it by, of `ask`.
        show: Called with what is being done, 'train' or 'measure', twice a second.

    Returns:
        'status': 'finished', 'diverged' (kept as well: it would diverge again), or 'failed' (tried again by the next
        start), with its 'reason', and 'training_seconds' where it was trained.

    Raises:
        UserError: The study cannot write its own files.
    """
    claim(entry, folder, about)
    environment = {
        **os.environ,
        **({'OMP_NUM_THREADS': str(entry.threads)} if entry.threads else {}),
        **script.beside(train_py),
    }
    with (folder / 'log.txt').open('ab') as log:
        start = log.tell()
        if not (folder / 'trained.json').is_file():
            for name in ('train', 'report'):
                if (folder / name).exists():
                    shutil.rmtree(folder / name)
            with _child(log, environment, 'train', str(folder), str(train_py)) as process:
                failure = _train(process, folder, start, show)
            if failure:
                return _result(folder, *failure)
        with _child(log, environment, 'measure', str(folder)) as process:
            while process.poll() is None:
                show('measure')
                time.sleep(POLL)
        return _result(folder, *_measured(process.returncode, folder, start))


@contextlib.contextmanager
def _child(log: IO[bytes], environment: Mapping[str, str], *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that ends with the block, or with this process, however that ended."""
    # Nobody writes to this pipe: it is closed when this process ends, which ends the child.
    with subprocess.Popen(
        [*script.CHILD, *words], stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()  # its loader's workers then end by themselves


def _train(
    process: subprocess.Popen[bytes], folder: Path, start: int, show: Callable[[str], None]
) -> tuple[str, str] | None:
    """Wait for a training; return a status and a reason where it has not ended well."""
    begun = time.monotonic()
    while True:
        code = process.poll()  # before the losses, which are whole only once it has ended
        losses = _losses(folder)
        bad = {epoch: loss for epoch, loss in losses.items() if not math.isfinite(loss)}
        if bad:
            epoch, loss = next(iter(bad.items()))
            return 'diverged', f'the training loss became {loss} in epoch {epoch}'
        if code is not None:
            break
        show('train')
        time.sleep(POLL)
    if code:
        shutil.rmtree(folder / 'train', ignore_errors=True)  # on a full disk the others need the space
        return 'failed', f'train.py {_why(code, folder, start)}'
    write_text(folder / 'trained.json', json.dumps({'training_seconds': round(time.monotonic() - begun)}))
    return None


def _measured(code: int, folder: Path, start: int) -> tuple[str, str | None]:
    """Return the status, and a reason, of a measurement that ended with an exit code."""
    if code:
        if code == UNREADABLE:
            (folder / 'trained.json').unlink()  # so that the next start trains it again
        if code > 0 and (folder / 'report').exists():
            shutil.rmtree(folder / 'report')  # of what may have been other images, or other packages
        return 'diverged' if code == NOT_FINITE else 'failed', f'validate {_why(code, folder, start)}'
    try:
        report = Report.load(folder / 'report')
    except UserError as error:
        return 'failed', str(error)
    if report.not_finite:
        return 'diverged', f'logits that are not finite in {", ".join(report.not_finite)}'
    return 'finished', None


def epochs(folder: Path) -> int:
    """Number of epochs of a training that are finished, as far as it is known."""
    return 1 + max(_losses(folder), default=-1)


def _losses(folder: Path) -> dict[int, float]:
    """Training loss by epoch, of those that train.py has written down."""
    try:
        with (folder / 'train' / 'summary.csv').open(encoding='utf-8', newline='') as file:
            rows = [row for row in csv.DictReader(file) if row.get('train_loss')]
            return {int(row['epoch']): float(row['train_loss']) for row in rows}
    except (OSError, ValueError, KeyError):  # not there yet, or a line is being written
        return {}


def _why(code: int, folder: Path, start: int) -> str:
    """Say why a process ended, by the last line of what it wrote from the byte `start` on."""
    with (folder / 'log.txt').open('rb') as file:
        file.seek(start)
        lines = file.read().decode(errors='replace').splitlines()
    said = next((line.strip() for line in reversed(lines) if line.strip()), 'nothing in its log')
    end = f'was ended by signal {-code}' if code < 0 else f'ended with code {code}'
    return f'{end}: {said[-300:]}'


def _result(folder: Path, status: str, reason: str | None) -> dict[str, Any]:
    result: dict[str, Any] = {'status': status, 'reason': reason}
    with contextlib.suppress(OSError, ValueError):
        result |= json.loads((folder / 'trained.json').read_text())
    write_json(folder / 'result.json', result)
    return result


def known(entry: Entry, folder: Path, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how an entry ended if its folder says so, None where it has to be run, or measured otherwise.

    Raises:
        UserError: The folder holds another training.
    """
    path = folder / 'settings.json'
    if not path.is_file():
        if (folder / 'train').exists():
            raise UserError(f'{folder} holds a training but not its {path.name}: delete it, or choose another --output')
        return None
    try:
        found = _elsewhere(json.loads(path.read_text(encoding='utf-8')))
        wanted = _elsewhere(settings(entry, about))
        again = differences(found.pop('validate'), wanted.pop('validate'))
        different = differences(found, wanted)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f'{path} is damaged ({error}): delete {folder}') from None
    if different:
        raise UserError(
            f'{folder} holds another training ({"; ".join(different)}): delete it, or choose another --output'
        )
    if again:
        return None
    try:
        result = json.loads((folder / 'result.json').read_text(encoding='utf-8'))
        if result['status'] == 'finished':
            Report.load(folder / 'report')
        return dict(result) if result['status'] in STATUS else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def moved(entry: Entry, folder: Path) -> list[str]:
    """Say which images of a finished entry are elsewhere today, because that they are the same ones is not checked."""
    before = json.loads((folder / 'settings.json').read_text(encoding='utf-8'))
    return [
        f'{name} was {before[part][name]} and is {flags[name]}: taken to be the same'
        for part, flags in (('train', entry.train), ('validate', entry.validate))
        for name in PATHS
        if flags.get(name) != before[part].get(name)
    ]


def claim(entry: Entry, folder: Path, about: Mapping[str, Any]) -> None:
    """Write into the folder of an entry what it is, and clear away what was measured otherwise."""
    make_folder(folder)
    (folder / 'result.json').unlink(missing_ok=True)
    wanted = settings(entry, about)
    path = folder / 'settings.json'
    before = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else wanted
    if before['validate'] != wanted['validate'] and (folder / 'report').exists():
        shutil.rmtree(folder / 'report')
    write_text(folder / 'config.yaml', yaml.safe_dump(wanted['train']))
    write_json(path, wanted)


def settings(entry: Entry, about: Mapping[str, Any]) -> dict[str, Any]:
    """All that the figures of an entry depend on, but for the machine."""
    found = {'train': entry.train, 'validate': entry.validate, 'threads': entry.threads, 'script': about}
    return dict(json.loads(json.dumps(found)))


def _elsewhere(about: Mapping[str, Any]) -> dict[str, Any]:
    """The same with paths as their last names, because the images may be elsewhere today."""
    return {
        key: {name: Path(value).name if name in PATHS and value else value for name, value in part.items()}
        if isinstance(part, dict)
        else part
        for key, part in about.items()
    }


def say(result: Mapping[str, Any], folder: Path) -> str:
    """Say in a line how an entry ended."""
    if result['status'] != 'finished':
        again = f'; to try it again, delete {folder}' if result['status'] == 'diverged' else ''
        return f'{result["status"]}: {result["reason"]} (see {folder / "log.txt"}{again})'
    report = Report.load(folder / 'report')
    parts = {'clean': report.cells.get(CLEAN), 'corrupted': report.mean}
    return ', '.join(
        f'{name} error {100 * of.error:.1f} %, NLL {of.nll:.3f}, ECE {of.ece:.3f}'
        for name, of in parts.items()
        if of and of.error == of.error
    )
