"""The examples in docstrings run."""

import doctest
import importlib
import pkgutil

import pytest

import timm_molly

NAMES = [each.name for each in pkgutil.walk_packages(timm_molly.__path__, 'timm_molly.') if '__main__' not in each.name]


@pytest.mark.parametrize('name', NAMES)
def test_the_examples_of_a_module_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


def public(module):
    """Functions and classes that a module defines and does not hide."""
    return [
        value
        for name, value in vars(module).items()
        if not name.startswith('_') and getattr(value, '__module__', None) == module.__name__ and callable(value)
    ]


def has_example(value):
    documented = [value, *vars(value).values()] if isinstance(value, type) else [value]
    return any('>>> ' in (getattr(each, '__doc__', None) or '') for each in documented)


def test_what_people_import_has_an_example():
    for value in (timm_molly.Classifier, timm_molly.evaluate, timm_molly.MollyConfig, timm_molly.Mollify):
        assert has_example(value), value
    for value in (*public(timm_molly.functional), *public(timm_molly.loss)):
        assert has_example(value) or value.__name__.startswith('check_') or value.__name__ == 'describe', value
