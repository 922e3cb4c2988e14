"""`timm-molly study`: train and measure a grid of recipes."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = 'train and measure a grid of recipes without and with molly'
DESCRIPTION = (
    "Train a grid of recipes x molly x seeds with timm's train.py, measure each with timm-molly "
    'validate, and write a table of means, standard errors and paired differences, a figure and JSON. What is '
    'finished is kept: the same command goes on after whatever stopped it.'
)
RESUMABLE = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument('grid', metavar='GRID', type=Path, help='YAML file, such as recipes/studies/cifar10_paper.yaml')
    parser.add_argument(
        '--train-script', metavar='FILE', type=Path, help="timm's train.py (default: of TIMM_TRAIN_SCRIPT)"
    )
    parser.add_argument('--data-dir', metavar='DIR', type=Path, help='images (default: of the grid)')
    parser.add_argument('--corrupted-dir', metavar='DIR', type=Path, help='corrupted test images (default: likewise)')
    parser.add_argument('--jobs', metavar='N', type=int, default=1, help='runs at once (default: %(default)s)')
    parser.add_argument(
        '--against', metavar='ROW', help='show differences to this row (default: to the same recipe without molly)'
    )
    parser.add_argument(
        '--only',
        metavar='ROW',
        nargs='+',
        action='extend',
        help='such as plain+molly, or plain+molly/0 for one seed',
    )
    parser.add_argument(
        '-o', '--output', metavar='DIR', type=Path, help='(default: output/study/ and the name of the grid)'
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; return 1 where a run has no figures."""
    from timm_molly.study.study import study

    found = study(
        args.grid,
        script=args.train_script,
        data_dir=args.data_dir,
        corrupted_dir=args.corrupted_dir,
        jobs=args.jobs,
        against=args.against,
        only=args.only or (),
        output=args.output,
    )
    print(f'\n{found.title}\n\n{found.tables}\n\nwrote {", ".join(found.files)} to {found.output}')
    return 0 if found.finished else 1
