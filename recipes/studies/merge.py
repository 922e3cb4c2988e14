"""Bring the runs of a study together that were made on several machines, or on different days.

    python recipes/studies/merge.py GRID.yaml DIR DIR --output OUT

Each DIR holds a study.json. The runs are put in the order of the grid. A run is taken from the first DIR that has it as
the grid says, from OUT if none has. The tables are those of `timm-molly study`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from timm_molly.robustness.report import differences
from timm_molly.study import results
from timm_molly.study.grid import read_grid

SAME = ('benchmark', 'data', 'packages')  # else figures cannot be compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('grid', type=Path)
    parser.add_argument('studies', metavar='DIR', type=Path, nargs='*')
    parser.add_argument('--output', metavar='DIR', type=Path, required=True)
    args = parser.parse_args()
    folders = [folder for folder in (*args.studies, args.output) if (folder / 'study.json').is_file()]
    if not folders:
        sys.exit('none of these folders holds a study.json')
    args.output.mkdir(parents=True, exist_ok=True)
    study = merge(args.grid, [json.loads((folder / 'study.json').read_text()) for folder in folders])
    against = [path.stem.removeprefix('against-') for path in args.output.glob('against-*.md')]
    for row in (None, *against):
        results.write(study, args.output, row)
    print(f'{len(study["runs"])} runs in {args.output}')


def merge(grid: Path, studies: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one study with the finished runs of several, in the order of the grid."""
    found = read_grid(grid, {}, {})
    if len({json.dumps(study['script'], sort_keys=True) for study in studies}) > 1:
        sys.exit('not of the same train.py and packages: ' + ' '.join(str(study['script']) for study in studies))
    by_name: dict[tuple[str, int], dict[str, Any]] = {}
    for study in reversed(studies):
        by_name |= {(run['row'], run['seed']): run for run in study['runs'] if run['status'] == 'finished'}
    runs: list[dict[str, Any]] = []
    for entry in found.entries:
        run = by_name.get((entry.row, entry.seed))
        if run is None:
            continue
        if any(run[key] != getattr(entry, key) for key in ('train', 'validate', 'threads')):
            sys.exit(f'{entry} was not run as the grid says')
        if runs and (different := differences(*({key: each[key] for key in SAME} for each in (runs[0], run)))):
            sys.exit(f'{entry} was not measured as {runs[0]["row"]}/{runs[0]["seed"]} was: {"; ".join(different)}')
        runs.append(run)
    return {**studies[0], 'title': found.title, 'notes': [], 'runs': runs}


if __name__ == '__main__':
    main()
