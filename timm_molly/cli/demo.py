"""`timm-molly demo`: train a small model without and with molly, and compare."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = 'train a small model without and with molly, and compare'
DESCRIPTION = (
    'Train a small timm model twice at the same budget, without and with molly, on handwritten '
    'digits or on an image folder, and compare error, NLL and ECE on clean and degraded images.'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        '--data-dir',
        metavar='DIR',
        type=Path,
        help='image folder with train/ and val/ or validation/ (default: handwritten digits)',
    )
    parser.add_argument(
        '--output',
        metavar='DIR',
        type=Path,
        default=Path('output/demo'),
        help='where results go (default: %(default)s)',
    )
    parser.add_argument('--aa', default='molly', help='the second training (default: %(default)s)')
    parser.add_argument('--img-size', type=int, default=32, metavar='N', help='input size (default: %(default)s)')
    parser.add_argument('--epochs', type=int, default=10, metavar='N', help='(default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='(default: %(default)s)')


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    raise NotImplementedError
