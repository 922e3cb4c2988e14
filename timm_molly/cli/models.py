"""`timm-molly models`: list the models in a folder with their figures."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = 'list the models in a folder with their figures'
DESCRIPTION = 'List the models in the folders of a folder, with error and calibration, clean and corrupted.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        'folder', metavar='DIR', type=Path, help='folder of folders that timm-molly push --dry-run made'
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from timm_molly.hub.make import table

    print(table(args.folder))
