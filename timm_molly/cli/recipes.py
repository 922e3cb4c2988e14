"""`timm-molly recipes`: the recipes that come with the package."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = 'list the recipes, or say where one is'
DESCRIPTION = (
    "List the recipes for timm's train.py that come with the package, or print the path of one: "
    'train.py --config $(timm-molly recipes cifar10_augmix) --data-dir ...'
)

PACKAGE = Path(__file__).parents[1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument('name', metavar='NAME', nargs='?', help='such as cifar10_augmix (default: list them)')


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from timm_molly.errors import UserError, hint

    found = recipes()
    if args.name is None:
        width = max(map(len, found))
        print('\n'.join(f'{name:<{width}}  {purpose(path)}' for name, path in found.items()))
        return
    name = args.name.removesuffix('.yaml')
    if name not in found:
        raise UserError(f'no recipe {args.name!r}{hint(name, found)}; timm-molly recipes lists them')
    print(found[name])


def recipes() -> dict[str, Path]:
    """The recipes by name: beside the modules in a wheel, beside the package in a checkout."""
    for folder in (PACKAGE / 'recipes', PACKAGE.parent / 'recipes'):
        if found := {path.stem: path for path in sorted(folder.glob('*.yaml'), key=lambda path: path.stem.split('_'))}:
            return found
    return {}


def purpose(path: Path) -> str:
    """What a recipe says of itself in its first line."""
    return path.read_text(encoding='utf-8').partition('\n')[0].strip('# .')
