"""The train script that tests run, timm's or the stand-in for it, and flags for it."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import warm

FOLDER = Path(__file__).parent
STAND_IN = FOLDER / 'train_script.py'
SCRIPT = Path(os.environ.get('TIMM_TRAIN_SCRIPT') or STAND_IN).resolve()


@functools.cache
def usage() -> str:
    if SCRIPT == STAND_IN:
        done = warm.run_script(SCRIPT, '--help')
    else:
        done = subprocess.run([sys.executable, SCRIPT, '--help'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def arguments(image_folder: Path, output: Path, options: str) -> list[str]:
    flags = set(re.findall(r'--[a-z-]+', options)) - {'--config'}  # which --help leaves out
    missing = [flag for flag in flags if flag not in usage()]
    if missing:
        pytest.skip(f'this train script has no {missing[0]}')
    aa = '' if '--aa' in options or '--config' in options else '--aa molly'
    epochs = '' if '--epochs' in options else '--epochs 1'
    common = (
        f'--data-dir {image_folder} --model test_resnet --img-size 32 --num-classes 3 -b 8 -j 1 --device cpu '
        f'--warmup-epochs 0 --lr 0.01 --log-interval 1 --output {output} --experiment run'
    )
    return f'{common} {aa} {epochs} {options}'.split()
