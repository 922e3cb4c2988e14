"""`timm-molly preview`: draw what the network will see."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = 'draw what the network will see'
DESCRIPTION = 'Draw noise and blur at t = 0, 0.2 ... 1, with the confidence that the label keeps.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument('images', metavar='IMAGE', nargs='+', type=Path, help='a file, or a folder: four of its images')
    parser.add_argument(
        '-o',
        '--output',
        metavar='FILE',
        type=Path,
        default=Path('preview.png'),
        help='picture to write, .png, .pdf or .svg (default: %(default)s)',
    )
    group = parser.add_argument_group('the training', 'As for train.py.')
    group.add_argument('--aa', default='molly', help='(default: %(default)s)')
    group.add_argument('--model', metavar='NAME', help='whose image size, mean, std and number of classes are taken')
    group.add_argument('--img-size', type=int, metavar='N', help='input side in pixels (default: 224)')
    group.add_argument('--mean', metavar='F', nargs='+', type=float, help="(default: ImageNet's)")
    group.add_argument('--std', metavar='F', nargs='+', type=float, help="(default: ImageNet's)")
    group.add_argument('--num-classes', type=int, metavar='K', help='(default: 1000)')
    group.add_argument('--multi-label', action='store_true', help='labels that are each present or absent')


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from timm_molly.preview import check_picture, of_model, preview, save_figure

    check_picture(args.output)  # before anything is drawn
    options = of_model(args.model) if args.model else {}
    given = {name: getattr(args, name) for name in ('img_size', 'num_classes', 'mean', 'std')}
    options |= {name: value for name, value in given.items() if value is not None}
    if args.multi_label:
        options['num_classes'] = None
    save_figure(preview(args.images, args.aa, **options), args.output)
    print(f'wrote {args.output}')
