"""A study in a process of its own, to be killed."""

import sys
from pathlib import Path


def run_study(grid: Path, output: Path, script: Path, child: Path, about: dict, begins) -> None:
    """Run a grid with `child` in the place of its processes, after setting the event `begins`."""
    from timm_molly.study import run, runner
    from timm_molly.study.grid import read_grid

    run.CHILD, runner.POLL = [sys.executable, str(child)], 0.01
    entries = read_grid(grid, {}, {}).entries
    begins.set()
    runner.run(entries, output, script, about, 3)
