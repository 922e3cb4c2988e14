"""Running the entries of a grid, some at once, each finished one kept."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tqdm

from timm_molly.study.grid import Entry
from timm_molly.study.run import Running, claim, known, moved, say
from timm_molly.study.script import beside

POLL = 0.5  # seconds


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
        UserError: A folder holds another training, or the study cannot write its own files.
    """
    earlier = {entry: known(entry, output / str(entry), about) for entry in entries}
    results = {entry: result for entry, result in earlier.items() if result and result['status'] != 'failed'}
    todo = [entry for entry in entries if entry not in results]
    for entry in todo:
        claim(entry, output / str(entry), about)
    epochs = sum(entry.train['epochs'] for entry in todo)
    with tqdm.tqdm(total=epochs, unit='epoch', dynamic_ncols=True, mininterval=1, smoothing=0.05) as progress:
        if results:
            progress.write(f'{len(results)} of {len(entries)} runs are there already', file=sys.stderr)
        for line in dict.fromkeys(line for entry in results for line in moved(entry, output / str(entry))):
            progress.write(line, file=sys.stderr)
        chosen = any(':' in str(entry.train.get('device')) for entry in entries)  # cuda:1, of all
        results |= _Loop(todo, output, script, jobs, [] if chosen else visible_devices(jobs), progress).run()
    return {entry: results[entry] for entry in entries}


class _Loop:
    """Starts runs where there is room, asks them how they are, and shows it."""

    def __init__(
        self, todo: Sequence[Entry], output: Path, script: Path, jobs: int, devices: Sequence[str], progress: Any
    ) -> None:
        self.todo, self.output, self.script = list(todo), output, script
        self.devices, self.progress = devices, progress
        self.free = list(range(jobs))
        self.running: dict[int, Running] = {}
        self.results: dict[Entry, dict[str, Any]] = {}
        self.epochs = 0  # of runs that have ended

    def run(self) -> dict[Entry, dict[str, Any]]:
        try:
            while self.todo or self.running:
                while self.todo and self.free:
                    self._start(self.todo.pop(0), self.free.pop(0))
                for slot, each in list(self.running.items()):
                    result = each.poll()
                    if result is not None:
                        self._end(slot, each, result)
                self._show()
                if self.running:
                    time.sleep(POLL)
        finally:
            for each in self.running.values():
                each.stop()
                each.close()
        return self.results

    def _start(self, entry: Entry, slot: int) -> None:
        environment = {'CUDA_VISIBLE_DEVICES': self.devices[slot % len(self.devices)]} if self.devices else {}
        environment |= {'OMP_NUM_THREADS': str(entry.threads)} if entry.threads else {}
        self.running[slot] = Running(entry, self.output / str(entry), self.script, environment | beside(self.script))

    def _end(self, slot: int, run: Running, result: dict[str, Any]) -> None:
        self.results[run.entry] = result
        self.progress.write(f'{run.entry}: {say(result, run.folder)}', file=sys.stderr)
        run.close()
        self.epochs += run.epochs
        self.free.append(slot)
        del self.running[slot]

    def _show(self) -> None:
        before, self.progress.n = self.progress.n, self.epochs + sum(each.epoch() for each in self.running.values())
        words = ', '.join(f'{each.entry} {each.command}' for each in self.running.values())
        self.progress.set_postfix_str(words, False)
        if self.progress.n != before or sys.stderr.isatty():  # a log grows by a line an epoch
            self.progress.refresh()


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
