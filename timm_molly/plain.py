"""Plain values, as JSON and YAML have them, made into frozen dataclasses and checked by the types of their fields."""

from __future__ import annotations

import ast
import dataclasses
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from timm_molly.errors import UserError

T = TypeVar('T')


def from_plain(kind: type[T], found: object, where: object) -> T:
    """Make a dataclass from a mapping of plain values.

    Args:
        kind: The dataclass. Its fields may be text, numbers, bool, Literal, tuples, mappings of text, dataclasses, and
            each of these or None.
        found: Values by field; keys that are no fields are passed over.
        where: What it was read from, for the error.

    Raises:
        UserError: A value is missing or of another type (which).

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Size:
        ...     height: int
        ...     width: int
        >>> from_plain(Size, {'height': 32, 'width': 32}, 'size.json')
        Size(height=32, width=32)
    """
    if not isinstance(found, Mapping):
        raise UserError(f'{where} must be a mapping, got {short(found)}')
    hints = get_type_hints(kind)
    values = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name in found:
            values[field.name] = checked(hints[field.name], found[field.name], f'{where}: {field.name}')
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f'{where} lacks {field.name}')
    return kind(**values)


def checked(kind: Any, value: Any, where: str) -> Any:
    """Return a plain value as a type has it: lists as tuples, whole numbers as float where that is asked for.

    Raises:
        UserError: It is of another type.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return checked(next(each for each in arguments if each is not type(None)), value, where)
    if origin in (tuple, Sequence) and isinstance(value, (list, tuple)):
        kinds = arguments[:1] * len(value) if origin is Sequence or arguments[1:] == (...,) else arguments
        if len(kinds) == len(value):
            return tuple(checked(each, item, where) for each, item in zip(kinds, value, strict=True))
    elif origin in (dict, Mapping):
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {key: checked(arguments[1], each, f'{where}.{key}') for key, each in value.items()}
    elif origin is Literal:
        if value in arguments:
            return value
    elif dataclasses.is_dataclass(kind):
        return from_plain(kind, value, where)  # type: ignore[arg-type]
    elif kind is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif kind is Any or (type(value) is kind and (kind is not int or abs(value) < 2**63)):
        return value
    raise UserError(f'{where} must be {_name(kind)}, got {short(value)}')


def is_plain(value: Any, good: Callable[[Any], bool], depth: int, most: int = 10**6) -> bool:
    """Tell whether a value is made of lists, and mappings by text, of values that are good.

    Args:
        value: Of JSON or YAML.
        good: Tells of a value that is no list and no mapping, and of the keys.
        depth: How deep lists and mappings may be nested.
        most: How many members one may have.

    Example:
        >>> is_plain({'sizes': [1, 2]}, lambda value: isinstance(value, (int, str)), depth=2)
        True
    """
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            return False
        value = [*value, *value.values()]
    if isinstance(value, list):
        return depth > 0 and len(value) <= most and all(is_plain(each, good, depth - 1, most) for each in value)
    return good(value)


def keywords(pairs: Sequence[str]) -> dict[str, Any]:
    """Read key=value as timm's --model-kwargs does: Python literals, or else text.

    Raises:
        UserError: One is not key=value.

    Example:
        >>> keywords(['drop_rate=0.1', 'act_layer=relu'])
        {'drop_rate': 0.1, 'act_layer': 'relu'}
    """
    found = {}
    for pair in pairs:
        key, equals, value = str(pair).partition('=')
        if not equals or not key.isidentifier():
            raise UserError(f'--model-kwargs takes key=value, got {pair!r}')
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found


def short(value: object, length: int = 80) -> str:
    """A value in an error message, cut to a length in characters."""
    text = repr(value)
    return text if len(text) <= length else f'{text[:length]}...'


def _name(kind: Any) -> str:
    names = {int: 'a whole number', float: 'a finite number', str: 'text', bool: 'true or false'}
    if get_origin(kind) is Literal:
        return f'one of {", ".join(map(str, get_args(kind)))}'
    if get_origin(kind) in (tuple, Sequence):
        kinds = get_args(kind)
        return f'a list of {len(kinds)}' if len(kinds) > 1 and ... not in kinds else f'a list, each {_name(kinds[0])}'
    return names.get(kind, 'a mapping')
