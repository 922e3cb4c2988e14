"""The grid of a study: a YAML file that says what is trained and how it is measured."""

from __future__ import annotations

import argparse
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from timm_molly.config import MollyConfig, split_aa
from timm_molly.robustness.flags import add_arguments, add_benchmark_arguments

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
        ValueError: It cannot be read, or does not make sense (where, and what is allowed).
    """
    found = _read(path)
    settings = {**_check_flags(f'{path}: train', found.get('train')), **train}
    measured = _check_flags(f'{path}: validate', found.get('validate'), own=())
    if 'data_dir' in measured:  # else of the training
        given = validate
    else:
        given = {key: value for key, value in validate.items() if key != 'data_dir'}
    measured = {**measured, **given}
    _check_keys(f'{path}: validate', measured, sorted(validate_flags()))
    threads = found.get('threads')
    if threads is not None and not _whole(threads, 1):
        raise ValueError(f'{path}: threads must be a number from 1 on, got {threads!r}')
    recipes = found.get('recipes')
    if not isinstance(recipes, dict) or not recipes:
        raise ValueError(f'{path}: recipes must map names to flags of train.py, got {recipes!r}')
    for name, flags in recipes.items():
        if not isinstance(name, str) or not re.fullmatch(r'\w[\w.-]*', name):
            raise ValueError(f'{path}: a recipe is named by letters, digits, _, - and ., got {name!r}')
        recipes[name] = _check_flags(f'{path}: recipe {name}', flags)
    entries: dict[tuple[str, str | None, int], Entry] = {}
    crosses = found.get('grid')
    if not isinstance(crosses, list) or not crosses:
        raise ValueError(f'{path}: grid must be a list with {", ".join(CROSS_KEYS)} each, got {crosses!r}')
    for cross in crosses:
        for recipe, molly, seed in _cross(path, cross, recipes):
            flags = {**settings, **recipes[recipe], 'seed': seed}
            if not _whole(flags.setdefault('epochs', 300), 1):  # train.py's default
                raise ValueError(f'{path}: recipe {recipe} has epochs: {flags["epochs"]!r}, not a number from 1 on')
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
    own = {'help', 'model', 'checkpoint', 'pretrained', 'output', 'mollification', 'aa'}
    return {action.dest for action in _parser()._actions} - own


def words(flags: Mapping[str, Any]) -> list[str]:
    """Write flags of `timm-molly validate` as on a command line."""
    found: list[str] = []
    for key, value in flags.items():
        if value is None or value is False or value == [] or value == '':
            continue
        found.append('--' + key.replace('_', '-'))
        if value is not True:
            found += [str(each) for each in value] if isinstance(value, (list, tuple)) else [str(value)]
    return found


def parse_validate(flags: Mapping[str, Any]) -> argparse.Namespace:
    """Parse flags of `timm-molly validate`, beside which a model will be named.

    Raises:
        ValueError: One has a value that is not allowed.
    """
    return _parser().parse_args([*words(flags), '--model', 'a model'])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parser() -> _Parser:
    parser = _Parser(allow_abbrev=False)
    add_arguments(parser)
    add_benchmark_arguments(parser)
    return parser


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
        raise ValueError(f'{path} has a base itself; name that one in {below}')
    under = _read(path.parent / str(found.pop('base')), path)
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


def _check_flags(where: str, flags: Any, own: Iterable[str] = OWN) -> dict[str, Any]:
    """Check that flags are such as JSON and a --config file can hold."""
    flags = {} if flags is None else flags
    if not isinstance(flags, dict) or not all(isinstance(key, str) for key in flags):
        raise ValueError(f'{where} must hold flags by name, got {flags!r}')
    for key, value in flags.items():
        if key in own:
            raise ValueError(f'{where} has {key}, which the study sets itself')
        if key in TEXT and not (value is None or isinstance(value, str)):
            raise ValueError(f'{where} has {key}: {value!r}, which must be text')
        if not _plain(value):
            raise ValueError(f'{where} has {key}: {value!r}, which is not made of text, finite numbers, true and false')
    return flags


def _plain(value: Any, depth: int = 5) -> bool:
    if isinstance(value, dict):
        return depth > 0 and all(isinstance(key, str) and _plain(each, depth - 1) for key, each in value.items())
    if isinstance(value, list):
        return depth > 0 and all(_plain(each, depth - 1) for each in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (str, int))


def _check_keys(where: str, found: Mapping[str, Any], known: Iterable[str]) -> None:
    known = list(known)
    for key in found:
        if key not in known:
            raise ValueError(f'{where} has an unknown key {key!r}{hint(str(key), known)}; it takes {", ".join(known)}')


def hint(name: str, known: Iterable[str]) -> str:
    """Say which of the known names may be meant by one that is not."""
    near = difflib.get_close_matches(name, known, 1)
    return f' (did you mean {near[0]}?)' if near else ''


def _cross(path: Path, cross: Any, recipes: Mapping[str, Any]) -> list[tuple[str, str | None, int]]:
    """Check a cross and list its combinations."""
    if not isinstance(cross, dict):
        raise ValueError(f'{path}: each of grid must have {", ".join(CROSS_KEYS)}, got {cross!r}')
    _check_keys(f'{path}: one of grid', cross, CROSS_KEYS)
    lists: dict[str, list[Any]] = {}
    for key, default in zip(CROSS_KEYS, (list(recipes), ['none', 'molly'], [0]), strict=True):
        value = cross.get(key, default)
        lists[key] = value if isinstance(value, list) else [value]
        if not lists[key]:
            raise ValueError(f'{path}: one of grid has no {key}')
    for name in lists['recipes']:
        if not isinstance(name, str) or name not in recipes:
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
