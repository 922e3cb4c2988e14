"""The grid of a study: a YAML file that says what is trained and how it is measured."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from timm_molly.config import MollyConfig, split_aa
from timm_molly.robustness.flags import add_arguments, add_benchmark_arguments

KEYS = ('title', 'base', 'threads', 'train', 'validate', 'recipes', 'grid')
CROSS_KEYS = ('recipes', 'molly', 'seeds')
OWN = ('output', 'experiment', 'resume', 'seed', 'config')  # flags of train.py that a study sets itself


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
    flag and name by name, the rest as a whole. Files are named from this file's folder.

    Args:
        path: The file.
        train: Flags of train.py that come before those of the file.
        validate: Flags of `timm-molly validate` likewise.

    Raises:
        ValueError: It cannot be read, or does not make sense (where, and what is allowed).
    """
    found = _read(path)
    settings = {**_flags(path, found, 'train'), **train}
    measured = {**_flags(path, found, 'validate'), **validate}
    _check_keys(path, 'validate', measured, sorted(validate_flags()))
    threads = found.get('threads')
    if threads is not None and not _whole(threads, 1):
        raise ValueError(f'{path}: threads must be a number from 1 on, got {threads!r}')
    recipes = found.get('recipes')
    if not isinstance(recipes, dict) or not recipes:
        raise ValueError(f'{path}: recipes must map names to flags of train.py, got {recipes!r}')
    for name, flags in recipes.items():
        if not isinstance(name, str) or not re.fullmatch(r'\w[\w.-]*', name):
            raise ValueError(f'{path}: a recipe is named by letters, digits, _, - and ., got {name!r}')
        recipes[name] = _check_flags(path, f'recipe {name}', {} if flags is None else flags)
    entries: dict[tuple[str, str | None, int], Entry] = {}
    crosses = found.get('grid')
    if not isinstance(crosses, list) or not crosses:
        raise ValueError(f'{path}: grid must be a list with {", ".join(CROSS_KEYS)} each, got {crosses!r}')
    for cross in crosses:
        for recipe, molly, seed in _cross(path, cross, recipes):
            flags = {**settings, **recipes[recipe], 'seed': seed}
            aa = flags.get('aa') or None
            if aa is not None and (not isinstance(aa, str) or split_aa(aa)[0]):
                raise ValueError(f'{path}: recipe {recipe} has aa: {aa}; molly belongs into the grid')
            flags['aa'] = '+'.join(part for part in (aa, molly) if part) or None
            entries[recipe, molly, seed] = Entry(recipe, molly, seed, flags, measured, threads)
    title = found.get('title', path.stem)
    if not isinstance(title, str):
        raise ValueError(f'{path}: title must be text, got {title!r}')
    return Grid(title, list(entries.values()))


def validate_flags() -> set[str]:
    """Names of the flags of `timm-molly validate` that a grid may set."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    add_benchmark_arguments(parser)
    return {action.dest for action in parser._actions} - {'model', 'checkpoint', 'pretrained', 'output'}


def choose(entries: Iterable[Entry], names: Iterable[str]) -> list[Entry]:
    """Choose entries by the names of their rows, or rows and seeds: `plain+molly`, `plain+molly/0`.

    Raises:
        ValueError: There is no such row.
    """
    entries = list(entries)
    known = {name for entry in entries for name in (entry.row, str(entry))}
    for name in names:
        if name not in known:
            rows = dict.fromkeys(entry.row for entry in entries)
            raise ValueError(f'no row {name!r} in the grid; there are {", ".join(rows)}, each with /SEED too')
    return [entry for entry in entries if {entry.row, str(entry)} & set(names)]


def _read(path: Path) -> dict[str, Any]:
    """Read a file and those that it is based on."""
    found = _load(path)
    _check_keys(path, 'the grid', found, KEYS)
    if isinstance(found.get('train'), dict) and 'config' in found['train']:
        config = found['train'].pop('config')
        found['train'] = {**_load(path.parent / str(config)), **found['train']}
    if 'base' not in found:
        return found
    base = path.parent / str(found.pop('base'))
    under = _load(base)
    if 'base' in under:
        raise ValueError(f'{base} has a base itself; name that one in {path}')
    under = _read(base)
    for key in ('train', 'validate', 'recipes'):
        if isinstance(under.get(key), dict) and isinstance(found.get(key, {}), dict):
            found[key] = {**under[key], **found.get(key, {})}
    return {**under, **found}


def _load(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ValueError(f'cannot read {path}: {error.strerror}') from None
    except Exception as error:  # PyYAML's constructors raise all sorts
        raise ValueError(f'{path} is not YAML: {" ".join(str(error).split())}') from None
    if not isinstance(found, dict):
        raise ValueError(f'{path} must hold settings by name, got {type(found).__name__}')
    return found


def _flags(path: Path, found: Mapping[str, Any], key: str) -> dict[str, Any]:
    flags = found.get(key)
    return _check_flags(path, key, {} if flags is None else flags)


def _check_flags(path: Path, where: str, flags: Any) -> dict[str, Any]:
    if not isinstance(flags, dict) or not all(isinstance(key, str) for key in flags):
        raise ValueError(f'{path}: {where} must hold flags by name, got {flags!r}')
    for key in OWN:
        if key in flags and where != 'validate':
            raise ValueError(f'{path}: {where} has {key}, which the study sets itself')
    return flags


def _check_keys(path: Path, where: str, found: Mapping[str, Any], known: Iterable[str]) -> None:
    known = list(known)
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f'; did you mean {near[0]}?' if near else ''
            raise ValueError(f'{path}: {where} has an unknown key {key!r}{hint} It takes {", ".join(known)}')


def _cross(path: Path, cross: Any, recipes: Mapping[str, Any]) -> list[tuple[str, str | None, int]]:
    """Check a cross and list its combinations."""
    if not isinstance(cross, dict):
        raise ValueError(f'{path}: each of grid must have {", ".join(CROSS_KEYS)}, got {cross!r}')
    _check_keys(path, 'one of grid', cross, CROSS_KEYS)
    lists: dict[str, list[Any]] = {}
    for key, default in zip(CROSS_KEYS, (list(recipes), ['none', 'molly'], [0]), strict=True):
        value = cross.get(key, default)
        lists[key] = value if isinstance(value, list) else [value]
        if not lists[key]:
            raise ValueError(f'{path}: one of grid has no {key}')
    for name in lists['recipes']:
        if name not in recipes:
            raise ValueError(f'{path}: grid has recipe {name!r}, which is none of {", ".join(recipes)}')
    policies: list[str | None] = []
    for molly in lists['molly']:
        if molly is None or molly == 'none':
            policies.append(None)
            continue
        try:
            policies.append(str(MollyConfig.from_string(str(molly))))
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from None
    for seed in lists['seeds']:
        if not _whole(seed, 0) or seed >= 2**32:
            raise ValueError(f'{path}: a seed is a number from 0 to 2**32 - 1, got {seed!r}')
    # The first seed of all comes first, so that a study that is stopped has it whole.
    return [(recipe, molly, seed) for seed in lists['seeds'] for recipe in lists['recipes'] for molly in policies]


def _whole(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low
