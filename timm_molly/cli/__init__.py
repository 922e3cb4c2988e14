"""The `timm-molly` command: a module for each subcommand, which turns flags into calls of the library.

A module has `HELP`, `DESCRIPTION`, `add_arguments(parser)`, and `run(args)`, which returns an exit code or None for 0;
and `RESUMABLE` where the same command goes on after an interrupt.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from timm_molly import __version__
from timm_molly.errors import UserError, hint, needs

COMMANDS = ('run', 'recipes', 'preview', 'demo', 'validate', 'fit', 'compare', 'study', 'push', 'card', 'models')
START = f"""\
timm-molly {__version__}: train.py --aa molly, and what comes before and after it

  timm-molly preview PHOTO.jpg             draw what the network will see, and how sure its label stays
  timm-molly validate RUN --data-dir DIR   measure a training: error and calibration, clean and corrupted
  timm-molly push RUN --repo-id ME/NAME    share it on the Hugging Face Hub

timm-molly --help lists all commands, timm-molly COMMAND --help what one takes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command on its arguments, those of the process if None.

    Returns:
        The command's exit code: 0; 2 after a line on stderr where the user has to change something; 130 where it was
        interrupted and would go on; 141 where nobody reads on.
    """
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # of `timm-molly models hub_cards | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left to be flushed
        return 141  # as a shell says of SIGPIPE


def _run(arguments: Sequence[str]) -> int:
    modules = {name: importlib.import_module(f'{__name__}.{name}') for name in COMMANDS}
    parser = _parser(modules)
    if not arguments:
        print(START)
        return 0
    name = next(word for word in [*arguments, '-'] if word != '--debug')
    if name not in COMMANDS and not name.startswith('-'):
        parser.error(f'no command {name!r}{hint(name, COMMANDS)}; there are {", ".join(COMMANDS)}')
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        command = _commands(parser)[args.command]
        options = [option for action in command._actions for option in action.option_strings]
        command.error(f'no argument {" ".join(unknown)!r} is known{hint(unknown[0].partition("=")[0], options)}')
    args.command_line = ' '.join(['timm-molly', *arguments])  # which reports quote
    module = modules[args.command]
    try:
        with notes() if args.command != 'run' else nullcontext():  # a script has a log of its own
            code = module.run(args)
    except KeyboardInterrupt:
        if args.debug or not getattr(module, 'RESUMABLE', False):
            raise
        print('\ninterrupted; the same command goes on with what is left', file=sys.stderr)
        return 130
    except UserError as error:
        if args.debug:
            raise
        print(f'timm-molly {args.command}: {error}', file=sys.stderr)
        return 2
    return int(code or 0)


def _parser(modules: dict[str, ModuleType]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='timm-molly', description='Mollification for timm.')
    parser.add_argument('--version', action='version', version=f'timm-molly {__version__}')
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    parser.add_argument(
        '--print-completion',
        action=_Completion,
        choices=('bash', 'zsh', 'tcsh'),
        help='print the completion of a shell',
    )
    commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    for name, module in modules.items():
        command = commands.add_parser(name, help=module.HELP, description=module.DESCRIPTION)
        module.add_arguments(command)
        if name != 'run':  # whose arguments are the script's
            command.add_argument('--debug', action='store_true', default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def _commands(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    commands = next(action.choices for action in parser._actions if action.dest == 'command')
    assert isinstance(commands, dict)
    return commands


class _Completion(argparse.Action):
    """Print the completion script of a shell, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, shell: Any, option: str | None = None) -> None:
        try:
            import shtab
        except ImportError as error:
            parser.error(str(needs('completion', 'completion', error)))
        for action in (action for command in _commands(parser).values() for action in command._actions):
            if action.type is Path or action.metavar in ('DIR', 'FILE'):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(parser, shell))
        parser.exit()


@contextmanager
def notes() -> Iterator[None]:
    """Show on stderr what the library notes, as it is."""
    logger, handler = logging.getLogger('timm_molly'), logging.StreamHandler(sys.stderr)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
