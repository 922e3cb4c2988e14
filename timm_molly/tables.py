"""Tables of text, for a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

Row = Sequence[str]


def aligned(rows: Sequence[Row]) -> str:
    """Rows of cells as text, the first column to the left and the others to the right.

    Example:
        >>> print(aligned([['', 'error %'], ['clean', '8.3'], ['fog', '21.0']]))
               error %
        clean      8.3
        fog       21.0
    """
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [
        '  '.join([f'{head:<{first}}', *(f'{cell:>{width}}' for cell, width in zip(cells, others, strict=True))])
        for head, *cells in rows
    ]
    return '\n'.join(line.rstrip() for line in lines)


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
