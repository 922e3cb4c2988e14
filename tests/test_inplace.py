"""Noise and blur in place are those of the formulas, and few passes over a GPU's memory."""

import numpy as np
import pytest
import torch
from benchmarks import traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from timm_molly import functional
from timm_molly.inplace import blur_, noise_

# Of numbers up to about 4: some roundings of the dtype.
ERROR = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 8e-3, torch.bfloat16: 6e-2}
needs_fakes = pytest.mark.skipif(
    not traffic.can_count(), reason='this PyTorch needs a GPU even for tensors that are not there'
)
shapes = st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(1, 24), st.integers(1, 24))


@settings(deadline=None)
@given(shapes, st.sampled_from([*ERROR]), st.booleans(), st.booleans(), st.floats(0.01, 1), st.data())
def test_they_are_the_formulas(shape, dtype, gaps, channels_last, min_scale, data):
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    t = torch.tensor(data.draw(st.lists(st.floats(0, 1, width=32), min_size=len(x), max_size=len(x))))
    wide = torch.promote_types(dtype, torch.float32)
    place = torch.full((3 * len(x), *shape[1:]), 7.0, dtype=dtype)
    if channels_last:
        place = place.contiguous(memory_format=torch.channels_last)
    images = place[1::3] if gaps else place[: len(x)]
    others = [place[::3], place[2::3]] if gaps else [place[len(x) :]]
    for run, expected in (
        (lambda: noise_(images, t.to(wide), eps), functional.noise(x.double(), t.double(), eps.double())),
        (lambda: blur_(images, t.to(wide), min_scale), functional.blur(x.double(), t.double(), min_scale)),
    ):
        images.copy_(x)
        run()
        assert ((images.double() - expected).abs() <= ERROR[dtype]).all()
        assert all((other == 7).all() for other in others)


@pytest.mark.parametrize('size', [224, 1024])
def test_long_lines_are_accurate(size):
    x, t = torch.randn(6, 1, 1, size, generator=torch.Generator().manual_seed(0)), torch.linspace(0, 1, 6)
    expected = functional.blur(x.double(), t.double())
    blur_(x, t, 0.3)
    assert np.abs(x.numpy() - expected.numpy()).max() < 2e-5


@needs_fakes
@pytest.mark.parametrize(('dtype', 'most'), [('float32', 2.0), ('bfloat16', 2.5)])
def test_a_call_moves_few_bytes_on_a_gpu(dtype, most):
    (copies, launches), (more, as_many) = (
        traffic.of_mollify(count, 224, getattr(torch, dtype)) for count in (256, 512)
    )
    assert 1 < copies <= most
    assert 1 < more <= most
    assert launches == as_many <= 40


@needs_fakes
def test_an_operation_is_counted_by_what_it_reads_and_writes():
    def operation(x):
        y = x[:, ::2]  # a view moves nothing
        y.mul_(2)  # reads and writes half of 64 numbers
        y.normal_()  # writes half
        return (x @ x.T).flip(0)  # reads 64, twice, and writes 16; reads and writes 16

    found = traffic.count(operation, lambda: (torch.empty(4, 16, device='cuda'),))
    assert found.bytes == {'mul_': 4 * 64, 'normal_': 4 * 32, 'mm': 4 * (128 + 16), 'flip': 4 * 32}
    assert found.launches == 4
