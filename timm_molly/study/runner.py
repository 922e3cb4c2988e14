"""Running the entries of a grid, some at once, each finished one kept."""

from __future__ import annotations

import contextlib
import csv
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
from timm_molly.study.grid import Entry

PATHS = ('data_dir', 'corrupted_dir', 'class_map')  # that may be elsewhere on another machine
POLL = 0.5  # seconds
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
        self.process: subprocess.Popen[bytes] | None = None
        self.start = time.monotonic()
        self.epochs = entry.train.get('epochs') or 300
        if (folder / 'trained.json').is_file():
            self._launch('measure')
        else:
            shutil.rmtree(folder / 'train', ignore_errors=True)
            shutil.rmtree(folder / 'report', ignore_errors=True)
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
        losses = self.losses()
        if self.command == 'train' and not all(map(math.isfinite, losses)):
            self.stop()
            epoch = next(i for i, loss in enumerate(losses) if not math.isfinite(loss))
            return self._result('diverged', f'the training loss became {losses[epoch]} in epoch {epoch}')
        code = self.process.poll()
        if code is None:
            return None
        if code:
            return self._result('failed', f'{"train.py" if self.command == "train" else "validate"} {self._why(code)}')
        if self.command == 'train':
            if not (self.folder / 'train' / 'last.pth.tar').is_file():
                return self._result('failed', 'train.py ended without a checkpoint, train/last.pth.tar')
            write_text(
                self.folder / 'trained.json', json.dumps({'training_seconds': round(time.monotonic() - self.start)})
            )
            self._launch('measure')
            return None
        try:
            made = report.read(self.folder / 'report')
        except ValueError as error:
            return self._result('failed', str(error))
        if made['not_finite']:
            return self._result('diverged', f'logits that are not finite in {", ".join(made["not_finite"])}')
        return self._result('finished', None)

    def losses(self) -> list[float]:
        """Training loss of each epoch that is finished."""
        try:
            with (self.folder / 'train' / 'summary.csv').open(encoding='utf-8', newline='') as file:
                return [float(row['train_loss']) for row in csv.DictReader(file) if row.get('train_loss')]
        except (OSError, ValueError, KeyError):  # not there yet, or a line is being written
            return []

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
        lines = (self.folder / 'log.txt').read_text(encoding='utf-8', errors='replace').strip().splitlines()
        said = next((line.strip() for line in reversed(lines) if line.strip()), 'nothing in its log')
        end = f'was ended by signal {-code}' if code < 0 else f'ended with code {code}'
        return f'{end}: {said[-300:]}'

    def _result(self, status: str, reason: str | None) -> dict[str, Any]:
        result: dict[str, Any] = {'status': status, 'reason': reason}
        with contextlib.suppress(OSError, ValueError):
            result |= json.loads((self.folder / 'trained.json').read_text())
        write_text(self.folder / 'result.json', json.dumps(result, indent=1) + '\n')
        return result


def run(entries: Sequence[Entry], output: Path, script: Path, jobs: int) -> dict[Entry, dict[str, Any]]:
    """Run what is not finished yet, and return how each entry ended.

    Args:
        entries: What to run, in this order.
        output: Folder of the study.
        script: train.py.
        jobs: How many at once.

    Returns:
        For each entry 'status': 'finished', 'diverged' (kept as well: it would diverge again), or 'failed' (tried
        again by the next start), with its 'reason'.

    Raises:
        ValueError: A folder holds another training.
        OSError: The study cannot write its own files.
    """
    results = {entry: result for entry in entries if (result := claim(entry, output / str(entry)))}
    todo = [entry for entry in entries if entry not in results]
    devices = visible_devices(jobs)
    free = list(range(jobs))
    running: dict[int, Running] = {}
    epochs = sum(entry.train.get('epochs') or 300 for entry in todo)
    with tqdm.tqdm(total=epochs, unit='epoch', dynamic_ncols=True, mininterval=1, smoothing=0.05) as progress:
        if results:
            progress.write(f'{len(results)} of {len(entries)} runs are there already', file=sys.stderr)
        done = shown = 0
        try:
            while todo or running:
                while todo and free:
                    entry, slot = todo.pop(0), free.pop(0)
                    environment = {'CUDA_VISIBLE_DEVICES': devices[slot % len(devices)]} if devices else {}
                    environment |= {'OMP_NUM_THREADS': str(entry.threads)} if entry.threads else {}
                    environment['PYTHONPATH'] = os.pathsep.join(
                        filter(None, [str(script.resolve().parent), os.environ.get('PYTHONPATH')])
                    )
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
                progress.n = done + sum(min(len(each.losses()), each.epochs) for each in running.values())
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


