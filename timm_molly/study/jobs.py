"""Runs as jobs of submitit: several at once on this machine, or on a SLURM cluster."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from timm_molly.errors import UserError
from timm_molly.files import make_folder
from timm_molly.study.grid import Entry
from timm_molly.study.run import known
from timm_molly.study.runner import Progress, Result

POLL = 0.5  # seconds
FOREVER = 60 * 24 * 365  # minutes; submitit would end a local job after two
GRACE = 600  # seconds that a job outlives its line where SLURM is about to end both, and requeues a job that it ends


@dataclass(frozen=True)
class Engine:
    """Where jobs run.

    Attributes:
        executor: Of submitit.
        limit: How many jobs it gets at once.
        environments: What to change in the environment of the first job of those at once, of the second, and so on, and
            of the first again; None unsets a variable.
    """

    executor: Any
    limit: int
    environments: Sequence[Mapping[str, str | None]] = ({},)


def local_engine(folder: Path, jobs: int, share_gpus: bool) -> Engine:
    """This machine.

    Args:
        folder: For what submitit writes.
        jobs: How many at once.
        share_gpus: Whether each gets one of the GPUs.

    Raises:
        UserError: submitit is not there.
    """
    executor = _submitit().LocalExecutor(folder)
    executor.update_parameters(timeout_min=FOREVER, stderr_to_stdout=True)
    devices: list[str | None] = [*visible_devices(jobs)] if share_gpus else []
    devices = devices or [os.environ.get('CUDA_VISIBLE_DEVICES')]  # which submitit sets to none
    return Engine(executor, jobs, [{'CUDA_VISIBLE_DEVICES': device} for device in devices])


def slurm_engine(folder: Path, flags: Mapping[str, str], jobs: int | None) -> Engine:
    """A SLURM cluster, which has a queue of its own.

    Args:
        folder: For what submitit writes; all nodes see it.
        flags: Of sbatch by name, such as {'partition': 'gpu', 'gpus': '1', 'time': '4:00:00'}; an empty value is for
            one that takes none. 'time', for one run, has to be there.
        jobs: How many at once; as many as the cluster gives if None.

    Raises:
        UserError: SLURM or submitit is not there, or there is no time.
    """
    if not shutil.which('sbatch') or not shutil.which('srun'):
        raise UserError('slurm: no sbatch and srun on this machine; run this where SLURM is, or give jobs instead')
    if 'time' not in flags:
        raise UserError('slurm: give time as well, the longest that one run may take, such as time=4:00:00')
    executor = _submitit().SlurmExecutor(folder)
    executor.update_parameters(
        time=minutes(flags['time']),
        job_name='timm-molly',
        stderr_to_stdout=True,
        array_parallelism=jobs or sys.maxsize,
        additional_parameters={name: value or True for name, value in flags.items() if name != 'time'},
        # From SLURM 22.05 on srun does not take this over from sbatch.
        setup=['[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK'],
    )
    return Engine(executor, sys.maxsize)


def minutes(time: str) -> int:
    """Read a time limit of sbatch, rounded up.

    Raises:
        UserError: It is none.

    Example:
        >>> minutes('90'), minutes('1:30:00'), minutes('2-12')
        (90, 90, 3600)
    """
    found = re.fullmatch(r'(?:(?P<days>\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?', time, re.ASCII)
    if not found:
        raise UserError(f'slurm: time must be as sbatch takes it, such as 90 (minutes), 4:00:00 or 2-12, got {time!r}')
    days, *parts = found.groups()
    numbers = [int(part) for part in parts if part]
    if days is None and len(numbers) < 3:
        numbers = [0, *numbers]
    hours, whole, seconds = (*numbers, 0, 0)[:3]
    return (int(days or 0) * 24 + hours) * 60 + whole + (seconds > 0)


class Line:
    """A line of the command line as a job, which may be cut off and run again: what is finished is kept."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str | None]) -> None:
        self.words, self.environment = list(words), dict(environment)

    def __call__(self) -> int:
        """Run it, and return its exit code."""
        environment = {**os.environ, **self.environment}
        code = subprocess.call(
            self.words, env={name: value for name, value in environment.items() if value is not None}
        )
        if os.environ.get('SUBMITIT_EXECUTOR') == 'slurm' and -code in (signal.SIGTERM, signal.SIGUSR2):
            time.sleep(GRACE)
        return code

    def checkpoint(self) -> Any:
        """What a requeued job runs: the same."""
        return _submitit().helpers.DelayedSubmission(self)


