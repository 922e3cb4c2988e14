import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.metrics import independent
from torchmetrics.functional.classification import multiclass_calibration_error

from timm_molly.robustness import metrics as M


def draw(seed, n, k, scale):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, k, generator=generator) * scale, torch.randint(k, (n,), generator=generator)


def result(logits, target, batch):
    metrics = M.CellMetrics()
    for start in range(0, len(target), batch):
        metrics.update(logits[start : start + batch], target[start : start + batch])
    return metrics.result()


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 300),
    k=st.integers(2, 30),
    scale=st.sampled_from([0.01, 1.0, 10.0, 200.0]),
    batch=st.integers(1, 300),
)
@settings(max_examples=60, deadline=None)
def test_the_metrics_are_their_definitions_however_batched(seed, n, k, scale, batch):
    logits, target = draw(seed, n, k, scale)
    found = result(logits, target, batch)
    for name, value in independent(logits, target.numpy()).items():
        assert found[name] == pytest.approx(value, abs=1e-9)
    assert found['images'] == n
    assert sum(found['bins']['images']) == n


def test_ece_is_torchmetrics_where_no_confidence_rounds_to_one():
    logits, target = draw(0, 5000, 10, 2.0)
    theirs = multiclass_calibration_error(logits, target, 10, n_bins=15)
    assert result(logits, target, 512)['ece'] == pytest.approx(theirs.item(), abs=1e-5)


def test_confidence_that_rounds_to_one_is_in_the_last_bin():
    logits = torch.tensor([[100.0, 0.0], [100.0, 0.0], [3.0, 0.0], [3.0, 0.0]])
    found = result(logits, torch.tensor([0, 1, 0, 0]), 4)
    assert found['bins']['images'] == [0.0] * 14 + [4.0]
    assert found['ece'] == pytest.approx(abs(0.75 - (2 + 2 / (1 + math.exp(-3))) / 4), abs=1e-12)


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_logits_that_are_not_finite_leave_no_metric(bad):
    logits, target = draw(0, 8, 3, 1.0)
    logits[5, 0] = bad
    found = result(logits, target, 3)
    assert found['images'] == 8
    assert found['not_finite'] == 1
    assert {found[name] for name in (*M.METRICS, 'bins')} == {None}


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_logits_of_any_float_dtype_count_as_they_are(dtype):
    logits, target = draw(1, 64, 5, 3.0)
    logits = logits.to(dtype)
    found = result(logits, target, 64)
    for name, value in independent(logits.double(), target.numpy()).items():
        assert found[name] == pytest.approx(value, abs=1e-9)


def cell(error):
    return {'images': 1, **dict.fromkeys(M.METRICS, error)}


def test_means_go_over_severities_then_corruptions_then_all():
    groups = {'noise': ('a', 'b'), 'blur': ('c',), 'weather': ('d',)}
    cells = {
        ('clean', 0): cell(0.5),
        ('a', 1): cell(0.1),
        ('a', 2): cell(0.3),
        ('b', 1): cell(0.4),
        ('c', 1): cell(1.0),
    }
    cells[('held', 1)] = cell(0.9)
    summary = M.summarise(cells, groups)
    assert summary['corruptions']['a']['error'] == pytest.approx(0.2)
    assert summary['groups'] == {
        'noise': pytest.approx(dict.fromkeys(M.METRICS, 0.3)),
        'blur': dict.fromkeys(M.METRICS, 1),
    }
    assert summary['mean']['nll'] == pytest.approx((0.2 + 0.4 + 1) / 3)
    assert summary['corruptions']['held']['error'] == 0.9


def test_a_cell_without_result_leaves_its_means_without_one():
    cells = {('a', 1): cell(0.1), ('a', 2): cell(None), ('b', 1): cell(0.4)}
    summary = M.summarise(cells, {'noise': ('a', 'b'), 'blur': ('b',)})
    assert summary['corruptions']['a']['error'] is None
    assert summary['groups']['noise']['error'] is None
    assert summary['mean']['error'] is None
    assert summary['groups']['blur']['error'] == 0.4


def test_mce_is_relative_to_alexnet():
    alexnet = {name: {'error': error} for name, error in M.ALEXNET.items()}
    assert M.corruption_errors(alexnet, 0.435) == (pytest.approx(1), pytest.approx(1))
    half = {name: {'error': error / 2} for name, error in M.ALEXNET.items()}
    mce, relative = M.corruption_errors(half, 0.2)
    assert mce == pytest.approx(0.5)
    wanted = np.mean([(error / 2 - 0.2) / (error - 0.435) for error in M.ALEXNET.values()])
    assert relative == pytest.approx(wanted)
    assert M.corruption_errors(half, None) == (pytest.approx(0.5), None)
    assert M.corruption_errors({**half, 'fog': {'error': None}}, 0.2) == (None, None)
    del half['fog']
    assert M.corruption_errors(half, 0.2) == (None, None)


def test_a_confidence_on_the_edge_of_two_bins_is_in_the_lower_one():
    found = result(torch.zeros(1, 3), torch.tensor([0]), 1)  # 1/3 is the upper edge of the fifth bin
    assert found['bins']['images'].index(1.0) == 4
