"""Ratios measured side by side, and the table of them that `make bench` ends with."""

from collections.abc import Callable, Sequence

import pytest
import torch

from benchmarks import ratios


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def row(benchmark) -> Callable[..., None]:
    """Add a row to the table, as `ratios.Row` says."""

    def add(what: str, goal: str, values: Sequence[float]) -> None:
        benchmark.extra_info.setdefault('rows', []).append([what, goal, [float(value) for value in values]])

    return add


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, '_benchmarksession', None)
    benchmarks = session.benchmarks if session else []
    rows = [ratios.Row(*row) for benchmark in benchmarks for row in benchmark.extra_info.get('rows', [])]
    if rows:
        terminalreporter.section('ratios, each measured side by side in this run')
        for line in ratios.table(rows):
            terminalreporter.line(line)
