"""Errors that the user can do something about."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something that the user has to change: what was wrong, the value, and what to do.

    The command line prints it as one line. Any other exception is a bug, and shows its traceback.
    """


class PackageError(UserError, ImportError):
    """A package that an extra of timm-molly brings is not installed."""


class HubError(UserError, ConnectionError):
    """The Hub could not be reached, or kept failing."""


def hint(name: str, known: Iterable[str]) -> str:
    """Say which of the known names may be meant by one that is not; nothing where none is near.

    Example:
        >>> hint('contrats', ['contrast', 'fog'])
        ' (did you mean contrast?)'
    """
    near = difflib.get_close_matches(name, known, 1)
    return f' (did you mean {near[0]}?)' if near else ''


def needs(what: str, extra: str, error: ImportError) -> PackageError:
    """Say which packages to install for what was asked.

    Args:
        what: What needs them, such as 'drawing'.
        extra: Of timm-molly's extras, the one that has them.
        error: Of the import that failed.
    """
    return PackageError(f'{what} needs more: pip install "timm-molly[{extra}]" ({error})')
