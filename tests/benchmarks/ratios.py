"""The table of ratios that the benchmarks end with."""

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

SIGNS = {'>=': operator.ge, '<=': operator.le, '>': operator.gt}


class Row(NamedTuple):
    """What is compared, the goal of the ratio, such as '>= 3' ('' for a control), and the ratio in each run.

    A ratio that is counted, and no chance, has one run.
    """

    what: str
    goal: str
    ratios: Sequence[float]


def table(rows: Iterable[Row]) -> Iterator[str]:
    """Return the lines of the table: the median of each row, its spread, and whether it meets its goal."""
    rows = list(rows)
    width = max(len(row.what) for row in rows)
    yield f'{"what":{width}}  goal      median  quartiles          runs  met'
    for what, goal, ratios in rows:
        assert len(ratios) >= 7 or len(ratios) == 1, 'a median of fewer runs says little'
        low, median, high = np.percentile(ratios, [25, 50, 75])
        met = ''
        if goal:
            sign, limit = goal.split()
            met = 'yes' if SIGNS[sign](median, float(limit)) else 'NO'
        spread = f'{low:.3f} to {high:.3f}'
        yield f'{what:{width}}  {goal:8}  {median:6.3f}  {spread:17}  {len(ratios):4}  {met}'
