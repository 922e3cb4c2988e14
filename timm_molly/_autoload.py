"""The entry point that PyTorch calls at the end of `import torch`, in every process of this environment.

It must cost next to nothing and never raise: whatever is wrong here, `import torch` and other people's scripts go on.
So it imports nothing that torch has not imported, and only arranges for `plugin.install` to run once timm comes. (wrapt
has such an import hook too, but importing it takes longer than everything here.)
"""

import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

MODULE = 'timm.data'


def autoload() -> None:
    """Register the plugin as soon as `timm.data` is imported, unless `TIMM_MOLLY_AUTOLOAD=0`."""
    if os.environ.get('TIMM_MOLLY_AUTOLOAD') == '0':
        return
    if MODULE in sys.modules:
        _install(sys.modules[MODULE])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds `timm.data` where the other finders find it, and installs the plugin when it has been executed."""

    searching = False

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if name != MODULE or self.searching:
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

            def execute_and_install(module: ModuleType) -> None:
                execute(module)
                if module.__name__ == MODULE:  # a zip file's loader is shared by all that is in it
                    _install(module)

            loader.exec_module = execute_and_install  # type: ignore[union-attr, method-assign]
        except Exception as error:
            _warn(error)
        return spec


def _install(timm_data: ModuleType) -> None:
    try:
        from timm_molly.plugin import install

        install(timm_data)
    except Exception as error:
        _warn(error)


def _warn(error: Exception) -> None:
    logging.getLogger('timm_molly').warning(
        'timm-molly is installed but could not register, so --aa molly will not work (%s: %s). '
        'Reinstall it, or set TIMM_MOLLY_AUTOLOAD=0 to silence this.',
        type(error).__name__,
        error,
    )
