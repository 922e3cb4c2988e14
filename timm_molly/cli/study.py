"""`timm-molly study`: train and measure a grid of recipes."""

from __future__ import annotations

import argparse
import re
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
    parser.add_argument('--jobs', metavar='N', type=int, help='runs at once (default: 1; all with --slurm)')
    parser.add_argument(
        '--slurm',
        metavar='FLAGS',
        type=sbatch_flags,
        help='run each as a job of SLURM with these flags of sbatch, such as partition=gpu,gpus=1,time=4:00:00',
    )
    parser.add_argument(
        '--list', action='store_true', help='only print the lines that do the runs, a line a run, for another scheduler'
    )
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


def sbatch_flags(text: str) -> dict[str, str]:
    """Read key=value,key=value; an empty value for a flag without one.

    Example:
        >>> sbatch_flags('partition=gpu,time=4:00:00,exclusive')
        {'partition': 'gpu', 'time': '4:00:00', 'exclusive': ''}
    """
    pairs = [part.strip().removeprefix('--').partition('=') for part in text.split(',')]
    if not all(re.fullmatch('[a-z][a-z-]*', name) for name, _, _ in pairs):
        raise argparse.ArgumentTypeError(f'takes key=value,key=value, such as partition=gpu,time=60, got {text!r}')
    return {name: value for name, _, value in pairs}


def run(args: argparse.Namespace) -> int:
    """Run the command; return 1 where a run has no figures."""
    from timm_molly.study.study import lines, study

    what = {
        'script': args.train_script,
        'data_dir': args.data_dir,
        'corrupted_dir': args.corrupted_dir,
        'only': args.only or (),
        'output': args.output,
    }
    if args.list:
        for line in lines(args.grid, **what):
            print(line)
        return 0
    found = study(args.grid, **what, jobs=args.jobs, slurm=args.slurm, against=args.against)
    print(f'\n{found.title}\n\n{found.tables}\n\nwrote {", ".join(found.files)} to {found.output}')
    return 0 if found.finished else 1
