import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from timm_molly.gaussian import standard_normal

COUNT = 4_000_000


@pytest.fixture(scope='module')
def sample():
    return standard_normal(torch.Size([COUNT]), np.random.default_rng(0)).numpy().astype(np.float64)


def test_the_numbers_are_standard_normal(sample):
    assert scipy.stats.kstest(sample, 'norm').pvalue > 1e-4
    assert np.isfinite(sample).all()


@pytest.mark.parametrize('power', [1, 2, 3, 4, 6])
def test_moments(sample, power):
    expected = 0 if power % 2 else math.prod(range(1, power, 2))
    deviation = math.sqrt(math.prod(range(1, 2 * power, 2)) - expected**2)
    assert abs((sample**power).mean() - expected) < 4 * deviation / math.sqrt(COUNT)


class Bits:
    """Stands for a generator, with bits of our choice: 32 for each pair of numbers."""

    def __init__(self, bits):
        self.bits = bits.astype(np.int32)

    def integers(self, low, high, size, dtype):
        return np.resize(self.bits, 2 * size).view(dtype)


@pytest.mark.parametrize('limit', [0.5, 1, 2, 3, 4])
def test_tails(sample, limit):
    for half in (sample[: COUNT // 2], sample[COUNT // 2 :]):
        for beyond in (half > limit, half < -limit):
            assert scipy.stats.binomtest(int(beyond.sum()), COUNT // 2, scipy.stats.norm.sf(limit)).pvalue > 1e-4


def test_each_far_tail_of_either_number():
    reach = 2**21  # all bits that make a radius above 3.7
    numbers = standard_normal(torch.Size([4 * reach]), Bits(np.arange(-reach, reach))).numpy()
    for limit, tolerance in ((4, 0.01), (4.5, 0.02), (5, 0.03), (5.5, 0.04)):
        for half in (numbers[: 2 * reach], numbers[2 * reach :]):
            for beyond in (half > limit, half < -limit):
                assert beyond.sum() / 2**32 == pytest.approx(scipy.stats.norm.sf(limit), rel=tolerance)


def test_the_two_numbers_of_a_pair_and_neighbours_are_independent(sample):
    for first, second in ((sample[: COUNT // 2], sample[COUNT // 2 :]), (sample[:-1], sample[1:])):
        for power in (1, 2):
            r = np.corrcoef(first**power, second**power)[0, 1]
            assert abs(r) < 4 / math.sqrt(len(first))


def test_the_angle_of_a_pair_is_uniform_whatever_its_radius(sample):
    x, y = sample[: COUNT // 2], sample[COUNT // 2 :]
    angle, radius = np.arctan2(y, x) / math.pi, np.hypot(x, y)
    for low, high in ((0, 0.5), (0.5, 1), (1, 2), (2, 3), (3, 4), (4, 4.7)):
        chosen = angle[(radius >= low) & (radius < high)]
        assert scipy.stats.kstest(chosen, scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-4


def test_the_least_and_the_greatest_bits_give_finite_numbers():
    bits = np.array([0, -1, 1, 2**31 - 1, -(2**31), -(2**31) + 1])
    numbers = standard_normal(torch.Size([12]), Bits(bits))
    assert numbers.isfinite().all()
    assert numbers.abs().max() < 6.8


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16])
def test_the_default_dtype_and_device_of_torch_do_not_matter(dtype):
    expected = standard_normal(torch.Size([101]), np.random.default_rng(0))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device('meta'):
            numbers = standard_normal(torch.Size([101]), np.random.default_rng(0))
    finally:
        torch.set_default_dtype(before)
    assert numbers.dtype == torch.float32
    assert torch.equal(numbers, expected)


@given(st.lists(st.integers(0, 7), max_size=4), st.integers(0, 99))
def test_any_shape_repeats_with_its_seed(shape, seed):
    first, second = (standard_normal(torch.Size(shape), np.random.default_rng(seed)) for _ in range(2))
    assert first.shape == torch.Size(shape)
    assert first.dtype == torch.float32
    assert torch.equal(first, second)
