"""Running the entries of a grid one after the other, each finished one kept, shared with other such processes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from timm_molly.files import locked, try_lock
from timm_molly.progress import bar
from timm_molly.study.grid import Entry
from timm_molly.study.run import epochs, known, moved, run, say

Result = dict[str, Any]
log = logging.getLogger(__name__)


def kept(entries: Collection[Entry], output: Path, about: Mapping[str, Any]) -> dict[Entry, Result]:
    """Return how those entries ended that need not be run again, and note how many they are.

    Raises:
        UserError: A folder holds another training.
    """
    results = {entry: known(entry, output / str(entry), about) for entry in entries}
    found = {entry: result for entry, result in results.items() if result and result['status'] != 'failed'}
    if found:
        log.info('%d of %d runs are there already', len(found), len(entries))
    for line in dict.fromkeys(line for entry in found for line in moved(entry, output / str(entry))):
        log.info(line)
    return found


def run_all(todo: Sequence[Entry], output: Path, train_py: Path, about: Mapping[str, Any]) -> dict[Entry, Result]:
    """Run entries, and return how each ended.

    Other processes may do the same at the same time: each entry is run by one of them, and all return the same.

    Args:
        todo: What to run, in this order.
        output: Folder of the runs.
        train_py: timm's train.py.
        about: What to know it by, of `ask`.

    Returns:
        For each entry what `run` returns.

    Raises:
        UserError: A folder holds another training, or the study cannot write its own files.
    """
    before = {entry: known(entry, output / str(entry), about) for entry in todo}
    results = {}
    with Progress(todo, output) as progress:
        for entry in _free_ones_first(todo, output):
            folder = output / str(entry)
            found = known(entry, folder, about)
            if not found or found == before[entry]:  # no other process has run it since
                found = run(entry, folder, train_py, about, partial(progress.show, [entry]))
            results[entry] = found
            progress.end(entry, found)
    return {entry: results[entry] for entry in todo}


def _free_ones_first(entries: Iterable[Entry], output: Path) -> Iterator[Entry]:
    """Yield each entry while its lock is held; those that another process has when it has let go of them."""
    taken = []
    for entry in entries:
        lock = try_lock(output / str(entry) / '.lock')
        if lock is None:
            taken.append(entry)
            continue
        try:
            yield entry
        finally:
            lock.release()
    for entry in taken:
        with locked(output / str(entry) / '.lock'):
            yield entry


class Progress:
    """A bar over the epochs of what is to be run, and a line for each run that ends."""

    def __init__(self, todo: Iterable[Entry], output: Path) -> None:
        self.output = output
        self.ended = 0
        epochs = sum(entry.train['epochs'] for entry in todo)
        self.bar = bar(total=epochs, unit='epoch', smoothing=0.05)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def show(self, running: Collection[Entry], doing: str = '') -> None:
        """Show how far the runs are that are on their way."""
        done = [min(epochs(self.output / str(entry)), entry.train['epochs']) for entry in running]
        before, self.bar.n = self.bar.n, self.ended + sum(done)
        self.bar.set_postfix_str(f'{", ".join(map(str, running))} {doing}'.strip(), False)
        if self.bar.n != before or sys.stderr.isatty():  # a log grows by a line an epoch
            self.bar.refresh()

    def end(self, entry: Entry, result: Result) -> None:
        """Say how a run ended."""
        self.bar.write(f'{entry}: {say(result, self.output / str(entry))}', file=sys.stderr)
        self.ended += entry.train['epochs']
