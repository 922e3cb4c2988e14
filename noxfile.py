"""`make matrix`: the whole test suite in environments that are built from nothing, from the oldest stack to the newest.

One of them: make matrix ARGS='-s oldest'. A Python that is not on this machine is skipped, and nox says so. Where
TIMM_CHECKOUT names a checkout of timm's repository with its tags, trainings run under the train.py of the timm that is
installed, where it has a tag, and not under our stand-in, which is for the newest timm.
"""

import os
import re
from pathlib import Path

import nox

nox.needs_version = '>=2024.4.15'
nox.options.default_venv_backend = 'venv'

# PyTorch's own index, the only place that has its `+cpu` builds for Linux.
CPU_INDEX = 'https://download.pytorch.org/whl/cpu'


def _test(session: nox.Session, *pins: str) -> None:
    # Compiled on all cores afterwards, which pip does on one.
    session.install('--no-compile', '--editable', '.[test]', *pins)
    session.run(
        'python', '-m', 'compileall', '-q', '-j', '0', session.virtualenv.location, success_codes=[0, 1], silent=True
    )
    session.run('python', '-m', 'pip', 'check')
    session.run('python', '-m', 'pytest', '-n', 'auto', '-rfEs', *session.posargs, env=_train_script(session))


def _train_script(session: nox.Session) -> dict[str, str]:
    """Write the scripts of timm's tag for the tests, and return the variable that names them."""
    checkout = os.environ.get('TIMM_CHECKOUT')
    version = session.run('python', '-c', 'from timm.version import __version__ as v; print(v)', silent=True)
    if not checkout or not version:
        return {}
    git = ('git', '-C', checkout)
    tag = f'v{version.strip()}'
    if not session.run(*git, 'tag', '--list', tag, external=True, silent=True):
        session.warn(f'{checkout} has no tag {tag}')
        return {}
    folder = Path(session.create_tmp()).resolve()  # the tests run elsewhere
    for name in ('train.py', 'validate.py'):
        script = session.run(*git, 'show', f'{tag}:{name}', external=True, silent=True, log=False)
        (folder / name).write_text(script)
    return {'TIMM_TRAIN_SCRIPT': str(folder / 'train.py')}


@nox.session(python='3.10')
def oldest(session: nox.Session) -> None:
    """The oldest Python, and of every package that pyproject.toml names its lower bound."""
    project = nox.project.load_toml('pyproject.toml')['project']
    extras = project['optional-dependencies']
    needed = [
        *project['dependencies'],
        *extras['plot'],
        *extras['robustness'],
        *extras['completion'],
        *extras['demo'],
        *extras['test'],
    ]
    bounds = [re.match(r'([\w-]+)>=([\w.]+)', each) for each in needed if not each.startswith('timm-molly')]
    _test(session, *(f'{bound[1]}=={bound[2]}' for bound in bounds))  # a package without a bound is an error


@nox.session(python='3.11')
def torch28(session: nox.Session) -> None:
    """A PyTorch and a timm from the middle."""
    _test(session, 'torch==2.8.*', 'torchvision==0.23.*', 'timm==1.0.22')


@nox.session(python='3.12')
def torch214(session: nox.Session) -> None:
    """The PyTorch that users have now."""
    _test(session, 'torch==2.14.1', 'torchvision==0.29.1')


@nox.session(python='3.13')
def newest(session: nox.Session) -> None:
    """The newest of everything."""
    _test(session, '--upgrade', '--upgrade-strategy', 'eager')


@nox.session(python='3.11')
def cpu(session: nox.Session) -> None:
    """A PyTorch that was built without CUDA, with the torchvision that belongs to it."""
    pins = 'torch==2.13.0+cpu', 'torchvision==0.28.0+cpu'
    session.install('--no-compile', '--extra-index-url', CPU_INDEX, *pins)
    _test(session, *pins)
