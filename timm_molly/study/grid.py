"""The grid of a study: a YAML file that says what is trained and how it is measured."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from timm_molly.config import MollyConfig, split_aa
from timm_molly.errors import UserError, hint
from timm_molly.plain import is_plain
from timm_molly.study.measure import FLAGS

KEYS = ('title', 'base', 'threads', 'train', 'validate', 'recipes', 'grid')
CROSS_KEYS = ('recipes', 'molly', 'seeds')
OWN = ('output', 'experiment', 'resume', 'seed', 'config')  # flags of train.py that a study sets itself
TEXT = ('data_dir', 'corrupted_dir', 'class_map', 'dataset', 'train_split', 'val_split', 'split', 'model')


@dataclass(frozen=True, eq=False)
class Entry:
    """One training of a grid, and its measurement.

    Attributes:
        recipe: Its name.
        molly: The aa string of mollification, None for without.
        seed: Of the training.
        train: Flags of train.py by their names in a --config file, `aa` and `seed` among them.
        validate: Flags of `timm-molly validate` by name.
        threads: Threads of PyTorch, None for as many as it takes.
    """

    recipe: str
    molly: str | None
    seed: int
    train: Mapping[str, Any]
    validate: Mapping[str, Any]
    threads: int | None

    @property
    def row(self) -> str:
        """The row of the table that it belongs to: the recipe, and molly's string where there is one."""
        return f'{self.recipe}+{self.molly}' if self.molly else self.recipe

    def __str__(self) -> str:
        return f'{self.row}/{self.seed}'


@dataclass(frozen=True)
class Grid:
    """What a file says."""

    title: str
    entries: list[Entry]


def read_grid(path: Path, train: Mapping[str, Any], validate: Mapping[str, Any]) -> Grid:
    """Read a grid.

    `title` heads the tables (default: the file's name). `train` holds flags of train.py for all, by their names in a
    --config file; `config` among them names such a file. `validate` holds flags of `timm-molly validate`, beside those
    that follow from the training. `threads` are PyTorch's in each run, so that a CPU with more cores gives the same
    figures. `recipes` maps names to the flags of train.py that each changes. `grid` is a list of crosses, each with
    `recipes` (default: all), `molly` (aa strings, `none` for without; default: none and molly) and `seeds` (default:
    0). `base` names another grid, of which this one changes what it says: `train`, `validate` and `recipes` flag by
    flag and name by name, the rest as a whole. `base` and `config` are named from this file's folder, images from the
    current one.

    Args:
        path: The file.
        train: Flags of train.py that come before those of the file.
        validate: Flags of `timm-molly validate` likewise; `data_dir` only where the file has one for it.

    Raises:
        UserError: It cannot be read, or does not make sense (where, and what is allowed).
    """
    found = _read(path)
    settings = {**_check_flags(f'{path}: train', found.get('train')), **train}
    measured = _measured(path, found.get('validate'), validate)
    threads, title = found.get('threads'), found.get('title', path.stem)
    if threads is not None and not _whole(threads, 1):
        raise UserError(f'{path}: threads must be a number from 1 on, got {threads!r}')
    recipes = _recipes(path, found.get('recipes'))
    crosses = found.get('grid')
    if not isinstance(crosses, list) or not crosses:
        raise UserError(f'{path}: grid must be a list with {", ".join(CROSS_KEYS)} each, got {crosses!r}')
    entries: dict[tuple[str, str | None, int], Entry] = {}
    for cross in crosses:
        for recipe, molly, seed in _cross(path, cross, recipes):
            flags = _flags(path, recipe, {**settings, **recipes[recipe], 'seed': seed}, molly)
            entries[recipe, molly, seed] = Entry(recipe, molly, seed, flags, measured, threads)
    if not isinstance(title, str):
        raise UserError(f'{path}: title must be text, got {title!r}')
    return Grid(title, list(entries.values()))


def choose(entries: Iterable[Entry], names: Iterable[str]) -> list[Entry]:
    """Choose entries by the names of their rows, or rows and seeds: `plain+molly`, `plain+molly/0`.

    Raises:
        UserError: There is no such row.
    """
    entries = list(entries)
    known = {name for entry in entries for name in (entry.row, str(entry))}
    for name in names:
        if name not in known:
            rows = dict.fromkeys(entry.row for entry in entries)
            raise UserError(f'no row {name!r} in the grid; there are {", ".join(rows)}, each with /SEED too')
    return [entry for entry in entries if {entry.row, str(entry)} & set(names)]


