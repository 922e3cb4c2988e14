"""A study by jobs in a process of its own, to be ended."""

import signal
from pathlib import Path


def run_grid(grid: Path, output: Path, lines: dict[str, list[str]], about: dict) -> None:
    """Run a line for each entry of a grid as a job of this machine."""
    from timm_molly.study.grid import read_grid
    from timm_molly.study.jobs import local_engine, run_jobs

    signal.signal(signal.SIGINT, signal.default_int_handler)  # also in a test run that ignores it
    every = {entry: lines[str(entry)] for entry in read_grid(grid, {}, {}).entries}
    run_jobs(every, output, about, local_engine(output.parent / 'jobs' / '%j', 1, share_gpus=False))
