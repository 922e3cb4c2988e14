"""Running the entries of a grid, some at once, each finished one kept."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import tqdm
import yaml

from timm_molly.files import write_text
from timm_molly.robustness import report
from timm_molly.study.child import NOT_FINITE, UNREADABLE
from timm_molly.study.grid import Entry, hint

PATHS = ('data_dir', 'corrupted_dir', 'class_map')  # that may be elsewhere on another machine
POLL = 0.5  # seconds
STATUS = ('finished', 'diverged', 'failed')
CHILD = [sys.executable, '-m', 'timm_molly.study.child']


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
        bad = {epoch: loss for epoch, loss in self.losses().items() if not math.isfinite(loss)}
        if self.command == 'train' and bad:
            self.stop()
            epoch, loss = next(iter(bad.items()))
            return self._result('diverged', f'the training loss became {loss} in epoch {epoch}')
        if code is None:
            return None
        if code and self.command == 'train':
            shutil.rmtree(self.folder / 'train', ignore_errors=True)  # on a full disk the others need the space
            return self._result('failed', f'train.py {self._why(code)}')
        if code:
            if code == UNREADABLE:
                (self.folder / 'trained.json').unlink()  # so that the next start trains it again
            if code > 0 and (self.folder / 'report').exists():
                shutil.rmtree(self.folder / 'report')  # of what may have been other images, or other packages
            return self._result('diverged' if code == NOT_FINITE else 'failed', f'validate {self._why(code)}')
        if self.command == 'train':
            write_text(self.folder / 'trained.json', json.dumps({'training_seconds': round(self.seconds())}))
            self._launch('measure')
            return None
        try:
            made = report.read(self.folder / 'report')
        except ValueError as error:
            return self._result('failed', str(error))
        if made['not_finite']:
            return self._result('diverged', f'logits that are not finite in {", ".join(made["not_finite"])}')
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
        write_text(self.folder / 'result.json', json.dumps(result, indent=1) + '\n')
        return result


def run(
    entries: Sequence[Entry], output: Path, script: Path, about: Mapping[str, Any], jobs: int
) -> dict[Entry, dict[str, Any]]:
    """Run what is not finished yet, and return how each entry ended.

    Args:
        entries: What to run, in this order.
        output: Folder of the runs.
        script: train.py.
        about: What to know it by, of `ask`.
        jobs: How many at once.

    Returns:
        For each entry 'status': 'finished', 'diverged' (kept as well: it would diverge again), or 'failed' (tried
        again by the next start), with its 'reason', and 'training_seconds' where it was trained.

    Raises:
        ValueError: A folder holds another training.
        OSError: The study cannot write its own files.
    """
    earlier = {entry: known(entry, output / str(entry), about) for entry in entries}
    results = {entry: result for entry, result in earlier.items() if result and result['status'] != 'failed'}
    todo = [entry for entry in entries if entry not in results]
    for entry in todo:
        claim(entry, output / str(entry), about)
    chosen = any(':' in str(entry.train.get('device')) for entry in entries)  # cuda:1, of all
    devices = [] if chosen else visible_devices(jobs)
    free = list(range(jobs))
    running: dict[int, Running] = {}
    epochs = sum(entry.train['epochs'] for entry in todo)
    with tqdm.tqdm(total=epochs, unit='epoch', dynamic_ncols=True, mininterval=1, smoothing=0.05) as progress:
        if results:
            progress.write(f'{len(results)} of {len(entries)} runs are there already', file=sys.stderr)
        for line in dict.fromkeys(line for entry in results for line in moved(entry, output / str(entry))):
            progress.write(line, file=sys.stderr)
        done = shown = 0
        try:
            while todo or running:
                while todo and free:
                    entry, slot = todo.pop(0), free.pop(0)
                    environment = {'CUDA_VISIBLE_DEVICES': devices[slot % len(devices)]} if devices else {}
                    environment |= {'OMP_NUM_THREADS': str(entry.threads)} if entry.threads else {}
                    environment |= beside(script)
                    running[slot] = Running(entry, output / str(entry), script, environment)
                for slot, each in list(running.items()):
                    result = each.poll()
                    if result is None:
                        continue
                    results[each.entry] = result
                    progress.write(f'{each.entry}: {say(result, output / str(each.entry))}', file=sys.stderr)
                    each.close()
                    done += each.epochs
                    free.append(slot)
                    del running[slot]
                progress.n = done + sum(each.epoch() for each in running.values())
                progress.set_postfix_str(', '.join(f'{each.entry} {each.command}' for each in running.values()), False)
                if progress.n != shown or sys.stderr.isatty():  # a log grows by a line an epoch
                    progress.refresh()
                    shown = progress.n
                if running:
                    time.sleep(POLL)
        finally:
            for each in running.values():
                each.stop()
                each.close()
    return {entry: results[entry] for entry in entries}


def known(entry: Entry, folder: Path, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how an entry ended if its folder says so, None where it has to be run, or measured otherwise.

    Raises:
        ValueError: The folder holds another training.
    """
    path = folder / 'settings.json'
    if not path.is_file():
        if (folder / 'train').exists():
            raise ValueError(
                f'{folder} holds a training but not its {path.name}: delete it, or choose another --output'
            )
        return None
    try:
        found = _elsewhere(json.loads(path.read_text(encoding='utf-8')))
        wanted = _elsewhere(settings(entry, about))
        again = report.differences(found.pop('validate'), wanted.pop('validate'))
        different = report.differences(found, wanted)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f'{path} is damaged ({error}): delete {folder}') from None
    if different:
        raise ValueError(
            f'{folder} holds another training ({"; ".join(different)}): delete it, or choose another --output'
        )
    if again:
        return None
    try:
        result = json.loads((folder / 'result.json').read_text(encoding='utf-8'))
        if result['status'] == 'finished':
            report.read(folder / 'report')
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
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'result.json').unlink(missing_ok=True)
    wanted = settings(entry, about)
    path = folder / 'settings.json'
    before = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else wanted
    if before['validate'] != wanted['validate'] and (folder / 'report').exists():
        shutil.rmtree(folder / 'report')
    write_text(folder / 'config.yaml', yaml.safe_dump(wanted['train']))
    write_text(path, json.dumps(wanted, indent=1) + '\n')


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
    made = report.read(folder / 'report')
    parts = {'clean': made['clean'], 'corrupted': made['summary']['mean']}
    return ', '.join(
        f'{name} error {100 * of["error"]:.1f} %, NLL {of["nll"]:.3f}, ECE {of["ece"]:.3f}'
        for name, of in parts.items()
        if of and of['error'] is not None
    )


