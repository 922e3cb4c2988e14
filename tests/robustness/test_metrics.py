import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.metrics import independent
from support.ranks import calibrate
from support.reports import cell, empty, made
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.functional.classification import multiclass_calibration_error

from timm_molly.robustness import Calibration
from timm_molly.robustness.mce import ALEXNET, mean_corruption_error, relative_mean_corruption_error
from timm_molly.robustness.report import METRICS


def draw(seed, n, k, scale):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, k, generator=generator) * scale, torch.randint(k, (n,), generator=generator)


def result(logits, target, batch):
    metric = Calibration(logits.shape[1])
    for start in range(0, len(target), batch):
        metric.update(logits[start : start + batch], target[start : start + batch])
    return metric.cell('labels')


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
    confidence = logits[: (n + 1) // 2].double().softmax(1).amax(1).sort().values
    ranked = not (confidence.diff() < 1e-12).any()  # between nearly equal ones rounding decides, here or there
    logits = logits[torch.arange(n) // 2]  # so that there are equal ones
    found = result(logits, target, batch)
    for name, value in independent(logits, target.numpy()).items():
        if name in ('aurc', 'e_aurc') and not ranked:
            continue
        assert found[name] == pytest.approx(value, abs=1e-9, nan_ok=True)
    assert found.images == n
    assert sum(found.bins.images) == n


def test_ece_is_torchmetrics_where_no_confidence_rounds_to_one():
    logits, target = draw(0, 5000, 10, 2.0)
    theirs = multiclass_calibration_error(logits, target, 10, n_bins=15)
    assert result(logits, target, 512)['ece'] == pytest.approx(theirs.item(), abs=1e-5)


def test_confidence_that_rounds_to_one_is_in_the_last_bin():
    logits = torch.tensor([[100.0, 0.0], [100.0, 0.0], [3.0, 0.0], [3.0, 0.0]])
    found = result(logits, torch.tensor([0, 1, 0, 0]), 4)
    assert found.bins.images == (0.0,) * 14 + (4.0,)
    assert found['ece'] == pytest.approx(abs(0.75 - (2 + 2 / (1 + math.exp(-3))) / 4), abs=1e-12)


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_logits_that_are_not_finite_leave_no_metric(bad):
    logits, target = draw(0, 8, 3, 1.0)
    logits[5, 0] = bad
    found = result(logits, target, 3)
    assert found.images == 8
    assert found.not_finite == 1
    assert found.bins is None
    assert all(math.isnan(found[name]) for name in METRICS)
    assert set(found.figures().values()) == {None}


def test_ranking_is_0_for_the_best_order_and_does_not_see_the_values():
    target = torch.zeros(40, dtype=torch.int64)
    target[30:] = 1
    logits = torch.stack([torch.linspace(4, 1, 40), torch.zeros(40)], 1)
    best = result(logits, target, 40)
    assert best.e_aurc == pytest.approx(0, abs=1e-12)
    scaled = result(logits * 3, target, 40)
    assert (scaled.aurc, scaled.e_aurc) == (best.aurc, best.e_aurc)
    assert scaled.ece != pytest.approx(best.ece, abs=0.01)
    same = result(torch.tensor([[1.0, 0.0]]).expand(40, 2), target, 40)
    assert same.aurc == pytest.approx(0.25)


@pytest.mark.parametrize('n', [2, 15, 100, 4001])
def test_ranking_and_adaptive_ece_are_those_of_torch_uncertainty(n):
    classification = pytest.importorskip('torch_uncertainty.metrics.classification')
    logits, target = draw(n, n, 7, 2.0)
    found, p = result(logits.double(), target, 64), logits.double().softmax(1)
    aurc, adaptive = classification.AURC(), classification.AdaptiveCalibrationError('multiclass', 15, num_classes=7)
    for metric in (aurc, adaptive):
        metric.update(p, target)
    assert found.aurc == pytest.approx(aurc.compute().item(), abs=1e-6)
    if n >= 15:  # fewer images than bins are not a number there
        assert found.adaptive_ece == pytest.approx(adaptive.compute().item(), abs=1e-6)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_logits_of_any_float_dtype_count_as_they_are(dtype):
    logits, target = draw(1, 64, 5, 3.0)
    logits = logits.to(dtype)
    found = result(logits, target, 64)
    for name, value in independent(logits.double(), target.numpy()).items():
        assert found[name] == pytest.approx(value, abs=1e-9)


def test_means_go_over_severities_then_corruptions_then_all():
    errors = {
        ('clean', 0): 0.5,
        ('shot_noise', 1): 0.1,
        ('shot_noise', 2): 0.3,
        ('impulse_noise', 1): 0.4,
        ('impulse_noise', 2): 0.4,
        ('zoom_blur', 1): 1.0,
        ('zoom_blur', 2): 1.0,
        ('spatter', 1): 0.9,
        ('spatter', 2): 0.9,
    }
    report = made(cells={place: cell(error) for place, error in errors.items()})
    assert report.corruptions['shot_noise'].error == pytest.approx(0.2)
    assert {name: group.error for name, group in report.groups.items()} == {'noise': pytest.approx(0.3), 'blur': 1.0}
    assert report.mean.nll == pytest.approx(2 * (0.2 + 0.4 + 1) / 3)
    assert report.corruptions['spatter'].error == pytest.approx(0.9)


def test_a_cell_without_result_leaves_its_means_without_one():
    cells = {('shot_noise', 1): cell(0.1), ('shot_noise', 2): empty()}
    report = made(cells={**cells, ('zoom_blur', 1): cell(0.4), ('zoom_blur', 2): cell(0.4)})
    assert math.isnan(report.corruptions['shot_noise'].error)
    assert math.isnan(report.groups['noise'].error)
    assert math.isnan(report.mean.error)
    assert report.groups['blur'].error == pytest.approx(0.4)


def test_mce_is_relative_to_alexnet():
    assert mean_corruption_error(ALEXNET) == pytest.approx(1)
    assert relative_mean_corruption_error(ALEXNET, 0.435) == pytest.approx(1)
    half = {name: error / 2 for name, error in ALEXNET.items()}
    assert mean_corruption_error(half) == pytest.approx(0.5)
    wanted = np.mean([(error / 2 - 0.2) / (error - 0.435) for error in ALEXNET.values()])
    assert relative_mean_corruption_error(half, 0.2) == pytest.approx(wanted)


def test_it_sits_in_a_collection():
    logits, target = draw(2, 100, 4, 2.0)
    collection = MetricCollection({'ours': Calibration(4), 'theirs': MulticlassAccuracy(4, average='micro')})
    collection.update(logits, target)
    found = collection.compute()
    assert found['error'].item() == pytest.approx(1 - found['theirs'].item(), abs=1e-6)
    assert {'nll', 'brier', 'ece', 'confidence'} <= found.keys()
    collection.reset()
    collection.update(logits[:1], target[:1])
    assert collection.compute()['error'].item() in (0.0, 1.0)


@pytest.mark.parametrize(
    ('logits', 'target', 'words'),
    [
        (torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), r'logits must be floating point \(B, 3\)'),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), 'logits must be floating point'),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), r'target must hold class indices \(2,\)'),
        (torch.zeros(2, 3), torch.zeros(2), 'target must hold class indices'),
        (torch.zeros(2, 3), torch.tensor([0, 3]), 'target must hold classes from 0 to 2, got 0 to 3'),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), 'got -1 to 0'),
    ],
)
def test_what_are_no_logits_and_labels_is_named(logits, target, words):
    with pytest.raises(ValueError, match=words):
        Calibration(3).update(logits, target)


@pytest.mark.slow
def test_two_processes_count_as_one(tmp_path):
    logits, target = draw(3, 101, 5, 3.0)
    torch.save((logits, target), tmp_path / 'data.pt')
    torch.multiprocessing.spawn(calibrate, (2, str(tmp_path)), nprocs=2)
    alone = Calibration(5)
    alone.update(logits, target)
    for rank in range(2):
        found = torch.load(tmp_path / f'{rank}.pt')
        for name, value in alone.compute().items():
            assert found[name].item() == pytest.approx(value.item(), abs=1e-12)


def test_a_confidence_on_the_edge_of_two_bins_is_in_the_lower_one():
    found = result(torch.zeros(1, 3), torch.tensor([0]), 1)  # 1/3 is the upper edge of the fifth bin
    assert found.bins.images.index(1.0) == 4