def claim(entry: Entry, folder: Path) -> dict[str, Any] | None:
    """Take the folder of an entry; return its result if it is finished.

    Raises:
        ValueError: It holds another training.
    """
    path = folder / 'settings.json'
    if path.is_file():
        return known(entry, folder)
    if (folder / 'train').exists():
        raise ValueError(f'{folder} holds a training but not its settings.json: delete it, or choose another --output')
    folder.mkdir(parents=True, exist_ok=True)
    wanted = settings(entry)
    write_text(folder / 'config.yaml', yaml.safe_dump(wanted['train']))
    write_text(path, json.dumps(wanted, indent=1) + '\n')
    return None


def known(entry: Entry, folder: Path) -> dict[str, Any] | None:
    """Return the result of an entry if its folder has one.

    Raises:
        ValueError: The folder holds another training.
    """
    path = folder / 'settings.json'
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
        different = report.differences(_elsewhere(found), _elsewhere(settings(entry)))
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f'{path} is damaged ({error}): delete {folder}') from None
    if different:
        raise ValueError(
            f'{folder} holds another training ({"; ".join(different)}): delete it, or choose another --output'
        )
    return read_result(folder)


def settings(entry: Entry) -> dict[str, Any]:
    """All that the figures of an entry depend on, but for the machine."""
    about = {'train': entry.train, 'validate': entry.validate, 'threads': entry.threads, 'packages': packages()}
    return dict(json.loads(json.dumps(about)))


def _elsewhere(about: Mapping[str, Any]) -> dict[str, Any]:
    """The same with paths as their last names, because the images may be elsewhere today."""
    return {
        key: {name: Path(value).name if name in PATHS else value for name, value in part.items()}
        if isinstance(part, dict)
        else part
        for key, part in about.items()
    }


def read_result(folder: Path) -> dict[str, Any] | None:
    """Read how an entry ended, None where it has to be run."""
    try:
        result = json.loads((folder / 'result.json').read_text(encoding='utf-8'))
        if result['status'] == 'finished':
            report.read(folder / 'report')
        return dict(result) if result['status'] in ('finished', 'diverged') else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def say(result: Mapping[str, Any], folder: Path) -> str:
    """Say in a line how an entry ended."""
    if result['status'] != 'finished':
        return f'{result["status"]}: {result["reason"]} (see {folder / "log.txt"})'
    made = report.read(folder / 'report')
    parts = {'clean': made['clean'], 'corrupted': made['summary']['mean']}
    return ', '.join(
        f'{name} error {100 * of["error"]:.1f} %, NLL {of["nll"]:.3f}, ECE {of["ece"]:.3f}'
        for name, of in parts.items()
        if of
    )


def packages() -> dict[str, Any]:
    """Versions that figures depend on."""
    found = report.packages()
    return {name: found[name] for name in ('torch', 'torchvision', 'timm', 'timm-molly') if name in found}


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


def options(script: Path) -> set[str]:
    """Ask a train script which flags it has, by their names in a --config file.

    Raises:
        ValueError: It does not answer.
    """
    environment = {**os.environ, 'COLUMNS': '100'}
    asked = subprocess.run(
        [sys.executable, str(script), '--help'],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
    )
    found = {name.replace('-', '_') for name in re.findall(r'(?<![\w-])--([A-Za-z][\w-]*)', asked.stdout)}
    if asked.returncode or not {'data_dir', 'model', 'aa', 'experiment'} <= found:
        last = (asked.stderr.strip().splitlines() or ['it has no --data-dir, --model, --aa, --experiment'])[-1]
        raise ValueError(f'{script} is not a train script of timm that works here: {last}')
    return found


def check_flags(entries: Iterable[Entry], known: set[str], script: Path) -> None:
    """Raise ValueError where an entry has a flag that the script does not know, which train.py would pass over."""
    import difflib

    for entry in entries:
        for name in entry.train:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f'; did you mean {near[0]}?' if near else ''
                raise ValueError(f'recipe {entry.recipe}: {script} has no --{name.replace("_", "-")}{hint}')
