"""`import torch` in processes of their own, where timm-molly is whole, broken, or beside a timm that does not fit."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import timm_molly

ASK = 'import torch\nimport timm.data\nprint("went on", hasattr(timm.data.create_loader, "_timm_molly"))\n'

pytestmark = pytest.mark.slow


@pytest.fixture
def broken(tmp_path, python):
    """Run code with a copy of timm_molly in front of the installed one, after `change(copy)`."""

    def run(change, code=ASK, **env):
        copy = tmp_path / 'site' / 'timm_molly'
        shutil.copytree(Path(timm_molly.__file__).parent, copy, ignore=shutil.ignore_patterns('__pycache__'))
        change(copy)
        return python('-c', code, env={'PYTHONPATH': str(copy.parent), **env}, cwd=tmp_path)

    return run


def test_importing_torch_registers_the_plugin_once_timm_comes(python):
    done = python('-c', ASK)
    assert done.stdout == 'went on True\n'
    assert done.stderr == ''


def test_it_registers_when_timm_is_imported_first(python):
    done = python('-c', ASK.replace('import torch\n', 'from timm.data import create_loader\n'))
    assert done.stdout == 'went on True\n'


def test_it_imports_nothing_but_itself(python):
    code = (
        'import sys\nfrom importlib.metadata import entry_points\nimport torch\n'
        'entry, = entry_points(group="torch.backends", name="timm_molly")\n'
        'before = set(sys.modules)\nentry.load()()\nprint(*sorted(set(sys.modules) - before))\n'
    )
    done = python('-c', code, env={'TORCH_DEVICE_BACKEND_AUTOLOAD': '0'})
    assert done.stdout.split() == ['timm_molly', 'timm_molly.plugin', 'timm_molly.plugin.autoload']


def test_names_of_the_package_need_no_other_import(python):
    names = ['load', 'functional.noise', 'loss.CoupledCrossEntropy', 'Mollify', 'MollyConfig', 'CoupledTarget']
    done = python('-c', '\n'.join(['import timm_molly', *(f'timm_molly.{name}' for name in names), 'print("all")']))
    assert (done.stdout, done.stderr) == ('all\n', '')


@pytest.mark.parametrize(
    'finder',
    [
        'class Legacy:\n    def find_module(self, name, path=None): return None',
        'class Legacy:\n    def find_spec(self, name, path=None, target=None):\n'
        '        for finder in sys.meta_path:\n'
        '            if finder is not self and hasattr(finder, "find_spec"):\n'
        '                spec = finder.find_spec(name, path, target)\n'
        '                if spec: return spec',
    ],
    ids=['a finder of the old kind', 'a hook that asks the others'],
)
def test_it_gets_on_with_other_import_hooks(python, finder):
    done = python('-c', f'import sys\nimport torch\n{finder}\nsys.meta_path.insert(1, Legacy())\n{ASK}')
    assert done.stdout == 'went on True\n', done.stderr
    assert done.stderr == ''


def test_timm_in_a_zip_file_registers_once(broken):
    def change(copy):
        make_timm(copy.parent, '1.0.31', OLD, 'from .loader import create_loader\n')
        (copy.parent / 'timm' / 'other.py').write_text('')
        shutil.make_archive(str(copy.parent / 'packed'), 'zip', copy.parent, 'timm')
        shutil.rmtree(copy.parent / 'timm')

    code = f'import sys\nsys.path.insert(0, sys.path[1] + "/packed.zip")\n{ASK}import timm.other\n'
    done = broken(change, code)
    assert done.stdout == 'went on True\n', done.stderr
    assert done.stderr == ''


def test_importing_the_package_alone_imports_neither_torch_nor_timm(python):
    done = python('-c', 'import sys, timm_molly\nprint({"torch", "timm", "numpy", "wrapt"} & set(sys.modules))')
    assert done.stdout == 'set()\n'


@pytest.mark.parametrize('env', [{'TIMM_MOLLY_AUTOLOAD': '0'}, {'TORCH_DEVICE_BACKEND_AUTOLOAD': '0'}])
def test_the_environment_switches_it_off(python, env):
    assert python('-c', ASK, env=env).stdout == 'went on False\n'


def test_registering_by_hand_works_where_autoload_is_off(python):
    code = 'import timm_molly\ntimm_molly.register()\ntimm_molly.register()\n' + ASK
    code += 'import timm\nprint("models", timm.is_model("allconvnet"))\n'
    done = python('-W', 'error::UserWarning:timm', '-c', code, env={'TIMM_MOLLY_AUTOLOAD': '0'})
    assert (done.stdout, done.stderr) == ('went on True\nmodels True\n', '')


@pytest.mark.parametrize(
    ('change', 'lost'),
    [
        (lambda copy: (copy / 'plugin' / 'register.py').write_text('def install(:'), 'both'),
        (lambda copy: (copy / 'plugin' / 'register.py').unlink(), 'both'),
        (lambda copy: (copy / 'config.py').write_text('raise RuntimeError("half an upgrade")'), 'both'),
        (
            lambda copy: (copy / 'plugin' / 'autoload.py').write_text(
                (copy / 'plugin' / 'autoload.py')
                .read_text()
                .replace('loader = spec.loader', 'raise OSError("odd loader")')
            ),
            'both',
        ),
        (lambda copy: (copy / 'models' / 'small.py').write_text('from timm.layers import gone'), 'models'),
    ],
    ids=['syntax error', 'missing module', 'error at import', 'a loader that cannot be hooked', 'models'],
)
def test_a_broken_install_lets_torch_and_timm_go_on_and_says_in_a_line_what_is_lost(broken, change, lost):
    done = broken(change)
    assert done.returncode == 0
    assert done.stdout == f'went on {lost == "models"}\n'
    losses = ["timm does not know timm-molly's models"] + ['--aa molly will not work'] * (lost == 'both')
    assert done.stderr.count('\n') == len(losses)
    for loss in losses:
        assert f'timm-molly is installed but could not register, so {loss} (' in done.stderr


def test_registering_by_hand_says_which_timm_the_models_do_not_fit(broken):
    done = broken(
        lambda copy: (copy / 'models' / 'small.py').write_text('from timm.layers import gone'),
        'import timm, timm_molly\ntimm_molly.register()',
        TIMM_MOLLY_AUTOLOAD='0',
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith('timm_molly.errors.PackageError: the networks of timm-molly do not fit timm ')
    assert last.endswith('): update both (pip install -U timm-molly timm)')


def test_without_timm_torch_goes_on_in_silence(broken):
    done = broken(
        lambda copy: (copy.parent / 'timm.py').write_text('raise ModuleNotFoundError("no timm here", name="timm")'),
        'import torch\nprint("went on")\nimport timm_molly\ntimm_molly.register()',
    )
    assert done.stdout == 'went on\n'
    assert done.stderr.splitlines()[-1] == (
        'timm_molly.errors.PackageError: timm-molly needs timm, which is not installed: pip install timm'
    )


def make_timm(site, version, loader, data, models=''):
    """A timm of another time, as far as the plugin looks at it."""
    package = site / 'timm'
    (package / 'data').mkdir(parents=True)
    (package / '__init__.py').write_text(f'from .version import __version__\n{models}')
    (package / 'models.py').write_text('')
    (package / 'version.py').write_text(f'__version__ = {version!r}\n')
    (package / 'data' / '__init__.py').write_text(data)
    (package / 'data' / 'loader.py').write_text(loader)
    (package / 'data' / 'transforms_factory.py').write_text(
        'def transforms_imagenet_train(size, auto_augment=None):\n    return auto_augment\n'
    )


OLD = 'def create_loader(dataset, is_training=False, no_aug=False, auto_augment=None):\n    return auto_augment\n'


def test_beside_a_timm_that_is_too_old_only_molly_is_refused(broken):
    code = 'import torch\nfrom timm.data import create_loader\nprint(create_loader(0, True, auto_augment="rand-m9"))\n'
    done = broken(
        lambda copy: make_timm(
            copy.parent, '0.4.12', OLD, 'from .loader import create_loader\n', 'from . import models\n'
        ),
        code + 'create_loader(0, True, auto_augment="molly")',
    )
    assert done.stdout == 'rand-m9\n'
    assert 'could not register' not in done.stderr
    assert done.stderr.splitlines()[-1] == (
        'timm_molly.errors.PackageError: --aa molly needs timm 1.0.15 or newer, found 0.4.12: pip install -U timm'
    )


def test_beside_a_timm_whose_create_loader_moved_scripts_go_on_and_molly_is_told(broken):
    code = (
        'import torch\nfrom timm.data.elsewhere import create_loader\n'
        'print(create_loader("rand-m9"))\ncreate_loader("molly")'
    )

    def change(copy):
        make_timm(copy.parent, '9.0', '', '')
        (copy.parent / 'timm/data/elsewhere.py').write_text(
            'from . import transforms_factory\n'
            'def create_loader(aa):\n'
            '    return transforms_factory.transforms_imagenet_train(32, auto_augment=aa)\n'
        )

    done = broken(change, code)
    assert done.stdout == 'rand-m9\n'
    lines = done.stderr.splitlines()
    assert 'timm 9.0 has no timm.data.create_loader, which --aa molly needs: update timm-molly' in lines[0]
    assert "UserError: auto_augment='molly' reached timm's image transforms" in lines[-1]


def test_the_entry_point_is_installed():
    from importlib.metadata import entry_points

    (entry,) = entry_points(group='torch.backends', name='timm_molly')
    assert entry.value == 'timm_molly.plugin.autoload:autoload'
    subprocess.run([sys.executable, '-c', 'from timm_molly.plugin.autoload import autoload; autoload()'], check=True)
