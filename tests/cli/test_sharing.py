"""Several processes measure in one folder: each cell once, and the same report as one process."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import sharing, warm

from timm_molly.cli import main

CELLS = ['clean', *(f'{name} {s}' for name in ('gaussian_noise', 'shot_noise', 'contrast') for s in (1, 2, 3, 4, 5))]


@pytest.fixture
def arguments(flags, tmp_path):
    return [*flags, '--corruptions', 'gaussian_noise', 'shot_noise', 'contrast', '-o', str(tmp_path / 'out')]


@pytest.fixture
def log(tmp_path):
    return tmp_path / 'log'


def start(count, arguments, log, faults=('', '')):
    ready = warm.context.Barrier(count)
    processes = [
        warm.context.Process(target=sharing.validate, args=(arguments, str(log), ready, fault))
        for fault in faults[:count]
    ]
    for process in processes:
        process.ready = ready  # which ends where nobody refers to it
        process.start()
    return processes


def wait_for(path, process):
    while not Path(path).exists():
        assert process.is_alive()
        time.sleep(0.05)


def codes(processes):
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def report(folder, replace=''):
    return (Path(folder) / 'report.json').read_text().replace(str(replace), 'OUT')


@pytest.fixture
def alone(arguments, tmp_path, log):
    """What one process writes."""
    folder = tmp_path / 'alone'
    assert codes(start(1, [*arguments[:-1], str(folder)], tmp_path / 'log of one')) == [0]
    return report(folder, folder)


def test_two_processes_measure_each_cell_once_and_write_the_same_report(arguments, log, alone, tmp_path):
    assert codes(start(2, arguments, log)) == [0, 0]
    lines = [line.split(' ', 1) for line in log.read_text().splitlines()]
    assert sorted(cell for _, cell in lines) == sorted(CELLS)
    assert len({pid for pid, _ in lines}) == 2
    assert report(tmp_path / 'out', tmp_path / 'out') == alone
    assert not (tmp_path / 'out' / 'locks').exists()


def test_a_killed_process_leaves_its_cell_to_the_other(arguments, log, alone, tmp_path):
    processes = start(2, arguments, log, ('hang', ''))
    wait_for(f'{log}.hangs', processes[0])
    processes[0].kill()
    assert codes(processes) == [-9, 0]
    assert sorted(line.split(' ', 1)[1] for line in log.read_text().splitlines()) == sorted(CELLS)
    assert report(tmp_path / 'out', tmp_path / 'out') == alone


def test_a_full_disk_in_one_leaves_its_cell_to_the_other(arguments, log, alone, tmp_path):
    assert codes(start(2, arguments, log, ('full disk', ''))) == [2, 0]
    errors = [line for line in Path(f'{log}.err').read_text().splitlines() if 'No space left' in line]
    assert len(errors) == 1
    assert 'timm-molly validate: cannot write ' in errors[0]
    assert report(tmp_path / 'out', tmp_path / 'out') == alone


def test_other_settings_are_refused_while_one_measures(arguments, log, capsys):
    processes = start(1, arguments, log, ('hang',))
    wait_for(f'{log}.hangs', processes[0])
    assert main(['validate', *arguments, '--seed', '7']) == 2
    assert (
        'holds another measurement (there and now: benchmark.seed: 42, 7): delete it, or choose another --output'
        in capsys.readouterr().err
    )
    processes[0].kill()
    assert codes(processes) == [-9]
    assert main(['validate', *arguments]) == 0  # what the killed one left is finished


@pytest.mark.slow
def test_torchrun_shares_them(arguments, alone, tmp_path):
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    done = subprocess.run(
        [*command, '-m', 'timm_molly', 'validate', *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count('wrote ') == 1
    assert report(tmp_path / 'out', tmp_path / 'out') == alone
