"""Runs of a study as jobs of submitit, on this machine and by stand-ins for SLURM's commands."""

import json
import os
import signal
import stat
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from support import warm
from support.reports import cell, made
from support.study_jobs import run_grid

from timm_molly.cli.study import sbatch_flags
from timm_molly.errors import UserError
from timm_molly.study.grid import read_grid
from timm_molly.study.jobs import Engine, Line, local_engine, minutes, run_jobs, slurm_engine, visible_devices
from timm_molly.study.run import claim

HERE = Path(__file__).parents[1] / 'support'
ABOUT = {'timm': '1.2.3', 'sha256': 'abc'}


@pytest.fixture
def grid(tmp_path):
    """Writes a grid of recipes, of one epoch each."""

    def write(**recipes):
        (tmp_path / 'grid.yaml').write_text(
            yaml.safe_dump({'train': {'epochs': 1}, 'recipes': recipes, 'grid': [{'molly': 'none'}]})
        )
        return tmp_path / 'grid.yaml'

    return write


@pytest.fixture
def line(tmp_path):
    """Words of a process that does an entry, with `fake_child.py` in the place of training and measurement."""
    figures = made(cells={('clean', 0): cell(0.1), ('shot_noise', 1): cell(0.3), ('zoom_blur', 1): cell(0.2)})
    figures.save(tmp_path / 'report', pictures=False)
    child = [sys.executable, str(HERE / 'fake_child.py'), str(tmp_path / 'report' / 'report.json')]

    def words(entry):
        files = map(str, (tmp_path / 'grid.yaml', tmp_path / 'out'))
        return [sys.executable, str(HERE / 'study_line.py'), *files, str(entry), json.dumps(child), json.dumps(ABOUT)]

    return words


@pytest.mark.slow
def test_jobs_run_at_once_with_a_gpu_each_and_say_what_they_have_not_done(tmp_path, grid, line, monkeypatch, capsys):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,GPU-5')
    every = read_grid(grid(good={}, other={}, bad={'behave': 'no line'}), {}, {}).entries
    engine = local_engine(tmp_path / 'jobs' / '%j', 2, share_gpus=True)
    found = run_jobs({entry: line(entry) for entry in every}, tmp_path / 'out', ABOUT, engine)
    assert {str(entry): result['status'] for entry, result in found.items()} == {
        'good/0': 'finished',
        'other/0': 'finished',
        'bad/0': 'failed',
    }
    reason = 'its job ended without a result: timm-molly study: no such data folder: images'
    assert next(result['reason'] for entry, result in found.items() if str(entry) == 'bad/0') == reason
    assert f'bad/0: failed: {reason} (see {tmp_path}/out/bad/0/log.txt)' in capsys.readouterr().err
    assert 'no such data folder' in (tmp_path / 'out' / 'bad' / '0' / 'log.txt').read_text()
    # The first two run at once; the third gets the GPU of whichever ends first.
    devices = [(tmp_path / 'out' / str(entry) / 'device').read_text() for entry in every]
    assert {*devices[:2]} == {'2', 'GPU-5'} >= {devices[2]}
    assert not (tmp_path / 'jobs').exists()


@pytest.mark.slow
def test_a_job_that_dies_is_not_explained_by_an_earlier_start(tmp_path, grid, line):
    (entry,) = read_grid(grid(bad={'behave': 'no line'}), {}, {}).entries
    folder = tmp_path / 'out' / 'bad' / '0'
    claim(entry, folder, ABOUT)
    (folder / 'result.json').write_text(json.dumps({'status': 'failed', 'reason': 'train.py ended with code 1'}))
    engine = local_engine(tmp_path / 'jobs' / '%j', 1, share_gpus=False)
    found = run_jobs({entry: line(entry)}, tmp_path / 'out', ABOUT, engine)[entry]
    assert found['reason'].endswith('no such data folder: images')


def test_a_job_that_dies_before_its_folder_leaves_its_log(tmp_path, grid):
    (entry,) = read_grid(grid(bad={}), {}, {}).entries

    class Executor:
        folder = tmp_path / 'jobs' / '%j'

        def submit_array(self, jobs):
            paths = SimpleNamespace(folder=tmp_path / 'jobs' / '7')
            return [SimpleNamespace(done=lambda: True, stdout=lambda: 'out of memory\n', paths=paths) for _ in jobs]

    found = run_jobs({entry: ['true']}, tmp_path / 'out', ABOUT, Engine(Executor(), 1))[entry]
    assert found == {'status': 'failed', 'reason': 'its job ended without a result: out of memory'}
    assert (tmp_path / 'out' / 'bad' / '0' / 'log.txt').read_text() == 'out of memory\n'


@pytest.mark.parametrize('devices', [None, '', '3'])
def test_a_job_sees_the_gpus_that_the_study_sees(tmp_path, monkeypatch, devices):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if devices is not None:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', devices)
    engine = local_engine(tmp_path / 'jobs' / '%j', 2, share_gpus=False)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')  # as submitit has it
    look = f'import os; open({str(tmp_path / "seen")!r}, "w").write(str(os.environ.get("CUDA_VISIBLE_DEVICES")))'
    assert Line([sys.executable, '-c', look], engine.environments[0])() == 0
    assert (tmp_path / 'seen').read_text() == str(devices)


