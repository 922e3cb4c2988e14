"""`timm-molly preview`: draw what the network will see."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = 'draw what the network will see'
DESCRIPTION = 'Draw noise and blur at t = 0, 0.2 ... 1, with the confidence that the label keeps.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument('images', metavar='IMAGE', nargs='+', type=Path)
    parser.add_argument('--aa', default='molly', help='as for train.py (default: %(default)s)')
    parser.add_argument(
        '-o',
        '--output',
        metavar='FILE',
        type=Path,
        default=Path('preview.png'),
        help='picture to write, .png, .pdf or .svg (default: %(default)s)',
    )
    parser.add_argument('--img-size', type=int, default=224, metavar='N', help='input size (default: %(default)s)')
    parser.add_argument('--num-classes', type=int, default=1000, metavar='K', help='(default: %(default)s)')
    parser.add_argument('--multi-label', action='store_true', help='labels that are each present or absent')


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from timm_molly.preview import check_picture, preview, save_figure

    check_picture(args.output)  # before anything is drawn
    save_figure(
        preview(args.images, args.aa, args.img_size, None if args.multi_label else args.num_classes), args.output
    )
    print(f'wrote {args.output}')
