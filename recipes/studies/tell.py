"""Fill the tables of README.md and recipes/results.md with the figures of the studies.

    python recipes/studies/tell.py

It fills tables whose first head links to a study. A line begins with a row of the study, `crop_flip+molly`, and a head
names a figure of it, `corrupted error %`. The head `- molly` is of the differences to the same recipe with that aa, of
the column before.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from timm_molly.study import results

RECIPES = Path(__file__).parents[1]
PAGES = (RECIPES.parent / 'README.md', RECIPES / 'results.md')
TABLE = re.compile(
    r'^\| \[[^\n]+\]\((?:recipes/)?studies/(\w+)/study\.md\)[^\n]*\n\|[^\n]*\n(?:\|[^\n]*\n)+', re.MULTILINE
)


def main() -> None:
    for page in PAGES:
        text = page.read_text()
        page.write_text(TABLE.sub(lambda found: fill(found[0], found[1]), text))


def fill(table: str, study: str) -> str:
    """Return a table of a page with its figures."""
    found = json.loads((RECIPES / 'studies' / study / 'study.json').read_text())
    head, rule, *lines = table.splitlines()
    heads = [each.strip() for each in head.strip('|').split('|')][1:]
    filled = [f'| {" | ".join(line(found, text.strip("|").split("|")[0].strip(), heads))} |' for text in lines]
    return '\n'.join([head, rule, *filled]) + '\n'


def line(study: dict[str, Any], name: str, heads: list[str]) -> list[str]:
    """Return the cells of a row."""
    recipe = name.partition('+')[0]
    cells, figure = [name], ''
    for head in heads:
        aa = head.removeprefix('- ') if head.startswith('- ') else None
        figure = figure if aa else head.removesuffix(' %').lower()
        rows = {row['name']: row for row in results.rows(study, f'{recipe}+{aa}' if aa else None)}
        values = rows[name]['differences' if aa else 'values'] if name in rows else {}
        known = {key.lower(): value for key, value in values.items()}
        cells.append(results.said(known.get(figure), figure, sign=aa is not None))
    return cells


if __name__ == '__main__':
    main()
