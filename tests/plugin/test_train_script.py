"""timm's train.py with `--aa molly`, whole: the script named by TIMM_TRAIN_SCRIPT, or the stand-in beside this file."""

import json
import math
import re
import shutil
import socket
from pathlib import Path

import pytest
import timm
import torch
from support import warm
from support.train import FOLDER, SCRIPT, STAND_IN, arguments, usage
from timm.models._hub import save_for_hf

pytestmark = pytest.mark.train

CASES = {
    'plain': '',
    'smoothing 0': '--smoothing 0',
    'bce': '--bce-loss',
    'bce with threshold': '--bce-loss --bce-target-thresh 0.2',
    'no prefetcher': '--no-prefetcher',
    'randaugment': '--aa molly+rand-m9-mstd0.5-inc1',
    'augmix': '--aa augmix-m5-w4-d2+molly',
    'autoaugment': '--aa original+molly',
    'random erasing': '--reprob 0.5',
    'trivialaugment': '--aa molly+rand-n1-p1-mstd101',
    'jsd': '--aug-splits 3 --jsd-loss --resplit --split-bn --reprob 0.6',
    'distillation': '--kd-model-name local-dir:{teacher}',
    'amp bfloat16': '--amp --amp-dtype bfloat16',
    'model bfloat16': '--model-dtype bfloat16',
    'channels last': '--channels-last',
    'grad accumulation': '--grad-accum-steps 3',
    'ema': '--model-ema',
    'compile': '--torchcompile {backend}',
    'several sizes': '--train-img-sizes 24 32',
    'one channel': '--in-chans 1',
    'multi-epochs loader': '--use-multi-epochs-loader --epochs 2',
    'settings': '--aa molly-mxxn-b4-k2',
}
MIXED_CASES = {
    'mixup and cutmix': '--mixup 0.2 --cutmix 1.0',
    'mixup off': '--mixup 0.2 --mixup-off-epoch 1 --epochs 2',
    'mixup with bce': '--mixup 0.2 --bce-loss',
    'no prefetcher, mixup': '--no-prefetcher --mixup 0.2 --cutmix 1.0',
}


@pytest.fixture
def train(image_folder, tmp_path, python):
    """Train with the given options, and return the log and what the loss was given."""

    def run(options: str):
        record = tmp_path / 'record.json'
        record.unlink(missing_ok=True)
        options = arguments(image_folder, tmp_path / 'output', options)
        compiled = '--torchcompile' in options  # whose own worker processes need a process of its own
        run_script = warm.run_script if SCRIPT == STAND_IN and not compiled else python
        done = run_script(FOLDER / 'spy.py', record, SCRIPT, *options)
        log = done.stdout + done.stderr
        if done.returncode and SCRIPT != STAND_IN and python(SCRIPT, *without_molly(options)).returncode:
            pytest.skip(f'this train script fails on the CPU without molly too: {log.strip().splitlines()[-1]}')
        assert done.returncode == 0, log[-4000:]
        return log, json.loads(record.read_text())

    return run


def without_molly(options: list[str]) -> list[str]:
    return [option for option in options if option not in ('--aa', 'molly')]


@pytest.fixture
def teacher(tmp_path) -> Path:
    """A model with saved weights to distil from, for the scripts that can."""
    folder = tmp_path / 'teacher'
    if '--kd-model-name' in usage():
        torch.manual_seed(0)
        save_for_hf(timm.create_model('test_resnet', num_classes=3), folder, model_config={'num_classes': 3})
    return folder


def check_log(log: str) -> None:
    assert log.count('Mollification is on: molly') == 1
    losses = [float(value) for value in re.findall(r'Loss: +([\d.]+|nan|inf)', log)]
    assert losses, log
    assert all(math.isfinite(value) for value in losses)


