"""The entry point that PyTorch calls at the end of `import torch`, in every process of this environment.

It must cost next to nothing and never raise: whatever is wrong here, `import torch` and other people's scripts go on.
So it imports nothing heavy, and only arranges for `plugin.install` to run once timm is imported.
"""

import logging
import os
from types import ModuleType


def autoload() -> None:
    """Register the plugin as soon as `timm.data` is imported, unless `TIMM_MOLLY_AUTOLOAD=0`."""
    if os.environ.get('TIMM_MOLLY_AUTOLOAD') == '0':
        return
    try:
        from wrapt import register_post_import_hook

        register_post_import_hook(_on_import, 'timm.data')
    except Exception as error:
        _warn(error)


def _on_import(timm_data: ModuleType) -> None:
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
