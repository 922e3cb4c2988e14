"""A study in a process of its own, to be killed."""

from pathlib import Path


def run_study(grid: Path, output: Path, script: Path, child: list[str], about: dict, begins) -> None:
    """Run a grid with the command `child` in the place of `timm_molly.cli.child`, after setting the event `begins`."""
    from timm_molly import files
    from timm_molly.study import run, runner
    from timm_molly.study import script as train_script
    from timm_molly.study.grid import read_grid

    train_script.CHILD, run.POLL, files.POLL = child, 0.01, 0.01
    entries = read_grid(grid, {}, {}).entries
    begins.set()
    runner.run_all(entries, output, script, about)