@pytest.mark.parametrize('name', CASES)
def test_index_targets_reach_the_loss_coupled(name, train, teacher):
    options = CASES[name]
    if 'compile' in name and shutil.which('g++') is None:
        pytest.skip('torch.compile needs a C++ compiler on the CPU')
    log, record = train(options.format(teacher=teacher, backend='inductor'))
    check_log(log)

    calls, batches = record['calls'], record['batches']
    half = 'bfloat16' in name
    expected_steps = 6 * (2 if '--epochs 2' in options else 1)
    assert len(calls) == len(batches) == expected_steps
    for call in calls:
        # A loss in bfloat16 is rounded to one of 256 steps in an octave; torch 2.5 is one of them off.
        assert call['value'] == pytest.approx(call['expected'], rel=2**-7 if half else 1e-5, abs=1e-6)
    # The hard labels would have given something else, by more than the tolerance above.
    assert max(abs(call['hard'] - call['expected']) / call['expected'] for call in calls) > (1e-2 if half else 1e-3)
    k = 2 if 'settings' in name else 1
    splits = 3 if 'jsd' in name else 1
    for call, batch in zip(calls, batches, strict=True):
        views = len(batch['roles']) // splits
        assert batch['roles'] == batch['roles'][:views] * splits
        assert batch['t'] == batch['t'][:views] * splits
        assert len(call['gamma']) == views
        for gamma, role, t in zip(call['gamma'], batch['roles'], batch['t'], strict=False):
            noise, blur = math.sin(math.pi * t / 2) ** (2 * k), t**k
            assert gamma == pytest.approx({'x': 0, 'n': noise, 'b': blur}[role], abs=1e-5)
    roles = ''.join(batch['roles'] for batch in batches)
    assert set(roles) == set('xn' if 'settings' in name else 'xnb')
    if 'sizes' in name:
        assert {batch['shape'][-1] for batch in batches} == {24, 32}
    if 'channel' in name and 'one' in name:
        assert batches[0]['shape'][1] == 1
    if 'model bfloat16' in name:
        assert batches[0]['dtype'] == 'torch.bfloat16'


NAFLEX = (
    '--model naflexvit_base_patch16_gap --model-kwargs embed_dim=24 depth=1 num_heads=2 --naflex-loader '
    '--naflex-train-seq-lens 4 9 --naflex-max-seq-len 9'
)
NAFLEX_CASES = {
    'plain': '',
    'mixup and cutmix': '--mixup 0.2 --cutmix 1.0',
    'erasing': '--reprob 0.5 --remode pixel',
    'amp bfloat16': '--amp --amp-dtype bfloat16',
    'model bfloat16': '--model-dtype bfloat16',
    'grad accumulation': '--grad-accum-steps 3',
    'channels first': '--naflex-patchify-channels-first',
}


@pytest.mark.parametrize('name', NAFLEX_CASES)
def test_naflex_batches_reach_the_loss_coupled(name, train):
    log, record = train(f'{NAFLEX} {NAFLEX_CASES[name]}')
    check_log(log)
    assert record['calls']
    if 'mixup' in name:
        smallest = [row[0] for call in record['calls'] for row in call['rows']]
        assert sum(value > 1 / 30 + 1e-4 for value in smallest) > 0.3 * len(smallest)
        return
    for call in record['calls']:
        assert call['value'] == pytest.approx(call['expected'], rel=2**-7 if 'bfloat16' in name else 1e-5, abs=1e-6)
    gamma = [value for call in record['calls'] for value in call['gamma']]
    assert 0.2 < gamma.count(0) / len(gamma) < 0.5  # a third is clean
    assert max(gamma) > 0.5


@pytest.mark.parametrize('name', MIXED_CASES)
def test_mixed_targets_reach_the_loss_smoothed_image_by_image(name, train):
    log, record = train(MIXED_CASES[name])
    check_log(log)
    calls = record['calls']
    assert len(calls) == 6 * (2 if '--epochs 2' in MIXED_CASES[name] else 1)
    assert all(sum(row) == pytest.approx(1, abs=1e-5) for call in calls for row in call['rows'])
    # Without molly each row's smallest entry is timm's smoothing / K = 1 / 30, or more if three labels never meet.
    smallest = [row[0] for call in calls for row in call['rows']]
    raised = [value for value in smallest if value > 1 / 30 + 1e-4]
    assert min(smallest) == pytest.approx(1 / 30, abs=1e-4)
    assert 0.3 < len(raised) / len(smallest) <= 1
    assert len({round(value, 5) for value in raised}) > len(raised) / 4


def test_mixup_switched_off_between_epochs_stays_off(train):
    # Without workers: timm's persistent workers keep the collate function, mixup on, that they were started with.
    _, record = train('--mixup 0.2 --mixup-off-epoch 1 --epochs 2 -j 0')
    mixed = [any(row[1] - row[0] > 1e-5 for row in call['rows']) for call in record['calls']]  # two labels in a row
    assert any(mixed[:6])
    assert not any(mixed[6:])


def test_a_config_file_switches_it_on(train, tmp_path):
    (tmp_path / 'recipe.yaml').write_text('aa: molly-b4\nsmoothing: 0.0\n')
    log, record = train(f'--config {tmp_path / "recipe.yaml"}')
    check_log(log)
    assert 'molly-b4' in log
    assert all(call['loss'] == 'CrossEntropyLoss' and 'gamma' in call for call in record['calls'])


def test_a_checkpoint_resumes(train, tmp_path):
    train('--epochs 1')
    log, record = train(f'--epochs 2 --resume {tmp_path / "output/run/last.pth.tar"}')
    check_log(log)
    assert len(record['calls']) == 6
    assert 'Train: 1 [' in log
    assert 'Train: 0 [' not in log


