import json
from argparse import Namespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.reports import cell, made

from timm_molly.cli import main
from timm_molly.config import MollyConfig, split_aa
from timm_molly.robustness.conditions import TEMPERATURES
from timm_molly.robustness.fit import fit_power
from timm_molly.robustness.report import Report


def report(name, gamma, num_classes):
    """A net that is right on as many images as a label of this gamma says."""
    error = {t: float(gamma(t)) * (num_classes - 1) / num_classes for t in TEMPERATURES}
    return measured(name, error, num_classes)


def measured(name, error, num_classes):
    cells = {('clean', 0): cell(0.0), **{(name, t): cell(error[t]) for t in TEMPERATURES}}
    return made({'kind': 'mollification', 'roles': name[0], 'seed': 1}, cells, num_classes)


@given(power=st.floats(0.1, 100), num_classes=st.sampled_from([2, 10, 1000]))
@settings(max_examples=40, deadline=None)
def test_a_net_that_follows_a_power_gives_that_power(power, num_classes):
    for name, gamma in (
        ('noise', lambda t: np.sin(np.pi * t / 2) ** (2 * power)),
        ('blur', lambda t: t**power),
    ):
        found = fit_power(name, report(name, gamma, num_classes))
        assert found.power == pytest.approx(power, rel=0.006)
        assert found.rms < 0.002
        assert found.largest < 0.005


def test_no_other_power_is_nearer_and_the_gap_is_what_it_says():
    rng = np.random.default_rng(0)
    noisy = {t: float(np.clip(0.9 * (t > 0.4) + 0.02 * rng.normal(), 0, 0.9)) for t in TEMPERATURES}
    found = fit_power('blur', measured('blur', noisy, 10))
    t, error = np.array(TEMPERATURES), np.array(list(noisy.values()))

    def gaps(power):
        return np.abs(1 - t**power * 0.9 - (1 - error))

    assert found.rms == pytest.approx(np.sqrt((gaps(found.power) ** 2).mean()), abs=1e-9)
    assert found.largest == pytest.approx(gaps(found.power).max(), abs=1e-9)
    assert found.paper_rms == pytest.approx(np.sqrt((gaps(1.0) ** 2).mean()), abs=1e-9)
    assert all(np.sqrt((gaps(power) ** 2).mean()) >= found.rms - 1e-5 for power in np.geomspace(0.05, 1000, 500))


def test_a_checkpoint_is_fitted_and_its_aa_string_printed(flags, tmp_path, capsys):
    assert main(['fit', *flags, '-o', str(tmp_path)]) == 0
    text = capsys.readouterr().out
    aa = next(line for line in text.splitlines() if line.startswith('--aa ')).split()[1]
    config, rest = split_aa(aa)
    assert rest == 'rand-m9'  # of the checkpoint, as is the law of t
    saved = Report.load(tmp_path)
    assert saved.benchmark.taught == 'molly-b4'
    assert (config.beta, config.roles) == (4.0, 'xnb')
    kept = json.loads((tmp_path / 'fit.json').read_text())
    assert kept['aa'] == aa
    for name, power in (('noise', config.noise_power), ('blur', config.blur_power)):
        found = fit_power(name, saved)
        assert found.power == power == kept[name]['power']
        assert kept[name]['rms'] == found.rms
        assert f'{name}: k = {power:g}: rms gap {found.rms:.3f}, largest {found.largest:.3f}' in text
    with Image.open(tmp_path / 'fit.png') as image:
        assert image.width > 500


def test_roles_that_are_not_trained_are_not_fitted(flags, tmp_path, capsys):
    assert main(['fit', *flags, '--aa', 'molly-mxn-kb3', '-o', str(tmp_path)]) == 0
    aa = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('--aa ')).split()[1]
    config = MollyConfig.from_string(aa)
    assert (config.roles, config.blur_power) == ('xn', 3.0)


def test_fit_without_data_is_named(capsys):
    assert main(['fit', '--model', 'test_resnet']) == 2
    assert 'no data: give --data-dir or --dataset' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('error', 'words'),
    [
        (0.0, ['under noise the net still recognises everything: hard labels are right']),
        (0.9, ['under noise the net recognises next to nothing: is it trained?']),
        (0.3, ['under noise even the best power is far from what the net recognises, by 0.']),
        (lambda t: np.sin(np.pi * t / 2), ["under noise the answer is below the paper's 1"]),
    ],
)
def test_a_power_that_is_no_answer_says_what_that_means(error, words):
    gamma = error if callable(error) else lambda t: error / 0.9
    doubts = fit_power('noise', report('noise', gamma, 10)).doubts
    assert all(any(doubt.startswith(word) for doubt in doubts) for word in words)


def test_a_power_that_answers_raises_no_doubt():
    found = fit_power('blur', report('blur', lambda t: t**2.503, 10))
    assert found.rms > 0
    assert found.doubts == []


@pytest.mark.parametrize(
    ('trained', 'doubts', 'answered'),
    [
        ({'aa': 'molly-k1000'}, [], True),
        ({'aa': 'molly-k2+rand-m9'}, ['the net was trained with the labels of molly-k2, not with hard ones'], True),
        ({'aa': 'rand-m9'}, ['the net was trained without molly'], False),
        ({'aa': None, 'epochs': 1}, ['the net was trained without molly'], False),
        ({}, ['nothing says whether the net was trained with molly'], True),
    ],
)
def test_what_it_rests_on_is_said_and_no_line_given_where_there_is_no_answer(
    checkpoint,
    flags,
    tmp_path,
    capsys,
    monkeypatch,
    trained,
    doubts,
    answered,
):
    def follows(name, of):
        gamma = {'noise': lambda t: np.sin(np.pi * t / 2) ** 4, 'blur': lambda t: t**2}[name]
        return fit_power(name, report(name, gamma, of.data.num_classes))

    monkeypatch.setattr('timm_molly.robustness.fit.fit_power', follows)
    found = torch.load(checkpoint, weights_only=False)
    torch.save({**found, 'args': Namespace(**trained)}, tmp_path / 'net.pth')
    arguments = [str(tmp_path / 'net.pth') if word == str(checkpoint) else word for word in flags]
    assert main(['fit', *arguments, '-o', str(tmp_path / 'out')]) == 0
    text = capsys.readouterr().out
    said = [line for line in text.splitlines() if line.startswith('But: ')]
    assert len(said) == len(doubts)
    assert all(line.startswith(f'But: {doubt}') for line, doubt in zip(said, doubts, strict=True))
    assert ('\n--aa molly-' in text) == answered
    assert (json.loads((tmp_path / 'out' / 'fit.json').read_text())['aa'] is not None) == answered
    assert ('No --aa to copy' in text) != answered


def test_training_images_are_suspected(flags, tmp_path, capsys):
    assert main(['fit', *flags, '--split', 'train', '-o', str(tmp_path)]) == 0
    assert 'But: these may be images that the net was trained on' in capsys.readouterr().out
