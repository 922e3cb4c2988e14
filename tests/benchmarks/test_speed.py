"""Time of the whole batch operation (draw, noise, blur, labels) on the CPU; `make bench` runs it.

Fresh copies of the batch are made outside the timer. Each size is a group, so that the table shows ratios.
"""

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from timm_molly import Mollify

sys.path.insert(0, str(Path(__file__).parents[1]))
from authors import authors_model, needs_authors

SIZES = [(256, 32), (256, 64), (64, 224)]
NUM_CLASSES = 100


@pytest.fixture(autouse=True)
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=SIZES, ids=lambda size: f'{size[0]}x3x{size[1]}x{size[1]}')
def batch(request, benchmark):
    torch.manual_seed(0)
    count, size = request.param
    benchmark.group = f'mxnb, beta 2, {count}x3x{size}x{size} float32'
    return torch.randn(count, 3, size, size), torch.randint(NUM_CLASSES, (count,))


def test_timm_molly(benchmark, batch):
    x, labels = batch
    benchmark.pedantic(Mollify(), setup=lambda: ((x.clone(), labels), {}), rounds=15, warmup_rounds=2)


@needs_authors
def test_authors(benchmark, batch):
    x, labels = batch
    model = authors_model(x.shape[-1], NUM_CLASSES)
    onehot = F.one_hot(labels, NUM_CLASSES).float()

    def run(x, y):
        roles = model.sample_role(x)
        t = model.sample_time(x, roles)
        return model.mollify_x(x, t, roles), model.mollify_y(y, t, roles)

    benchmark.pedantic(run, setup=lambda: ((x.clone(), onehot.clone()), {}), rounds=15, warmup_rounds=2)
