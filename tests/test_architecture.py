"""The rules of the house: which module may know which, and what only the command line may do."""

import ast
import importlib
from pathlib import Path

import pytest

import timm_molly
from timm_molly import robustness

ROOT = Path(timm_molly.__file__).parent
FILES = {
    '.'.join(path.relative_to(ROOT.parent).with_suffix('').parts).removesuffix('.__init__'): path
    for path in sorted(ROOT.rglob('*.py'))
}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}
LIBRARY = [name for name in FILES if not name.startswith(('timm_molly.cli', 'timm_molly.__main__'))]


def imported(name, trees=TREES):
    """Modules of the package that a module imports, in functions too, but not for types alone."""
    found = set()
    pending = list(ast.iter_child_nodes(trees[name]))
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING':
            continue
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f'{node.module}.{alias.name}' for alias in node.names}
            found |= {each if each in trees else home(each) for each in inner}
    return {each for each in found if each in trees and each != 'timm_molly'}


def home(name):
    """The module that a name is defined in: that of the table of a package whose names load on first use."""
    package, _, word = name.rpartition('.')
    inside = getattr({each.__name__: each for each in (timm_molly, robustness)}.get(package), '_HOME', {}).get(word)
    return f'{package}.{inside}' if inside else package


def circle(graph):
    """Return a circle of a graph as a list, or None."""
    done = set()

    def visit(name, way):
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return None
        found = next((c for each in sorted(graph[name]) if (c := visit(each, [*way, name]))), None)
        done.add(name)
        return found

    return next((c for name in sorted(graph) if (c := visit(name, []))), None)


def test_no_modules_import_each_other_in_a_circle():
    assert circle({name: imported(name) for name in TREES}) is None


def test_a_circle_is_found():
    assert circle({'a': {'b'}, 'b': {'c'}, 'c': {'b'}}) == ['b', 'c', 'b']
    trees = {'timm_molly.a': ast.parse('def f():\n    from timm_molly import b'), 'timm_molly.b': ast.parse('')}
    assert imported('timm_molly.a', trees) == {'timm_molly.b'}
    trees = {'timm_molly.a': ast.parse('from timm_molly import Mollify'), 'timm_molly.mollify': ast.parse('')}
    assert imported('timm_molly.a', trees) == {'timm_molly.mollify'}


@pytest.mark.parametrize('name', LIBRARY)
def test_the_library_knows_no_command_line(name):
    assert not any(each.startswith('timm_molly.cli') for each in imported(name))
    found = of_the_command_line(TREES[name])
    if name == 'timm_molly.weights':  # a Namespace is how train.py's checkpoints hold its settings
        found -= {'argparse', 'argparse.Namespace'}
    assert not found


def of_the_command_line(tree):
    """What a module has that only the command line may have."""
    nodes = list(ast.walk(tree))
    found = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    found |= {f'{ast.unparse(node.func)}()' for node in nodes if isinstance(node, ast.Call)}
    found |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'line {node.lineno}: an import that is not absolute is not followed here'
            found |= {f'{node.module}.{alias.name}' for alias in node.names}
    wrong = {'sys.argv', 'sys.exit', 'print()', 'exit()'}
    return {each for each in found if each in wrong or each.split('.')[0] == 'argparse'}


@pytest.mark.parametrize(
    ('code', 'found'),
    [
        ('def f():\n    print(1)', 'print()'),
        ('import argparse', 'argparse'),
        ('from argparse import Namespace', 'argparse.Namespace'),
        ('import sys\nwords = sys.argv[1:]', 'sys.argv'),
        ('from sys import argv', 'sys.argv'),
        ('import sys\nsys.exit(2)', 'sys.exit'),
    ],
)
def test_what_only_the_command_line_may_do_is_found(code, found):
    assert of_the_command_line(ast.parse(code)) == {found}


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


@pytest.mark.parametrize('name', FILES)
def test_no_function_is_longer_than_a_screen(name):
    for function in functions(TREES[name]):
        body = function.body[1:] if ast.get_docstring(function) else function.body
        lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
        assert lines <= 60, f'{function.name} has {lines} lines'


@pytest.mark.parametrize('name', [name for name, path in FILES.items() if path.name == '__init__.py'])
def test_each_folder_has_a_page_of_one_screen(name):
    page = FILES[name].with_name('README.md')
    assert page.is_file()
    assert len(page.read_text().splitlines()) <= (100 if name == 'timm_molly' else 60)  # the method's card is longer
    folder = FILES[name].parent
    said = page.read_text()
    for path in folder.glob('*.py'):
        if path.name not in ('__init__.py', '__main__.py'):
            assert f'`{path.name}`' in said or path.stem in said, f'{page} does not name {path.name}'


@pytest.mark.parametrize('module', [timm_molly, robustness], ids=lambda module: module.__name__)
def test_each_public_name_is_documented_and_there(module):
    for name in module.__all__:
        assert (getattr(module, name).__doc__ or '').strip(), name


def test_reading_a_report_and_importing_the_package_load_nothing_heavy(python):
    code = 'import sys, timm_molly; print([m for m in ("torch", "timm", "cv2", "matplotlib") if m in sys.modules])'
    assert python('-c', code, env={'TIMM_MOLLY_AUTOLOAD': '0'}).stdout == '[]\n'
    heavy = '("cv2", "scipy", "torchmetrics")'
    code = f'import sys; from timm_molly import Report; print([m for m in {heavy} if m in sys.modules])'
    assert python('-c', code).stdout == '[]\n'


def test_the_names_of_the_design_are_where_it_says():
    for name in ('evaluate', 'compare', 'fit', 'load', 'push', 'Classifier', 'Report', 'UserError'):
        assert getattr(timm_molly, name) is not None
    for name in ('common', 'Corrupt', 'Calibration'):
        assert getattr(importlib.import_module('timm_molly.robustness'), name) is not None
