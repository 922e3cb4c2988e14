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


@pytest.mark.parametrize('limit', [1, 2, 3, 4, 4.5])
def test_tails(sample, limit):
    beyond = (np.abs(sample) > limit).sum()
    assert scipy.stats.binomtest(int(beyond), COUNT, 2 * scipy.stats.norm.sf(limit)).pvalue > 1e-4


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
    class Bits:
        def __init__(self, value):
            self.value = value

        def integers(self, low, high, size, dtype):
            return np.full(size, self.value, dtype)

    for value in (0, 2**64 - 1, 2**31, 2**63, 2**63 + 2**31):  # as int32: 0, -1, -2**31 below or above
        numbers = standard_normal(torch.Size([8]), Bits(value))
        assert numbers.isfinite().all()
        assert numbers.abs().max() < 6.8


@given(st.lists(st.integers(0, 7), max_size=4), st.integers(0, 99))
def test_any_shape_repeats_with_its_seed(shape, seed):
    first, second = (standard_normal(torch.Size(shape), np.random.default_rng(seed)) for _ in range(2))
    assert first.shape == torch.Size(shape)
    assert first.dtype == torch.float32
    assert torch.equal(first, second)
