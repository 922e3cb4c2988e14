"""One temperature: its fit, and what a report says after it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.optimize import minimize_scalar
from support.metrics import independent
from support.reports import cell, empty, made
from torch import nn

from timm_molly import Classifier, MollyConfig, Report, UserError, evaluate
from timm_molly.cli import main
from timm_molly.robustness import common
from timm_molly.robustness.conditions import _as_trained, held_out
from timm_molly.robustness.images import images_of
from timm_molly.robustness.report import Scaled, Temperatures
from timm_molly.robustness.temperature import fit_temperature


def draw(seed, n=200, k=5, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, k, generator=generator) * scale, torch.randint(k, (n,), generator=generator)


def known(seed, temperature, n=4000, k=5):
    """Logits whose labels were drawn from softmax(logits / temperature)."""
    logits, _ = draw(seed, n, k)
    generator = torch.Generator().manual_seed(seed + 1)
    return logits, torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)[:, 0]


@given(st.integers(0, 1000), st.floats(0.2, 20))
@settings(max_examples=25, deadline=None)
def test_it_is_the_minimum_of_the_nll(seed, scale):
    logits, target = known(seed, 2.0, n=300)
    logits = logits * scale

    def nll(log_t):
        return independent(logits.double().numpy() / math.exp(log_t), target.numpy())['nll']

    best = minimize_scalar(nll, bounds=(-7, 7), method='bounded', options={'xatol': 1e-9})
    found = fit_temperature(logits, target)
    assert nll(math.log(found)) <= best.fun + 1e-12
    assert found == pytest.approx(math.exp(best.x), rel=1e-4)


@pytest.mark.parametrize('temperature', [0.5, 1.0, 3.0])
def test_it_finds_the_temperature_that_labels_were_drawn_with(temperature):
    assert fit_temperature(*known(0, temperature)) == pytest.approx(temperature, rel=0.1)


@pytest.mark.parametrize(
    ('logits', 'target', 'words'),
    [
        (torch.eye(3), torch.arange(3), 'is right on all held-out images'),
        (torch.eye(3), torch.tensor([1, 2, 0]), 'no better than chance'),
        (torch.tensor([[0.0, math.nan]]), torch.tensor([0]), 'are not finite'),
        (torch.tensor([[0.0, math.inf]]), torch.tensor([0]), 'are not finite'),
        (torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]), 'is right on all held-out images'),
    ],
)
def test_where_there_is_none_it_is_said_why(logits, target, words):
    with pytest.raises(UserError, match=words):
        fit_temperature(logits, target)


def test_training_images_are_clean_noised_and_blurred_in_turn():
    x = torch.rand(60, 1, 8, 8)
    seen = _as_trained(MollyConfig(), 0, x, range(60))
    same = [torch.equal(seen[i], x[i]) for i in range(60)]
    assert same == [i % 3 == 0 for i in range(60)]
    assert seen[2::3].mean((1, 2, 3)) == pytest.approx(x[2::3].mean((1, 2, 3)), abs=1e-5)  # blur keeps the mean
    assert torch.equal(_as_trained(MollyConfig(), 0, x[7:20], range(7, 20)), seen[7:20])  # however batched
    assert not torch.equal(_as_trained(MollyConfig(), 1, x, range(60)), seen)
    milder = _as_trained(MollyConfig(beta=100), 0, x, range(60))
    assert (milder - x).abs().mean() < 0.3 * (seen - x).abs().mean()


class Brightness(nn.Module):
    """A net that is sure of itself and often right: each class is a brightness."""

    num_classes = 4

    def forward(self, x):
        return -40 * (x.mean((1, 2, 3))[:, None] - torch.tensor([0.2, 0.4, 0.6, 0.8])).square() * 3


def pictures(seed, n):
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=n)
    grey = np.clip(0.2 * (labels + 1) + rng.normal(0, 0.08, n), 0, 1)
    return [(np.full((32, 32, 3), round(255 * g), np.uint8), int(label)) for g, label in zip(grey, labels, strict=True)]


@pytest.fixture
def classifier():
    return Classifier(Brightness(), input_size=(3, 32, 32), mean=(0.0,), std=(1.0,))


def test_what_it_is_fitted_on_is_named_without_a_level(classifier):
    conditions, _ = held_out(images_of(pictures(0, 4), classifier.img_mode), classifier, 1)
    assert [str(each) for each in conditions] == ['clean', 'trained']


def test_cells_have_nll_and_ece_after_each_temperature(classifier, tmp_path):
    measured, held_out = pictures(0, 40), pictures(1, 60)
    how = dict(conditions=common(severities=(2,)), workers=0, progress=False, batch_size=16)
    plain = evaluate(classifier, measured, **how)
    report = evaluate(classifier, measured, calibrate=held_out, cache=tmp_path, **how)
    assert (report.temperatures.images, report.temperatures.aa, report.temperatures.split) == (60, 'molly', None)

    def logits(of):
        with torch.inference_mode():
            return classifier.model(torch.stack([classifier.transform(Image.fromarray(p)) for p, _ in of]))

    clean = fit_temperature(logits(held_out), torch.tensor([label for _, label in held_out]))
    assert report.temperatures.clean == pytest.approx(clean, rel=1e-6)
    assert report.temperatures.trained > report.temperatures.clean  # it is further off where it cannot see
    wanted = independent(logits(measured).numpy() / clean, np.array([label for _, label in measured]))
    assert report.scaled('clean').clean.nll == pytest.approx(wanted['nll'], abs=1e-6)
    assert report.scaled('clean').clean.ece == pytest.approx(wanted['ece'], abs=1e-6)
    assert report.scaled('clean').mean.nll == pytest.approx(
        np.mean([each.scaled['clean'].nll for (name, _), each in report.cells.items() if name != 'clean'])
    )
    assert {**report.clean.figures()} == {**plain.clean.figures()}  # nothing else changes
    again = evaluate(classifier, measured, calibrate=held_out, cache=tmp_path, **how)
    assert again.to_dict() == report.to_dict()
    with pytest.raises(UserError, match='holds another measurement'):
        evaluate(classifier, measured, calibrate=pictures(2, 60), cache=tmp_path, **how)


@pytest.mark.parametrize('held_out', [0, 'empty', 'text'])
def test_held_out_images_that_are_measured_are_refused(classifier, held_out):
    measured = pictures(0, 20)
    found, words = {
        0: ([*measured], 'the held-out images are those that are measured'),
        'empty': ([], 'there are no held-out images'),
        'text': ('train', 'the data set must give'),
    }[held_out]
    with pytest.raises(UserError, match=words):
        evaluate(classifier, measured, calibrate=found, workers=0, progress=False)


def test_a_report_with_temperatures_is_the_same_after_json(tmp_path):
    scaled = {'clean': Scaled(0.5, 0.01), 'trained': Scaled(0.6, 0.02)}
    bare = made()
    report = replace(
        bare,
        cells={place: replace(each, scaled=scaled) for place, each in bare.cells.items()},
        temperatures=Temperatures(1.5, 2.25, 'molly-b4', 'train', 100),
    )
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))).to_dict() == report.to_dict()
    assert report.to_dict()['summary']['scaled']['trained']['groups']['noise'] == {'nll': 0.6, 'ece': 0.02}
    report.save(tmp_path)
    for text in (str(report), (tmp_path / 'report.md').read_text()):
        assert 'fitted on 100 images of split train: T1 = 1.500 on the clean ones, T2 = 2.250' in text
        assert 'NLL T2=2.250' in text
    assert 'nll after T of trained' in (tmp_path / 'report.csv').read_text().splitlines()[0]
    assert math.isnan(report.scaled('clean').mean.brier)
    assert 'temperatures' not in bare.to_dict()
    with pytest.raises(UserError, match="no temperature 'clean' was fitted"):
        bare.scaled('clean')


def test_a_cell_that_is_not_finite_has_none(tmp_path):
    report = made(cells={('clean', 0): cell(0.1), ('fog', 1): empty()})
    report = replace(report, temperatures=Temperatures(1.5, 2.0, 'molly', None, 10))
    assert math.isnan(report.scaled('clean')['fog', 1].nll)
    assert report.to_dict()['summary']['scaled']['clean']['mean'] == {'nll': None, 'ece': None}


def test_the_command_names_a_split(flags, tmp_path, capsys):
    arguments = ['validate', *flags, '--corruptions', 'contrast', '--severities', '1', '-o', str(tmp_path / 'out')]
    assert main([*arguments, '--calibrate', 'train']) == 0
    text = capsys.readouterr().out
    assert 'After one temperature, fitted on 48 images of split train' in text
    report = Report.load(tmp_path / 'out')
    assert report.temperatures.aa == 'molly-b4'
    assert '--calibrate train' in report.command
    assert main([*arguments, '--calibrate', 'validation']) == 2
    said = '--calibrate validation is the split that is measured. Hold out another, in a folder beside it'
    assert said in capsys.readouterr().err
    assert main(arguments) == 2
    assert f'{tmp_path}/out was measured with --calibrate, which is part of every cell' in capsys.readouterr().err


def test_linked_images_are_the_same(flags, image_folder, tmp_path, capsys):
    (tmp_path / 'data').mkdir()
    for name in ('validation', 'train'):
        (tmp_path / 'data' / name).symlink_to(image_folder / 'validation')
    assert main(['validate', *flags, '--data-dir', str(tmp_path / 'data'), '--calibrate', 'train']) == 2
    assert 'held-out images are measured too: ' in capsys.readouterr().err
