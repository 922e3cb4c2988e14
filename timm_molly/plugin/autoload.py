"""The entry point that PyTorch calls at the end of `import torch`, in every process of this environment.

It must cost next to nothing and never raise: whatever is wrong here, `import torch` and other people's scripts go on.
So it imports nothing that torch has not imported, and only arranges for functions of `plugin` to run once timm comes.
(wrapt has such an import hook too, but importing it takes longer than everything here.)
"""

import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def autoload() -> None:
    """Register the plugin as soon as timm is imported, unless `TIMM_MOLLY_AUTOLOAD=0`."""
    if os.environ.get('TIMM_MOLLY_AUTOLOAD') == '0':
        return
    for name in ACTIONS.keys() & sys.modules.keys():
        _act(sys.modules[name])
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _act(module: ModuleType) -> None:
    action, loss = ACTIONS[module.__name__]
    try:
        action(module)
    except Exception as error:
        _warn(loss, error)


def _install(timm_data: ModuleType) -> None:
    from timm_molly.plugin.register import install

    install(timm_data)


def _add_models(timm_models: ModuleType) -> None:
    from timm_molly.plugin.register import add_models

    add_models()


ACTIONS = {
    'timm.data': (_install, '--aa molly will not work'),
    'timm.models': (_add_models, "timm does not know timm-molly's models"),
}


class _Finder:
    """Finds the modules of `ACTIONS` where the other finders find them, and acts when they have been executed."""

    searching = False

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if name not in ACTIONS or self.searching:
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.searching = False
        if spec is None:
            return None
        try:
            loader = spec.loader
            execute = loader.exec_module  # type: ignore[union-attr]

            def execute_and_act(module: ModuleType) -> None:
                execute(module)
                if module.__name__ == name:  # a zip file's loader is shared by all that is in it
                    _act(module)

            loader.exec_module = execute_and_act  # type: ignore[union-attr, method-assign]
        except Exception as error:
            _warn(ACTIONS[name][1], error)
        return spec


def _warn(loss: str, error: Exception) -> None:
    logging.getLogger('timm_molly').warning(
        'timm-molly is installed but could not register, so %s (%s: %s). '
        'Reinstall it, or set TIMM_MOLLY_AUTOLOAD=0 to silence this.',
        loss,
        type(error).__name__,
        error,
    )
