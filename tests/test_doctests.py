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


def test_what_people_import_has_an_example():
    names = ['Classifier', 'evaluate', 'MollyConfig']
    for name in names:
        assert '>>> ' in getattr(timm_molly, name).__doc__ or '>>> ' in getattr(timm_molly, name).confidence.__doc__
