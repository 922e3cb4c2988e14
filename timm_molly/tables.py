"""Tables of text, for a terminal and in Markdown."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

Row = Sequence[str]


def aligned(rows: Sequence[Row], width: int | None = None, together: int = 1) -> str:
    """Rows of cells as text, the first column to the left and the others to the right.

    A table that is too wide is set in parts below each other, each with the first column.

    Args:
        rows: The cells.
        width: Characters that a line may have; None for those of the terminal, or any number where there is none.
        together: Columns after the first that stay beside each other where they fit: so many, and so many again.

    Example:
        >>> print(aligned([['', 'error %', 'ECE'], ['clean', '8.3', '0.012'], ['fog', '21.0', '0.103']]))
               error %    ECE
        clean      8.3  0.012
        fog       21.0  0.103
        >>> print(aligned([['', 'error %', 'ECE'], ['fog', '21.0', '0.103']], width=15))
             error %
        fog     21.0
        <BLANKLINE>
               ECE
        fog  0.103
    """
    if width is None:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    first, *others = zip(*rows, strict=True)
    groups = [others[i : i + together] for i in range(0, len(others), together)]
    if max(map(_needs, groups), default=0) + _width(first) > width:
        groups = [[column] for column in others]
    parts, used = [[first]], _width(first)
    for group in groups:
        used += _needs(group)
        if used > width and len(parts[-1]) > 1:
            parts.append([first])
            used = _width(first) + _needs(group)
        parts[-1] += group
    return '\n\n'.join(_lines(part) for part in parts)


def _lines(columns: Sequence[Row]) -> str:
    """Set columns beside each other."""
    others = [[f'{cell:>{_width(column)}}' for cell in column] for column in columns[1:]]
    first = [f'{cell:<{_width(columns[0])}}' for cell in columns[0]]
    return '\n'.join('  '.join(cells).rstrip() for cells in zip(first, *others, strict=True))


def _needs(columns: Sequence[Row]) -> int:
    """Characters of columns, with the space before each."""
    return sum(2 + _width(column) for column in columns)


def _width(column: Row) -> int:
    return max(map(len, column))


def markdown_table(rows: Sequence[Row]) -> str:
    """Rows of cells as a Markdown table, the first row its head, the first column to the left, others to the right.

    Example:
        >>> print(markdown_table([['', 'error %'], ['clean', '8.3']]))
        |  | error % |
        | --- | ---: |
        | clean | 8.3 |
    """
    head, *body = rows
    lines = [head, ['---', *['---:'] * (len(head) - 1)], *body]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def number(metric: str, value: float, sign: bool = False) -> str:
    """A figure as all tables have it: an error in percent, anything else with three digits; 'nan' where there is none.

    Example:
        >>> number('error', 0.0827), number('ece', 0.012, sign=True)
        ('8.3', '+0.012')
    """
    if value != value:
        return 'nan'
    plus = '+' if sign else ''
    return f'{100 * value:{plus}.1f}' if metric == 'error' else f'{value:{plus}.3f}'
