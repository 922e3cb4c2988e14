"""Steps of a whole training run with mollification beside steps without, in train.py.

It is the script named by TIMM_TRAIN_SCRIPT, or else the stand-in of the tests.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

HERE = Path(__file__).parent
SCRIPT = Path(os.environ.get('TIMM_TRAIN_SCRIPT') or HERE.parent / 'support' / 'train_script.py').resolve()
TURNS = 24  # of four steps: without, with, with, without


@pytest.mark.parametrize(('model', 'size', 'batch_size'), [('preactresnet18', 32, 32), ('resnet50', 224, 8)])
def test_training_is_as_fast_as_without(benchmark, row, tmp_path, model, size, batch_size):
    rng = np.random.default_rng(0)
    for split, count in (('train', 4 * TURNS * batch_size), ('validation', batch_size)):
        for i in range(count):
            path = tmp_path / split / str(i % 2) / f'{i}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
    out = tmp_path / 'seconds.json'
    options = (
        f'--data-dir {tmp_path} --model {model} --input-size 3 {size} {size} --num-classes 2 -b {batch_size} -j 1 '
        f'--epochs 1 --warmup-epochs 0 --device cpu --aa molly --output {tmp_path / "output"} --log-interval 1000'
    )

    def run():
        command = [sys.executable, HERE / 'train_speed.py', out, SCRIPT, *options.split()]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '2'})
        assert done.returncode == 0, done.stderr[-2000:]

    benchmark.pedantic(run, rounds=1)
    seconds = json.loads(out.read_text())
    # What slows the machine down for a while slows all steps of a turn. The first turn warms up.
    without, mollified, mollify = (
        np.array(seconds[key]).reshape(TURNS, 2)[1:] for key in ('without', 'with', 'mollify')
    )
    what = f'{"stand-in for train.py" if SCRIPT.parent == HERE.parent else "train.py"}, {model} {size} px'
    row(f'CPU seconds of a step with over without, {what}', '<= 1.01', mollified.sum(1) / without.sum(1))
    row(f'CPU seconds of a step without over without, {what}', '', without[:, 0] / without[:, 1])
    row(f'CPU seconds of mollification over those of a step, {what}', '<= 0.01', mollify.sum(1) / mollified.sum(1))
