"""Fill the tables of README.md and recipes with the figures of the studies.

    python recipes/studies/tell.py

It fills tables whose first head links to a study; the other heads name figures, `corrupted error %`, `fog error %`. A
line begins with
- a row of the study, `crop_flip+molly`;
- two, `crop_flip+molly less crop_flip`: the mean of their differences, seed by seed, in bold where its 95 % interval
  over the seeds (Student's t) leaves 0 out;
- a row at a clean error, `crop_flip+molly at 16 %`: where its curve is there. The curve joins the runs of seed 0 that
  differ from the row in strength alone by straight lines, and begins at the one without molly.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from timm_molly.config import MollyConfig
from timm_molly.study import results

RECIPES = Path(__file__).parents[1]
PAGES = (RECIPES.parent / 'README.md', RECIPES / 'results.md', RECIPES / 'studies' / 'claims.md')
TABLE = re.compile(
    r'^\| \[[^\n]+\]\((?:(?:recipes/)?studies/)?(\w+)/study\.md\)[^\n]*\n\|[^\n]*\n(?:\|[^\n]*\n)+', re.MULTILINE
)


def main() -> None:
    for page in PAGES:
        text = page.read_text()
        page.write_text(TABLE.sub(lambda found: fill(found[0], found[1]), text))


def fill(table: str, study: str) -> str:
    """Return a table of a page with its figures."""
    found = json.loads((RECIPES / 'studies' / study / 'study.json').read_text())
    for run in found['runs']:
        run['figures'] |= {f'{name} error': each['error'] for name, each in run['corruptions'].items()}
    head, rule, *lines = table.splitlines()
    heads = [each.strip() for each in head.strip('|').split('|')][1:]
    filled = [f'| {" | ".join(line(found, text.strip("|").split("|")[0].strip(), heads))} |' for text in lines]
    return '\n'.join([head, rule, *filled]) + '\n'


def line(study: dict[str, Any], name: str, heads: list[str]) -> list[str]:
    """Return the cells of a line."""
    first, _, second = name.partition(' less ')
    rows = {row['name']: row for row in results.rows(study, second or None)}
    row = rows.get(first)
    values = row['differences' if second else 'values'] if row else along(study, name)
    known = {key.lower(): value for key, value in values.items()}
    cells = [name]
    for head in heads:
        figure = head.removesuffix(' %').lower()
        value = known.get(figure)
        text = results.said(value, figure, sign=bool(second))
        cells.append(f'**{text}**' if second and row and value and sure(value, len(row['shared'])) else text)
    return cells


def along(study: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the figures of a row at a clean error, between its strengths; none if that is outside of them."""
    of, _, clean = name.partition(' at ')
    row = next((run for run in study['runs'] if run['row'] == of), None)
    if not row:
        return {}
    curve = [
        run['figures']
        for run in study['runs']
        if run['seed'] == 0 and run['recipe'] == row['recipe'] and labels(run['molly']) in (None, labels(row['molly']))
    ]
    curve.sort(key=lambda figures: figures['clean error'])
    places = [figures['clean error'] for figures in curve]
    at = float(clean.removesuffix(' %')) / 100
    if not places[0] <= at <= places[-1]:
        return {}
    return {key: {'mean': np.interp(at, places, [run[key] for run in curve]), 'se': None} for key in curve[0]}


def labels(molly: str | None) -> dict[str, Any] | None:
    """The settings of an aa string but for how strong it is; None without molly."""
    if molly is None:
        return None
    config = MollyConfig.from_string(molly)
    return {**asdict(config), 'beta': None, 'roles': set(config.roles)}


def sure(value: dict[str, Any], seeds: int) -> bool:
    """Whether the 95 % interval of a mean over seeds leaves 0 out."""
    return seeds > 1 and abs(value['mean']) > t.ppf(0.975, seeds - 1) * value['se']


if __name__ == '__main__':
    main()
