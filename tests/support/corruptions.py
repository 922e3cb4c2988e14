"""The corruptions under one name, and `corrupt` as a function."""

from timm_molly.robustness.corruptions.corrupt import Corrupt
from timm_molly.robustness.corruptions.names import BAR_OF, COMMON, GROUPS, HELD_OUT, SEVERITIES
from timm_molly.robustness.corruptions.strengths import TABLES, check_size, min_side, table_for

__all__ = [
    'BAR_OF',
    'COMMON',
    'GROUPS',
    'HELD_OUT',
    'SEVERITIES',
    'TABLES',
    'check_size',
    'corrupt',
    'min_side',
    'names_of',
    'table_for',
]


def names_of(table):
    """The corruptions that a table has strengths of."""
    return (*COMMON, *HELD_OUT, *BAR_OF[table])


def corrupt(image, name, severity, table, index=None, seed=0):
    """Corrupt an image by its place in a data set."""
    return Corrupt(name, severity, table, seed)(image, index)