def test_the_same_seed_gives_the_same_training(train):
    first, second = (train('--seed 1')[1] for _ in range(2))
    assert first == second


def test_without_molly_the_script_is_as_it_was(train):
    log, record = train('--aa rand-m9-mstd0.5-inc1')
    assert 'Mollification' not in log
    assert record['batches'] == []
    assert all('gamma' not in call and 'rows' not in call for call in record['calls'])


def test_no_aug_switches_it_off_and_says_so(train):
    log, record = train('--no-aug')
    assert 'no mollification, because --no-aug' in log
    assert record['batches'] == []


def test_nothing_but_the_flag_is_needed(image_folder, tmp_path, python):
    done = python(SCRIPT, *arguments(image_folder, tmp_path, ''))
    assert done.returncode == 0, done.stderr[-4000:]
    check_log(done.stdout + done.stderr)


def test_the_first_batch_is_drawn_beside_the_checkpoints(image_folder, tmp_path, python):
    options = arguments(image_folder, tmp_path, '')
    done = python(SCRIPT, *options, env={'TIMM_MOLLY_BATCH': 'batch.png'})
    assert done.returncode == 0, done.stderr[-4000:]
    log = done.stdout + done.stderr
    check_log(log)
    assert log.count('Drew the first batch: ') == 1
    assert {'batch.png', 'last.pth.tar'} <= {path.name for path in (tmp_path / 'run').iterdir()}
    assert 'label smoothing 0.1 (--smoothing 0 for none' in log


@pytest.mark.parametrize('launcher', ['python -m timm_molly', 'timm-molly run'])
def test_the_launchers_work_where_autoload_is_off(launcher, image_folder, tmp_path, python):
    start = ['-m', 'timm_molly'] if '-m' in launcher else ['-c', 'from timm_molly.cli import main; main()', 'run']
    done = python(*start, SCRIPT, *arguments(image_folder, tmp_path, ''), env={'TORCH_DEVICE_BACKEND_AUTOLOAD': '0'})
    assert done.returncode == 0, done.stderr[-4000:]
    check_log(done.stdout + done.stderr)


def test_the_environment_switches_it_off(image_folder, tmp_path, python):
    done = python(SCRIPT, *arguments(image_folder, tmp_path, ''), env={'TIMM_MOLLY_AUTOLOAD': '0'})
    assert done.returncode != 0
    assert 'Unknown AA policy' in done.stderr  # timm's own words
    assert 'Mollification' not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ('--aa molly-z3', 'z3'),
        ('--aa molly+molly-b2', "joined with '+' to at most one other policy"),
    ],
)
def test_what_cannot_work_is_refused_before_training(options, words, image_folder, tmp_path, python):
    run_script = warm.run_script if SCRIPT == STAND_IN else python
    done = run_script(SCRIPT, *arguments(image_folder, tmp_path, options))
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('timm_molly.errors.UserError: ')
    assert words in last
    assert 'Train: 0' not in done.stdout + done.stderr


@pytest.fixture
def ranks(image_folder, tmp_path, python):
    """Train on two ranks, and return what the loss of each was given."""

    def run(name: str, *start: str, options: str = '', **env: str):
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        launcher = ('-m', 'torch.distributed.run', '--nproc_per_node', '2', '--master_port', port, *start)
        record = tmp_path / f'{name}.json'
        done = python(
            *launcher, FOLDER / 'spy.py', record, SCRIPT, *arguments(image_folder, tmp_path / name, options), env=env
        )
        log = done.stdout + done.stderr
        assert done.returncode == 0, log[-4000:]
        check_log(log)  # one line for both ranks
        return [json.loads(Path(f'{record}.{rank}').read_text()) for rank in range(2)]

    return run


on_the_cpu = pytest.mark.skipif(
    SCRIPT != STAND_IN, reason="timm's own train.py refuses distributed training on the CPU"
)


@on_the_cpu
def test_ranks_draw_different_noise_and_repeat_their_own(ranks):
    first, again = ranks('first'), ranks('again', '-m', 'timm_molly', TORCH_DEVICE_BACKEND_AUTOLOAD='0')
    assert first == again
    assert all(len(rank['calls']) == 3 for rank in first)  # 48 images, 2 ranks, batches of 8
    assert first[0]['batches'][0]['t'] != first[1]['batches'][0]['t']
    assert first[0]['batches'][0]['checksum'] != first[1]['batches'][0]['checksum']


@on_the_cpu
@pytest.mark.slow
def test_ranks_of_a_naflex_loader_draw_differently(ranks):
    first = ranks('naflex', options=NAFLEX)
    gamma = [[call['gamma'] for call in rank['calls']] for rank in first]
    assert gamma[0] != gamma[1]