def visible_devices(jobs: int) -> list[str]:
    """GPUs to share the jobs among, by their names for CUDA_VISIBLE_DEVICES; none where there is one or none."""
    if jobs < 2:
        return []
    named = os.environ.get('CUDA_VISIBLE_DEVICES')
    if named is not None:
        names = [name.strip() for name in named.split(',') if name.strip()]
    else:
        import torch

        names = [str(i) for i in range(torch.cuda.device_count())]
    return names if len(names) > 1 else []


def beside(script: Path) -> dict[str, str]:
    """The environment in which a process finds what is beside the script, a checkout of timm, as the script does."""
    paths = [str(script.resolve().parent), os.environ.get('PYTHONPATH')]
    return {'PYTHONPATH': os.pathsep.join(path for path in paths if path)}


def ask(script: Path) -> tuple[set[str], dict[str, Any]]:
    """Ask a train script what flags it has, by their names in a --config file.

    Returns:
        The flags; and what to know the script by, its sha256 and versions of timm and others.

    Raises:
        ValueError: It does not answer.
    """
    environment = {**os.environ, **beside(script), 'COLUMNS': '100'}
    asked = subprocess.run(
        [*CHILD, 'about', str(script)], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment
    )
    found = {name.replace('-', '_') for name in re.findall(r'(?<![\w-])--([A-Za-z][\w-]*)', asked.stdout)}
    if asked.returncode or not {'data_dir', 'model', 'aa', 'experiment'} <= found:
        last = (asked.stderr.strip().splitlines() or ['it has no --data-dir, --model, --aa, --experiment'])[-1]
        raise ValueError(f'{script} is not a train script of timm that works here: {last}')
    versions = {**report.packages(), 'timm': asked.stdout.strip().splitlines()[-1]}
    about = {name: versions.get(name) for name in ('timm', 'timm-molly', 'torch', 'torchvision')}
    return found, {'sha256': hashlib.sha256(script.read_bytes()).hexdigest(), **about}


def check_flags(entries: Iterable[Entry], known: set[str], script: Path) -> None:
    """Raise ValueError where an entry has a flag that the script does not know, which train.py would pass over."""
    for entry in entries:
        for name in entry.train:
            if name not in known:
                flag = f'--{name.replace("_", "-")}'
                raise ValueError(f'recipe {entry.recipe}: {script} has no {flag}{hint(name, known)}')
