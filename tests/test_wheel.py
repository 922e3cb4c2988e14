"""What is installed from an index: the wheel alone, and the sdist that it is built from."""

import os
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from support.train import SCRIPT, arguments

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def run(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """The wheel, built from the sdist, and the sdist."""
    if not (ROOT / '.gitignore').is_file():
        pytest.skip('not a checkout')
    folder = tmp_path_factory.mktemp('dist')
    run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', folder, ROOT)
    (wheel,), (sdist,) = folder.glob('*.whl'), folder.glob('*.tar.gz')
    return wheel, sdist


@pytest.fixture(scope='module')
def bare(built, tmp_path_factory):
    """The Python of an environment that has the wheel, and of this one's packages all but the checkout."""
    folder = tmp_path_factory.mktemp('bare')
    venv.create(folder, with_pip=False)
    python = folder / 'bin' / 'python'
    run(sys.executable, '-m', 'pip', '--python', python, 'install', '--no-deps', '--no-index', built[0])
    (packages,) = folder.glob('lib/python*/site-packages')
    # A folder of a .pth file is not looked through for other .pth files, of which the checkout's is one.
    (packages / 'others.pth').write_text('\n'.join(site.getsitepackages()))
    return python


def elsewhere(folder):
    """The environment of a process that nothing leads back to the checkout."""
    return {'cwd': folder, 'env': {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}}


def test_an_index_takes_them(built):
    assert run(sys.executable, '-m', 'twine', 'check', '--strict', *built).count('PASSED') == 2


def test_the_wheel_holds_the_package_and_the_recipes_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as file:
        names = {name for name in file.namelist() if '.dist-info/' not in name}
    package = {str(path.relative_to(ROOT)) for path in (ROOT / 'timm_molly').rglob('*') if path.is_file()}
    recipes = {f'timm_molly/recipes/{path.name}' for path in (ROOT / 'recipes').glob('*.yaml')}
    assert names == {name for name in package if not name.endswith('.pyc')} | recipes
    assert built[0].stat().st_size < 2**20


@pytest.mark.train
def test_train_py_needs_the_wheel_and_the_flag(bare, image_folder, tmp_path):
    found = run(bare, '-c', 'import timm_molly; print(timm_molly.__file__)', **elsewhere(tmp_path))
    assert str(bare.parents[1]) in found
    log = run(bare, SCRIPT, *arguments(image_folder, tmp_path, ''), **elsewhere(tmp_path))
    assert log.count('Mollification is on: molly') == 1


def test_the_wheels_recipes_are_listed_and_found(bare, tmp_path):
    command = bare.with_name('timm-molly')
    listed = run(command, 'recipes', **elsewhere(tmp_path))
    for path in (ROOT / 'recipes').glob('*.yaml'):
        assert f'\n{path.stem} ' in f'\n{listed}'
    path = Path(run(command, 'recipes', 'cifar10_augmix', **elsewhere(tmp_path)).strip())
    assert bare.parents[1] in path.parents
    assert path.read_text() == (ROOT / 'recipes' / 'cifar10_augmix.yaml').read_text()
    done = subprocess.run([command, 'recipes', 'cifar10_augmx'], capture_output=True, text=True, **elsewhere(tmp_path))
    assert done.returncode == 2
    assert "no recipe 'cifar10_augmx' (did you mean cifar10_augmix?)" in done.stderr


def test_the_tests_of_the_sdist_run(built, tmp_path):
    with tarfile.open(built[1]) as file:
        file.extractall(tmp_path, filter='data')
    (folder,) = tmp_path.iterdir()
    tests = ['tests/test_config.py', 'tests/test_architecture.py', 'tests/test_pages.py']
    options = ['-q', '-m', 'not train and not slow', '-p', 'no:xdist']
    said = run(
        sys.executable, '-m', 'pytest', *options, *tests, cwd=folder, env={**os.environ, 'PYTHONPATH': str(folder)}
    )
    assert ' passed' in said
