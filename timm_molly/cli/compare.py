"""`timm-molly compare`: put reports side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from timm_molly.errors import UserError

FILES = ('.md', '.txt', '.csv', '.json', '.png', '.pdf', '.svg', '.htm')  # which nobody calls a folder

HELP = 'put reports side by side'
DESCRIPTION = 'Put two to six reports of timm-molly validate side by side, with differences to the first.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument('reports', metavar='REPORT', nargs='+', type=Path, help='report.json, or its folder')
    parser.add_argument(
        '-o',
        '--output',
        metavar='DIR|FILE.html',
        type=Path,
        default=Path('output/compare'),
        help='where table and picture go, or one page of HTML (default: %(default)s)',
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from timm_molly.robustness.compare import compare
    from timm_molly.robustness.report import Report

    if args.output.suffix.lower() in FILES:
        raise UserError(f'--output must be a folder, or one page FILE.html, got {args.output}')
    reports = [Report.load(path) for path in args.reports]
    names = [report.model.label for report in reports]
    comparison = compare(reports, names if len({*names}) == len(names) else [str(path) for path in args.reports])
    if args.output.suffix == '.html':
        comparison.save_html(args.output)
        print(f'{comparison}\n\nwrote {args.output}')
        return
    comparison.save(args.output)
    print(f'{comparison}\n\nwrote {args.output}/compare.md and compare.png')
