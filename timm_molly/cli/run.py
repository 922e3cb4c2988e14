"""`timm-molly run`: a train script with the plugin registered."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

HELP = 'run a train script with the plugin registered, where autoload is off'
DESCRIPTION = (
    'Run a train script with --aa molly available, as `python SCRIPT ARGUMENTS` does where PyTorch loads the plugin by '
    'itself. Under torchrun: torchrun ... -m timm_molly SCRIPT ARGUMENTS.'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument('script', metavar='SCRIPT', help='such as train.py')
    parser.add_argument('arguments', metavar='ARGUMENTS', nargs=argparse.REMAINDER, help='handed on as they are')


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from timm_molly.errors import UserError

    if not Path(args.script).is_file():
        raise UserError(f'no such train script: {args.script}')
    run_script(args.script, args.arguments)


def run_script(script: str, arguments: list[str]) -> None:
    """Run a script as `python SCRIPT` would, with the plugin registered."""
    from timm_molly.plugin.register import register

    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).resolve().parent))  # first, for a timm that is there beside the script
    register()
    runpy.run_path(script, run_name='__main__')
