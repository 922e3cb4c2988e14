"""`timm-molly card`: write the card of a pushed folder again."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = 'write the card of a pushed folder again'
DESCRIPTION = (
    'Write config, card, figures and evaluation results of folders for the Hub again, from their '
    'weights, args.yaml and report.json.'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument('folders', metavar='DIR', nargs='+', type=Path, help='as timm-molly push --dry-run writes them')
    parser.add_argument('--overwrite-card', action='store_true', help='also where it was edited by hand')


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from timm_molly.hub.make import make_again

    for folder in args.folders:
        print(f'{folder}: {", ".join(make_again(folder, args.overwrite_card)) or "nothing"} changed or removed')
