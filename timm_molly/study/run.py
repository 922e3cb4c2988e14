"""One run of a study: its folder, and the processes that train and measure it."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import yaml

from timm_molly.errors import UserError
from timm_molly.files import make_folder, write_json, write_text
from timm_molly.robustness.report import CLEAN, Report, differences
from timm_molly.study import NOT_FINITE, UNREADABLE
from timm_molly.study.grid import Entry

PATHS = ('data_dir', 'corrupted_dir', 'class_map')  # that may be elsewhere on another machine
STATUS = ('finished', 'diverged', 'failed')
# The command line's, because a train script gets its arguments as a process does.
CHILD = [sys.executable, '-m', 'timm_molly.cli.child']


class Running:
    """One entry on its way: it is trained, then measured, each by a process of its own.

    Everything is in the folder of the entry, and what is finished there is not done again:

        settings.json   what the entry is, and with what script and packages
        config.yaml     flags of train.py
        log.txt         what train.py and validate said
        train/          what train.py left; trained.json once it has finished
        report/         of timm-molly validate
        result.json     how it ended
    """

    def __init__(self, entry: Entry, folder: Path, script: Path, environment: Mapping[str, str]) -> None:
        self.entry, self.folder, self.script = entry, folder, script
        self.environment = {**os.environ, **environment}
        self.log: IO[bytes] = (folder / 'log.txt').open('ab')
        self.log_start = self.log.tell()
        self.process: subprocess.Popen[bytes] | None = None
        self.start = time.monotonic()
        self.epochs = int(entry.train['epochs'])
        if (folder / 'trained.json').is_file():
            self._launch('measure')
        else:
            for name in ('train', 'report'):
                if (folder / name).exists():
                    shutil.rmtree(folder / name)
            self._launch('train', str(self.script))

    def _launch(self, command: str, *words: str) -> None:
        arguments = [*CHILD, command, str(self.folder), *words]
        self.command = command
        # Nobody writes to this pipe: it is closed when the study ends, which ends the child.
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=self.log, stderr=self.log, env=self.environment
        )

    def poll(self) -> dict[str, Any] | None:
        """Go on; return the result once there is one."""
        assert self.process is not None
        code = self.process.poll()  # before the losses, which are whole only once it has ended
        if self.command == 'train':
            return self._poll_training(code)
        return None if code is None else self._measured(code)

    def _poll_training(self, code: int | None) -> dict[str, Any] | None:
        bad = {epoch: loss for epoch, loss in self.losses().items() if not math.isfinite(loss)}
        if bad:
            self.stop()
            epoch, loss = next(iter(bad.items()))
            return self._result('diverged', f'the training loss became {loss} in epoch {epoch}')
        if code:
            shutil.rmtree(self.folder / 'train', ignore_errors=True)  # on a full disk the others need the space
            return self._result('failed', f'train.py {self._why(code)}')
        if code == 0:
            write_text(self.folder / 'trained.json', json.dumps({'training_seconds': round(self.seconds())}))
            self._launch('measure')
        return None

    def _measured(self, code: int) -> dict[str, Any]:
        if code:
            if code == UNREADABLE:
                (self.folder / 'trained.json').unlink()  # so that the next start trains it again
            if code > 0 and (self.folder / 'report').exists():
                shutil.rmtree(self.folder / 'report')  # of what may have been other images, or other packages
            return self._result('diverged' if code == NOT_FINITE else 'failed', f'validate {self._why(code)}')
        try:
            report = Report.load(self.folder / 'report')
        except UserError as error:
            return self._result('failed', str(error))
        if report.not_finite:
            return self._result('diverged', f'logits that are not finite in {", ".join(report.not_finite)}')
        return self._result('finished', None)

    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.start

    def losses(self) -> dict[int, float]:
        """Training loss by epoch, of those that train.py has written down."""
        try:
            with (self.folder / 'train' / 'summary.csv').open(encoding='utf-8', newline='') as file:
                rows = [row for row in csv.DictReader(file) if row.get('train_loss')]
                return {int(row['epoch']): float(row['train_loss']) for row in rows}
        except (OSError, ValueError, KeyError):  # not there yet, or a line is being written
            return {}

    def epoch(self) -> int:
        """Number of epochs that are finished, as far as it is known."""
        return min(1 + max(self.losses(), default=-1), self.epochs)

    def stop(self) -> None:
        """End the process, whose loader's workers then end by themselves."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Let go of files and pipes."""
        self.log.close()
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()

    def _why(self, code: int) -> str:
        """Say why a process ended, by its last line."""
        with (self.folder / 'log.txt').open('rb') as file:
            file.seek(self.log_start)
            lines = file.read().decode(errors='replace').splitlines()
        said = next((line.strip() for line in reversed(lines) if line.strip()), 'nothing in its log')
        end = f'was ended by signal {-code}' if code < 0 else f'ended with code {code}'
        return f'{end}: {said[-300:]}'

    def _result(self, status: str, reason: str | None) -> dict[str, Any]:
        result: dict[str, Any] = {'status': status, 'reason': reason}
        with contextlib.suppress(OSError, ValueError):
            result |= json.loads((self.folder / 'trained.json').read_text())
        write_json(self.folder / 'result.json', result)
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
