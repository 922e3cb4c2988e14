"""timm's train.py: where it is, and what flags it has."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from timm_molly.errors import UserError, hint
from timm_molly.robustness import report
from timm_molly.study.grid import Entry

# The command line's, because a train script gets its arguments as a process does.
CHILD = [sys.executable, '-m', 'timm_molly.cli.child']


def train_script(given: str | Path | None) -> Path:
    """Find timm's train.py, which is not in timm's wheel.

    Raises:
        UserError: It is not there, with how to get it.
    """
    named = given or os.environ.get('TIMM_TRAIN_SCRIPT')
    if named and Path(named).is_file():
        return Path(named).resolve()
    from timm.version import __version__ as version

    tag = 'main' if 'dev' in version else f'v{version}'
    raise UserError(
        (f'no such train script: {named}' if named else 'which train.py? Give --train-script, or set TIMM_TRAIN_SCRIPT')
        + f". timm's wheel has none; the one that fits timm {version}: git clone --depth 1 --branch {tag} "
        'https://github.com/huggingface/pytorch-image-models, then --train-script pytorch-image-models/train.py'
    )


def beside(script: Path) -> dict[str, str]:
    """The environment in which a process finds what is beside the script, a checkout of timm, as the script does."""
    paths = [str(script.resolve().parent), os.environ.get('PYTHONPATH')]
    return {'PYTHONPATH': os.pathsep.join(path for path in paths if path)}


def ask(script: Path) -> tuple[set[str], dict[str, Any]]:
    """Ask a train script what flags it has, by their names in a --config file.

    Returns:
        The flags; and what to know the script by, its sha256 and versions of timm and others.

    Raises:
        UserError: It does not answer.
    """
    environment = {**os.environ, **beside(script), 'COLUMNS': '100'}
    asked = subprocess.run(
        [*CHILD, 'about', str(script)], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment
    )
    found = {name.replace('-', '_') for name in re.findall(r'(?<![\w-])--([A-Za-z][\w-]*)', asked.stdout)}
    if asked.returncode or not {'data_dir', 'model', 'aa', 'experiment'} <= found:
        last = (asked.stderr.strip().splitlines() or ['it has no --data-dir, --model, --aa, --experiment'])[-1]
        raise UserError(f'{script} is not a train script of timm that works here: {last}')
    versions = {**report.packages(), 'timm': asked.stdout.strip().splitlines()[-1]}
    about = {name: versions.get(name) for name in ('timm', 'timm-molly', 'torch', 'torchvision')}
    return found, {'sha256': hashlib.sha256(script.read_bytes()).hexdigest(), **about}


def check_flags(entries: Iterable[Entry], known: set[str], script: Path) -> None:
    """Raise UserError where an entry has a flag that the script does not know, which train.py would pass over."""
    for entry in entries:
        for name in entry.train:
            if name not in known:
                flag = f'--{name.replace("_", "-")}'
                raise UserError(f'recipe {entry.recipe}: {script} has no {flag}{hint(name, known)}')
