"""Errors that the user can do something about."""


class UserError(ValueError):
    """Something that the user has to change: what was wrong, the value, and what to do.

    The command line prints it as one line. Any other exception is a bug, and shows its traceback.
    """


class PackageError(UserError, ImportError):
    """A package that an extra of timm-molly brings is not installed."""


class HubError(UserError, ConnectionError):
    """The Hub could not be reached, or kept failing."""


def needs(what: str, extra: str, error: ImportError) -> PackageError:
    """Say which packages to install for what was asked.

    Args:
        what: What needs them, such as 'drawing'.
        extra: Of timm-molly's extras, the one that has them.
        error: Of the import that failed.
    """
    return PackageError(f'{what} needs more: pip install "timm-molly[{extra}]" ({error})')