def test_jobs_share_the_gpus(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2, 5,7')
    assert visible_devices(4) == ['2', '5', '7']
    assert visible_devices(1) == []
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3')
    assert visible_devices(4) == []


def alive(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='looks processes up in /proc')
@pytest.mark.parametrize('ending', [signal.SIGINT, signal.SIGTERM])
def test_the_jobs_of_a_study_that_is_ended_end_too(tmp_path, grid, line, ending):
    path = grid(slow={'epoch_seconds': 600})
    (entry,) = read_grid(path, {}, {}).entries
    process = warm.context.Process(target=run_grid, args=(path, tmp_path / 'out', {str(entry): line(entry)}, ABOUT))
    process.start()
    commands = tmp_path / 'out' / 'slow' / '0' / 'commands'
    while not commands.is_file() or not commands.read_text().endswith('\n'):
        assert process.is_alive()
        time.sleep(0.05)
    pid = int(commands.read_text().split()[1])
    assert alive(pid)
    os.kill(process.pid, ending)
    process.join()
    assert process.exitcode == {signal.SIGINT: 1, signal.SIGTERM: 143}[ending]
    for _ in range(2400):  # two minutes: jobs that go on, not slowness; the training takes ten
        if not alive(pid):
            break
        time.sleep(0.05)
    assert not alive(pid)


# SLURM


SBATCH = """#!/bin/bash
# Runs an array one after the other, as a cluster of one core does.
grep -q partition=full "$1" && { echo 'sbatch: error: invalid partition specified: full' >&2; exit 1; }
cp "$1" "$FAKE/script"
export SLURM_JOB_ID=7 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
(
    sleep 1
    for task in $(seq 0 "${last:-0}"); do
        [ -z "$last" ] || export SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task
        bash "$FAKE/script"
    done
) > "$FAKE/log" 2>&1 &
echo 'Submitted batch job 7'
"""
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == --output ]] && shift; shift; done
exec "$@"
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Stand-ins for SLURM's commands."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    for name, text in {
        'sbatch': SBATCH,
        'srun': SRUN,
        'sacct': '#!/bin/sh\necho JobID\n',
        'scancel': '#!/bin/sh\n',
    }.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv('PATH', f'{folder}{os.pathsep}{os.environ["PATH"]}')
    monkeypatch.setenv('FAKE', str(folder))
    return folder


@pytest.mark.slow
def test_runs_are_an_array_of_slurm_with_the_flags_that_are_given(tmp_path, grid, line, cluster):
    every = read_grid(grid(good={}, other={}), {}, {}).entries
    flags = sbatch_flags('partition=gpu,gpus=1,time=4:00:00,exclusive')
    found = run_jobs(
        {entry: line(entry) for entry in every},
        tmp_path / 'out',
        ABOUT,
        slurm_engine(tmp_path / 'jobs' / '%j', flags, 5),
    )
    assert [result['status'] for result in found.values()] == ['finished'] * 2
    script = (cluster / 'script').read_text().splitlines()
    wanted = ('partition=gpu', 'gpus=1', 'time=240', 'exclusive', 'array=0-1%2', 'job-name=timm-molly')
    assert {f'#SBATCH --{flag}' for flag in wanted} <= set(script)


def test_what_slurm_refuses_is_said(tmp_path, grid, line, cluster):
    every = read_grid(grid(good={}, other={}), {}, {}).entries
    engine = slurm_engine(tmp_path / 'jobs' / '%j', {'partition': 'full', 'time': '5'}, None)
    with pytest.raises(UserError, match='slurm: the runs cannot be submitted: sbatch: error: invalid partition'):
        run_jobs({entry: line(entry) for entry in every}, tmp_path / 'out', ABOUT, engine)


def test_slurm_has_to_be_there_and_wants_a_time(tmp_path, cluster, monkeypatch):
    with pytest.raises(UserError, match='slurm: give time as well'):
        slurm_engine(tmp_path, {'partition': 'gpu'}, None)
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(UserError, match='slurm: no sbatch and srun on this machine'):
        slurm_engine(tmp_path, {'time': '5'}, None)


def test_without_submitit_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'submitit', None)
    with pytest.raises(UserError, match=r"pip install 'timm-molly\[cluster\]'"):
        local_engine(Path('jobs'), 2, share_gpus=False)


@pytest.mark.parametrize(
    ('time', 'wanted'),
    # As the manual of sbatch has them: minutes, minutes:seconds, hours:minutes:seconds, days-hours,
    # days-hours:minutes and days-hours:minutes:seconds.
    [('90', 90), ('90:30', 91), ('4:00:00', 240), ('1:2:3', 63), ('2-12', 3600), ('1-1:1', 1501), ('1-0:0:1', 1441)],
)
def test_times_are_read_as_sbatch_reads_them(time, wanted):
    assert minutes(time) == wanted


@pytest.mark.parametrize('time', ['', 'soon', '-5', '1:2:3:4', '1.5', '4h'])
def test_a_time_that_is_none_is_refused(time):
    with pytest.raises(UserError, match='slurm: time must be as sbatch takes it'):
        minutes(time)
