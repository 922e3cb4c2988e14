"""`timm-molly validate`: measure a model under common corruptions."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from timm_molly.cli import flags
from timm_molly.errors import UserError

if TYPE_CHECKING:
    from timm_molly.robustness.report import Place

HELP = 'measure a model under common corruptions'
DESCRIPTION = (
    'For example: timm-molly validate RUN --data-dir DIR. '
    'Measure error, NLL, Brier score, ECE and mean confidence of any timm model, clean and under 15 common '
    'corruptions: on a published set (--corrupted-dir), or on any data set that timm reads, corrupted on the fly; or '
    'under noise and blur of mollification (--mollification). A run that was interrupted goes on where it stopped, and '
    'processes with the same command and --output share the work: torchrun ... -m timm_molly validate ...'
)
RESUMABLE = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    flags.add_arguments(parser)
    flags.add_benchmark_arguments(parser)
    flags.add_machine_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    measurement = flags.measurement(args)
    measurement.check()  # before a model is loaded
    classifier = flags.classifier(args)
    output = args.output or flags.default_output(args, 'validate')
    first = os.environ.get('RANK', '0') == '0'  # under torchrun the ranks share the cells
    report = measurement.run(classifier, output, args.command_line, progress=first)
    if not first:
        return
    before = _places(output)
    report.save(output)
    print(f'\n{report}\n\nwrote {output}/report.json, .csv, .md, .html and pictures')
    if before > report.cells.keys():
        print(
            'note: a longer report was there. Its figures are kept: its command writes it again, and measures nothing'
        )


def _places(folder: Path) -> set[Place]:
    """What the report in a folder has measured; nothing where there is none."""
    from timm_molly.robustness.report import Report

    with suppress(UserError):
        return {*Report.load(folder).cells}
    return set()