def _measured(path: Path, found: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Flags of `timm-molly validate`, and over them those that were given."""
    measured = _check_flags(f'{path}: validate', found, own=())
    own_data = 'data_dir' in measured  # else of the training
    measured |= {key: value for key, value in given.items() if own_data or key != 'data_dir'}
    _check_keys(f'{path}: validate', measured, sorted(FLAGS))
    return measured


def _recipes(path: Path, found: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(found, dict) or not found:
        raise UserError(f'{path}: recipes must map names to flags of train.py, got {found!r}')
    for name in found:
        if not isinstance(name, str) or not re.fullmatch(r'\w[\w.-]*', name):
            raise UserError(f'{path}: a recipe is named by letters, digits, _, - and ., got {name!r}')
    return {name: _check_flags(f'{path}: recipe {name}', flags) for name, flags in found.items()}


def _flags(path: Path, recipe: str, flags: dict[str, Any], molly: str | None) -> dict[str, Any]:
    """Flags of train.py for a recipe, with molly in the aa string."""
    if not _whole(flags.setdefault('epochs', 300), 1):  # train.py's default
        raise UserError(f'{path}: recipe {recipe} has epochs: {flags["epochs"]!r}, not a number from 1 on')
    aa = flags.get('aa') or None
    if aa is not None and (not isinstance(aa, str) or split_aa(aa)[0]):
        raise UserError(f'{path}: recipe {recipe} has aa: {aa}; molly belongs into the grid')
    return {**flags, 'aa': '+'.join(part for part in (aa, molly) if part) or None}


def _read(path: Path, below: Path | None = None) -> dict[str, Any]:
    """Read a file and that which it is based on; it may itself be the base of one below it."""
    found = _load(path)
    _check_keys(f'{path}: the grid', found, KEYS)
    for key in ('train', 'validate', 'recipes'):
        if key in found and found[key] is None:  # nothing below it
            found[key] = {}
    if isinstance(found.get('train'), dict) and 'config' in found['train']:
        config = path.parent / str(found['train'].pop('config'))
        found['train'] = {**_check_flags(str(config), _load(config)), **found['train']}
    if 'base' not in found:
        return found
    if below:
        raise UserError(f'{path} has a base itself; name that one in {below}')
    under = _read(path.parent / str(found.pop('base')), path)
    for key in ('train', 'validate', 'recipes'):
        if isinstance(under.get(key), dict) and isinstance(found.get(key, {}), dict):
            found[key] = {**under[key], **found.get(key, {})}
    return {**under, **found}


def _load(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror}') from None
    except Exception as error:  # PyYAML's constructors raise all sorts
        raise UserError(f'{path} is not YAML: {" ".join(str(error).split())}') from None
    if not isinstance(found, dict):
        raise UserError(f'{path} must hold settings by name, got {type(found).__name__}')
    return found


def _check_flags(where: str, flags: Any, own: Iterable[str] = OWN) -> dict[str, Any]:
    """Check that flags are such as JSON and a --config file can hold."""
    flags = {} if flags is None else flags
    if not isinstance(flags, dict) or not all(isinstance(key, str) for key in flags):
        raise UserError(f'{where} must hold flags by name, got {flags!r}')
    for key, value in flags.items():
        if key in own:
            raise UserError(f'{where} has {key}, which the study sets itself')
        if key in TEXT and not (value is None or isinstance(value, str)):
            raise UserError(f'{where} has {key}: {value!r}, which must be text')
        if not is_plain(value, _is_setting, depth=5):
            raise UserError(f'{where} has {key}: {value!r}, which is not made of text, finite numbers, true and false')
    return flags


def _is_setting(value: Any) -> bool:
    return math.isfinite(value) if isinstance(value, float) else value is None or isinstance(value, (str, int))


def _check_keys(where: str, found: Mapping[str, Any], known: Iterable[str]) -> None:
    known = list(known)
    for key in found:
        if key not in known:
            raise UserError(f'{where} has an unknown key {key!r}{hint(str(key), known)}; it takes {", ".join(known)}')


def _cross(path: Path, cross: Any, recipes: Mapping[str, Any]) -> list[tuple[str, str | None, int]]:
    """Check a cross and list its combinations."""
    if not isinstance(cross, dict):
        raise UserError(f'{path}: each of grid must have {", ".join(CROSS_KEYS)}, got {cross!r}')
    _check_keys(f'{path}: one of grid', cross, CROSS_KEYS)
    lists: dict[str, list[Any]] = {}
    for key, default in zip(CROSS_KEYS, (list(recipes), ['none', 'molly'], [0]), strict=True):
        value = cross.get(key, default)
        lists[key] = value if isinstance(value, list) else [value]
        if not lists[key]:
            raise UserError(f'{path}: one of grid has no {key}')
    for name in lists['recipes']:
        if not isinstance(name, str) or name not in recipes:
            raise UserError(f'{path}: grid has recipe {name!r}, which is none of {", ".join(recipes)}')
    policies: list[str | None] = []
    for molly in lists['molly']:
        if molly is None or molly == 'none':
            policies.append(None)
            continue
        try:
            policies.append(str(MollyConfig.from_string(str(molly))))
        except UserError as error:
            raise UserError(f'{path}: {error}') from None
    for seed in lists['seeds']:
        if not _whole(seed, 0) or seed >= 2**32:
            raise UserError(f'{path}: a seed is a number from 0 to 2**32 - 1, got {seed!r}')
    # The first seed of all comes first, so that a study that is stopped has it whole.
    return [(recipe, molly, seed) for seed in lists['seeds'] for recipe in lists['recipes'] for molly in policies]


def _whole(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low
