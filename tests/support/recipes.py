"""Whether a train script takes what a recipe says."""

import importlib.util
import os

import timm

from support.train_flags import parser as STAND_IN

SCRIPT = os.environ.get('TIMM_TRAIN_SCRIPT')


def real_parser():
    """Import timm's own script, and return its parser."""
    spec = importlib.util.spec_from_file_location('real_train_script', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.parser


PARSER = real_parser() if SCRIPT else STAND_IN
OWNER = f'train.py of timm {timm.__version__ if SCRIPT else "main (August 2026)"}'


def problems(name, recipe, parser):
    """List what `parser` would not take on the command line; train.py itself takes anything from a --config file."""
    actions = {action.dest: action for action in parser._actions}
    for key, value in recipe.items():
        flag = f'--{key.replace("_", "-")}'
        if key not in actions:
            yield f'{name}.yaml: {OWNER} has no {flag}; the key {key} is misspelt or for a newer timm'
            continue
        action = actions[key]
        kind = action.type or str
        if action.nargs == 0:
            wanted, fits = 'true or false', isinstance(value, bool)
        elif type(action).__name__ == 'ParseKwargs':
            wanted, fits = 'a mapping', isinstance(value, dict)
        elif action.nargs in ('+', '*') or isinstance(action.nargs, int):
            wanted, fits = (
                f'a list of {kind.__name__}',
                isinstance(value, list) and all(fitting(v, kind) for v in value),
            )
            if isinstance(action.nargs, int):
                wanted, fits = f'{wanted}, {action.nargs} of them', fits and len(value) == action.nargs
        else:
            wanted, fits = kind.__name__, fitting(value, kind)
        if fits and action.choices:
            wanted, fits = f'one of {", ".join(action.choices)}', value in action.choices
        if not fits:
            yield f'{name}.yaml: {flag} takes {wanted}, not {value!r}'


def fitting(value, kind):
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind
