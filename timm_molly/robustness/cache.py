"""Finished cells of a measurement in a folder, so that it can go on where it stopped, and processes can share it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from timm_molly.classifier import Classifier
from timm_molly.errors import UserError
from timm_molly.files import locked, make_folder, read_json, try_lock, write_json
from timm_molly.plain import from_plain
from timm_molly.robustness.conditions import Condition
from timm_molly.robustness.report import Cell, Place, Temperatures, differences, plain

SETTINGS = 'settings.json'
CHOICE = ('corruptions', 'severities')  # of cells, none of which depends on which others are measured


class Store:
    """Finished cells, in a folder where there is one, so that an interrupted measurement goes on where it stopped.

    Several processes may have the same folder: each cell is measured by the one that has its lock, which ends with the
    process.

    Args:
        folder: The folder, or None.
        settings: Plain values that tell this measurement from others. Others may be chosen of `CHOICE`.
        classifier: What is measured.

    Raises:
        UserError: The folder holds another measurement, or cannot be written.
    """

    def __init__(self, folder: str | Path | None, settings: dict[str, Any], classifier: Classifier) -> None:
        self.cells: dict[Place, Cell] = {}
        self.claimed: dict[Place, FileLock | None] = {}
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            with locked(self.folder / 'locks' / 'settings'):
                self._claim(self.folder, settings, probe(classifier))
            make_folder(self.folder / 'cells')

    def load(self, condition: Condition) -> bool:
        """Tell whether a cell is there; one that is damaged, or of before its ranking was measured, is not."""
        if self.folder is None or condition.place in self.cells:
            return condition.place in self.cells
        try:
            path = self._path(condition)
            cell = Cell.from_dict(read_json(path), path)
        except UserError:
            return False
        if cell.bins is not None and math.isnan(cell.adaptive_ece):
            return False
        self.cells[condition.place] = cell
        return True

    def claim(self, condition: Condition) -> bool:
        """Take a condition, unless it is measured or another process has it."""
        if self.folder is None:
            self.claimed[condition.place] = None
            return True
        lock = try_lock(self.folder / 'locks' / self._path(condition).stem)
        if lock is None:
            return False
        if self.load(condition):
            lock.release()
            return False
        self.claimed[condition.place] = lock
        return True

    def keep(self, condition: Condition, cell: Cell) -> None:
        """Keep a finished cell, and give its lock back."""
        self.cells[condition.place] = cell
        if self.folder is not None:
            write_json(self._path(condition), cell.to_dict())
        self._give_back(condition.place)

    def close(self) -> None:
        """Give locks of conditions that were not finished back."""
        for place in [*self.claimed]:
            self._give_back(place)

    def clear_locks(self) -> None:
        """Remove the files of locks, which nobody needs once every cell is there."""
        if self.folder is not None:
            shutil.rmtree(self.folder / 'locks', ignore_errors=True)

    def _give_back(self, place: Place) -> None:
        lock = self.claimed.pop(place)
        if lock is not None:
            lock.release()

    def temperatures(self, fit: Callable[[], Temperatures]) -> Temperatures:
        """Return the temperatures that are kept, or fit and keep them."""
        if self.folder is None:
            return fit()
        path = self.folder / 'temperatures.json'
        with locked(self.folder / 'locks' / 'temperatures'):
            try:
                return from_plain(Temperatures, read_json(path), path)
            except UserError:  # not there yet, or damaged
                found = fit()
                write_json(path, plain(found))
                return found

    def _path(self, condition: Condition) -> Path:
        assert self.folder is not None
        return self.folder / 'cells' / f'{condition}.json'.replace(' ', '-')

    @staticmethod
    def _claim(folder: Path, settings: dict[str, Any], answer: list[float]) -> None:
        """Take a folder for a measurement, or go on with it if that has the same settings."""
        path, settings = make_folder(folder) / SETTINGS, _without_choice(settings)
        if not path.is_file():
            if (folder / 'cells').exists():
                raise UserError(f'{folder} holds cells of a run but not its settings.json: choose another --output')
            write_json(path, {**settings, 'answer': answer})
            return
        try:
            found = _without_choice(read_json(path))
            # A network of other code with the same weights; earlier versions did not note it.
            before = np.asarray(found.pop('answer', answer), float)
            size = max(map(abs, answer), default=0.0)  # devices differ in the last digits
            same = before.shape == (len(answer),) and np.allclose(before, answer, rtol=0, atol=0.01 * size)
            different = differences(found, settings) + ([] if same else ['model: its logits are others'])
        except (UserError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f'{path} is damaged ({error}): delete {folder}, or choose another --output') from None
        if ('calibrate' in found) != ('calibrate' in settings):
            how = 'with' if 'calibrate' in found else 'without'
            raise UserError(
                f'{folder} was measured {how} --calibrate, which is part of every cell: delete it, or choose another '
                '--output'
            )
        if different:
            raise UserError(
                f'{folder} holds another measurement (there and now: {"; ".join(different)}): delete it, or choose '
                'another --output'
            )


def _without_choice(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings less the choice of cells."""
    benchmark = {key: value for key, value in settings['benchmark'].items() if key not in CHOICE}
    return {**settings, 'benchmark': benchmark}


@torch.inference_mode()
def probe(classifier: Classifier) -> list[float]:
    """Return a few logits for an image of noise, by which a network is known again."""
    x = torch.randn(1, *classifier.input_size, generator=torch.Generator().manual_seed(0)).to(classifier.device)
    logits = classifier.model(x)[0, :8].double().nan_to_num()
    return [float(f'{value:.4g}') for value in logits.tolist()]