def run_jobs(
    lines: Mapping[Entry, Sequence[str]], output: Path, about: Mapping[str, Any], engine: Engine
) -> dict[Entry, Result]:
    """Run a line for each entry as a job, and return how each entry ended.

    Args:
        lines: What runs an entry that is not finished, as words.
        output: Folder of the runs.
        about: As of `run_all`.
        engine: Where.

    Raises:
        UserError: A folder holds another training, or a job cannot be submitted.
    """
    for entry in lines:
        if known(
            entry, output / str(entry), about
        ):  # how an earlier start failed, not to be taken for how this one ends
            (output / str(entry) / 'result.json').unlink(missing_ok=True)
    waiting, results = list(lines), {}
    free = list(range(min(engine.limit, len(lines))))
    running: dict[Entry, _Job] = {}
    with Progress(waiting, output) as progress, _cancelling(running):
        while waiting or running:
            started = dict(zip(waiting, free, strict=False))
            running |= _submit(engine, {entry: (lines[entry], slot) for entry, slot in started.items()})
            waiting, free = waiting[len(started) :], free[len(started) :]
            for entry in [entry for entry, job in running.items() if job.handle.done()]:
                job, folder = running.pop(entry), output / str(entry)
                free.append(job.slot)
                results[entry] = known(entry, folder, about) or _no_result(job, folder)
                shutil.rmtree(job.handle.paths.folder, ignore_errors=True)  # its log is that of the run
                progress.end(entry, results[entry])
            progress.show(running)
            time.sleep(POLL)
    for folder in (engine.executor.folder, engine.executor.folder.parent):  # where no log is left
        with suppress(OSError):
            folder.rmdir()
    return results


@dataclass(frozen=True)
class _Job:
    handle: Any  # of submitit
    slot: int


def _submit(engine: Engine, todo: Mapping[Entry, tuple[Sequence[str], int]]) -> dict[Entry, _Job]:
    """Hand over the words and slots of some entries."""
    if not todo:
        return {}
    environments = engine.environments
    every = [Line(words, environments[slot % len(environments)]) for words, slot in todo.values()]
    try:
        with _stderr_to_nowhere():  # where submitit's local processes would show a traceback when they are interrupted
            handles = engine.executor.submit_array(every)
    except _submitit().core.utils.FailedJobError as error:  # of sbatch
        said = [line for line in str(error).splitlines() if 'error' in line]
        raise UserError(f'slurm: the runs cannot be submitted: {(said or [str(error)])[-1].strip()}') from None
    return {entry: _Job(handle, todo[entry][1]) for entry, handle in zip(todo, handles, strict=True)}


@contextmanager
def _stderr_to_nowhere() -> Iterator[None]:
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _no_result(job: _Job, folder: Path) -> Result:
    """Say that a job ended but left no result, by its last line, and add what it said to the log of the run."""
    said = job.handle.stdout() or ''
    with (make_folder(folder) / 'log.txt').open('a', encoding='utf-8') as log:
        log.write(said)
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith('submitit')]
    return {
        'status': 'failed',
        'reason': f'its job ended without a result: {(lines or ["nothing in its log"])[-1][-300:]}',
    }


@contextmanager
def _cancelling(running: Mapping[Entry, _Job]) -> Iterator[None]:
    """Cancel the jobs that are left where the block is left by an error, an interrupt or SIGTERM."""

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    here = threading.current_thread() is threading.main_thread()  # elsewhere there are no handlers
    before = signal.signal(signal.SIGTERM, end) if here else None
    try:
        yield
    finally:
        for job in running.values():
            job.handle.cancel(check=False)
        if here:
            signal.signal(signal.SIGTERM, before)


def visible_devices(jobs: int) -> list[str]:
    """GPUs to share the jobs among, by their names for CUDA_VISIBLE_DEVICES; none where there is one or none."""
    if jobs < 2:
        return []
    named = os.environ.get('CUDA_VISIBLE_DEVICES')
    if named is not None:
        names = [name.strip() for name in named.split(',') if name.strip()]
    else:
        import torch

        names = [str(i) for i in range(torch.cuda.device_count())]
    return names if len(names) > 1 else []


def _submitit() -> ModuleType:
    try:
        import submitit
    except ImportError:
        raise UserError("several runs at once need submitit: pip install 'timm-molly[cluster]'") from None
    return submitit
