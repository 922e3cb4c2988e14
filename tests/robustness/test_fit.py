import dataclasses
import html
import json

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.reports import cell, made

import timm_molly
from timm_molly import Classifier
from timm_molly.cli import main
from timm_molly.config import MollyConfig, split_aa
from timm_molly.robustness import figures
from timm_molly.robustness.conditions import TEMPERATURES
from timm_molly.robustness.fit import fit_gap, fit_report
from timm_molly.robustness.images import seen_in_training
from timm_molly.robustness.report import Report

T = np.array([0.0, *TEMPERATURES])


# How often molly draws t near each: Beta(1, 2) has the distribution 1 - (1 - t)^2.
SHARE = -np.diff((1 - np.array([0, *(T[1:] + T[:-1]) / 2, 1])) ** 2)


def rms(gap):
    return np.sqrt(SHARE @ np.asarray(gap) ** 2)


def report(confidence, correct, num_classes=10, images=10_000, names=('noise', 'blur')):
    """A net of which confidence and share correct are known functions of t."""
    at = {t: cell(1 - float(correct(t)), images, confidence=float(confidence(t))) for t in T}
    cells = {('clean', 0): at[0.0], **{(name, t): at[t] for name in names for t in TEMPERATURES}}
    of = made({'kind': 'mollification', 'roles': ''.join(n[0] for n in names), 'seed': 1}, cells, num_classes)
    return dataclasses.replace(of, data=dataclasses.replace(of.data, images=images))


def network(aa='molly-k100', **kept):
    class Training:
        settings = kept

    classifier = Classifier(torch.nn.Linear(1, 10), input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.2,) * 3, aa=aa)
    object.__setattr__(classifier, 'training', Training() if kept else None)
    return classifier


def smoothed(confidence, gamma, num_classes=10):
    """The accuracy that a label smoothed by gamma(t) would make this confidence equal to."""
    return lambda t: (1 - gamma(t)) * confidence(t) + gamma(t) / num_classes


def sure(t):
    return 0.97 - 0.4 * t


@given(smoothing=st.floats(0.05, 0.9), num_classes=st.sampled_from([2, 10, 1000]))
@settings(max_examples=30, deadline=None)
def test_a_gap_that_one_smoothing_closes_gives_that_smoothing(smoothing, num_classes):
    of = report(sure, smoothed(sure, lambda t: smoothing, num_classes), num_classes)
    for name in ('noise', 'blur'):
        np.testing.assert_allclose(fit_gap(name, of, MollyConfig()).smoothing, smoothing, atol=1e-9)
    found = fit_report(of, network())
    assert found.added == pytest.approx(smoothing, abs=1e-9)
    assert found.left['constant'] < 1e-9
    assert found.case in ('constant', 'none')  # the latter where the gap is small


@given(power=st.floats(0.2, 20))
@settings(max_examples=30, deadline=None)
def test_a_gap_that_follows_a_power_gives_that_power(power):
    laws = {'noise': lambda t: np.sin(np.pi * t / 2) ** (2 * power), 'blur': lambda t: t**power}
    for name, law in laws.items():
        gap = fit_gap(name, report(sure, smoothed(sure, law), names=(name,)), MollyConfig())
        assert gap.power == pytest.approx(power, rel=0.006)
        np.testing.assert_allclose(gap.left(gap.gamma(gap.t)), 0, atol=0.005)


share = st.integers(0, 1000).map(lambda n: n / 1000)  # no two so near each other that rounding decides


@given(st.lists(st.tuples(share, share), min_size=len(T), max_size=len(T)))
@settings(max_examples=50, deadline=None)
def test_the_smoothing_at_each_t_closes_its_gap(values):
    of = dict(zip(T, values, strict=True))
    gap = fit_gap('blur', report(lambda t: of[t][0], lambda t: of[t][1], names=('blur',)), MollyConfig())
    for (confidence, correct), gamma in zip(values, gap.smoothing, strict=True):
        after = (1 - gamma) * confidence + gamma / 10
        if correct >= confidence or confidence <= 0.1:
            assert gamma == pytest.approx(0, abs=1e-9)
        else:
            assert after == pytest.approx(max(correct, 0.1), abs=1e-6)


@given(st.lists(st.floats(0, 0.5), min_size=len(T), max_size=len(T)))
@settings(max_examples=30, deadline=None)
def test_no_other_constant_and_no_other_power_leaves_less(gaps):
    at = dict(zip(T, gaps, strict=True))
    found = fit_report(report(sure, lambda t: max(0.0, sure(t) - at[t])), network())

    def left(gamma):
        return np.sqrt(np.mean([rms(gap.left(gamma(gap))) ** 2 for gap in found.gaps.values()]))

    assert found.left['constant'] == pytest.approx(left(lambda gap: found.added))
    assert found.left['none'] == pytest.approx(left(lambda gap: 0.0))
    assert all(left(lambda gap, s=s: s) >= found.left['constant'] - 1e-9 for s in np.linspace(0, 0.99, 100))
    powers = np.geomspace(0.05, 1000, 200)
    assert all(left(lambda gap, k=k: gap.gamma(gap.t, k)) >= found.left['varying'] - 2e-3 for k in powers)


CASES = {
    'none': (
        lambda t: sure(t) - 0.01,
        'No gap: under noise and blur as molly makes them the net is as sure as it is right, to 0.010. Keep its '
        'labels; after a longer training, fit again.',
        '--aa molly-k100 --smoothing 0.1',
    ),
    'constant': (
        smoothed(sure, lambda t: 0.3),
        'One smoothing of 0.3 at every t would leave 0.000 of it',
        '--aa molly-k100 --smoothing 0.37',  # 1 - 0.9 * 0.7
    ),
    'varying': (
        smoothed(sure, lambda t: t),
        'the labels should depend on t.',
        None,
    ),
    'unsure': (lambda t: sure(t) + 0.03, 'less sure than it is right, by 0.030 on average.', None),
    'mixed': (
        lambda t: sure(t) + (0.1 if t < 0.25 else -0.07),
        f'differ by {rms(np.where(T < 0.25, 0.1, 0.07)):.3f} (rms over the t that molly draws), in a way that',
        None,
    ),
}


@pytest.mark.parametrize('case', CASES)
def test_each_case_says_what_it_is_and_what_to_train_with(case):
    correct, words, line = CASES[case]
    own = 0.0 if case in ('unsure', 'mixed') else 0.1
    found = fit_report(report(sure, correct), network(smoothing=own))
    assert found.case == case
    text = str(found)
    assert words in text
    assert found.doubts == () or case == 'varying'
    assert found.again is None
    if line:
        assert text.endswith(f'\n\nTrain with: {line}')
    elif case == 'varying':
        config = MollyConfig.from_string(found.aa)
        assert not config.weighted
        assert config.blur_power == pytest.approx(1, abs=0.01)
        assert text.endswith(f'Train with: --aa {found.aa} --smoothing 0.1')
    else:
        assert 'No line to copy' in text
        assert ('Training longer may help.' in text) == (case == 'unsure')


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('temperature', [0.6, 1.7])
def test_a_temperature_is_named_where_it_goes_the_way_of_the_gap(case, temperature):
    found = fit_report(report(sure, CASES[case][0]), network(smoothing=0.0), temperature)
    closes = {'constant': 1.7, 'unsure': 0.6}.get(case) == temperature
    assert (f'Do this next: divide the logits by {temperature}, the temperature' in str(found)) == closes
    also = 'Training with --aa molly-k100 --smoothing 0.3 would close the gap too' in str(found)
    assert also == (closes and case == 'constant')


def test_a_gap_at_few_t_is_not_called_unsure():
    found = fit_report(report(sure, lambda t: sure(t) + 0.2 * (t > 0.88)), network(smoothing=0.0))
    assert found.case == 'mixed'
    assert found.aa is None


def test_labels_that_do_are_not_doubted():
    found = fit_report(report(sure, sure), network('molly', smoothing=0.0))
    assert (found.case, found.doubts, found.aa, found.smoothing) == ('none', (), 'molly', 0.0)
    assert 'chance' not in str(found)


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize(
    ('aa', 'settings'),
    [
        (None, {}),
        (None, {'smoothing': 0.0}),
        ('rand-m9', {'smoothing': 0.0}),
        ('molly-k2+rand-m9', {'smoothing': 0.0}),
        ('molly-mxxnb-w', {'smoothing': 0.1}),
        ('molly-w', {}),
        ('molly-w', {'smoothing': 0.0}),
    ],
)
@pytest.mark.parametrize('temperature', [None, 0.6, 1.7])
def test_one_thing_to_do_is_named(case, aa, settings, temperature):
    """Whatever the gap and the training: a line, or another training, or that there is neither."""
    found = fit_report(report(sure, CASES[case][0]), network(aa, **settings), temperature)
    text = str(found)
    words = ['Train with: --aa', 'Do this next: train with --aa', 'Do this next: divide the logits', 'No line to copy']
    assert [word in text for word in words].count(True) == 1
    assert ('Keep its labels' in text) == (case == 'none' and found.aa is not None)
    if found.again:
        config, rest = split_aa(found.again)
        hard = (config.weighted, config.noise_power, config.blur_power) == (False, 100, 100)
        assert hard or case == 'unsure'
        assert rest == (split_aa(aa)[1] if aa else None)  # the rest of the recipe stays
        assert ('But: the net was' in text or 'But: nothing says' in text) == (
            found.because == 'It shows what your data need.'
        )
        assert (found.because == 'Its labels keep more confidence.') == (
            case == 'unsure' and split_aa(aa or 'a')[0] is not None
        )
        assert 'divide the logits' not in text
    assert found.drawn == (case in ('constant', 'varying') and found.aa is not None) == ('that closes it' in text)


def test_smoothing_that_is_not_known_is_added_to():
    found = fit_report(report(sure, smoothed(sure, lambda t: 0.3)), network('molly-w'))
    assert str(found).endswith('Train with: --aa molly-w, and with 0.3 more --smoothing than this time')


def test_a_gap_counts_as_often_as_training_draws_its_t():
    """A net that never saw much noise and blur need not know what they do to it."""
    of = report(sure, lambda t: sure(t) - 0.3 * (t > 0.5))
    assert fit_report(of, network('molly-b9-k100', smoothing=0.0)).case == 'none'
    found = fit_report(of, network('molly-k100', smoothing=0.0))
    assert found.case == 'varying'
    for gap in found.gaps.values():
        np.testing.assert_allclose(gap.share, SHARE)


@pytest.mark.parametrize('aa', ['molly', 'molly-w+rand-m9', 'rand-m9', None])
@pytest.mark.parametrize('confidence', [0.11, 0.9])
def test_a_net_that_guesses_is_to_be_trained_longer(aa, confidence):
    found = fit_report(report(lambda t: confidence, lambda t: 0.105), network(aa, smoothing=0.0), 30.0)
    assert (found.aa, found.smoothing, found.drawn) == (None, None, False)
    line = split_aa(aa)[0] if aa else None
    again = '+'.join(filter(None, [str(line or 'molly'), split_aa(aa)[1] if aa else None]))
    assert str(found).endswith(
        f'Do this next: train with --aa {again} --smoothing 0, fit that, and compare their errors. '
        'This one is hardly better than guessing, so train longer.'
    )
    assert 'divide' not in str(found)
    better = fit_report(report(lambda t: confidence, lambda t: 0.3), network(aa, smoothing=0.0), 30.0)
    assert 'guessing' not in str(better)


def test_few_images_make_no_gap_of_chance():
    many = fit_report(report(sure, lambda t: sure(t) - 0.04, images=10_000), network())
    few = fit_report(report(sure, lambda t: sure(t) - 0.04, images=400), network())
    assert (many.case, few.case) == ('constant', 'none')
    assert 'No gap that 400 images can show' in str(few)
    assert 'differ by 0.040 (rms over the t that molly draws), and chance alone makes up to 0.050.' in str(few)
    assert ('smoothing that closes it' in str(many), 'smoothing that closes it' in str(few)) == (True, False)


def test_the_smoothing_is_drawn_where_there_is_a_gap():
    for aa, left, rows in (('molly-w', 0.01, 1), ('molly-w', 0.3, 2), ('rand-m9', 0.3, 1)):
        found = fit_report(report(sure, lambda t, left=left: sure(t) - left), network(aa, smoothing=0.0))
        drawn = figures.fit(found.report, found)
        axes = drawn.axes
        assert drawn.texts[0].get_text() == str(found.report).partition('\n')[0]  # get_suptitle is of matplotlib 3.8
        assert len(axes) == 2 * rows
        assert [ax.get_xlabel() for ax in axes[-2:]] == 2 * ['t (0 is clean)']
        if rows == 2:
            for ax, gap in zip(axes[2:], found.gaps.values(), strict=True):
                np.testing.assert_allclose(ax.lines[0].get_ydata(), gap.smoothing)
                drawn_at = dict(ax.collections[0].get_paths()[0].vertices[1 : len(T) + 1])  # Beta(1, 2) falls to 0 at 1
                np.testing.assert_allclose(
                    [drawn_at[t] for t in T[1:-1]], 0.3 * (1 - T[1:-1]) / (1 - T[1] / 4), rtol=1e-6
                )


@pytest.mark.parametrize(
    ('aa', 'settings', 'doubts', 'answered'),
    [
        ('molly-w', {'smoothing': 0.0}, [], True),
        ('molly-k1000+rand-m9', {'smoothing': 0.0}, [], True),
        ('rand-m9', {'smoothing': 0.0}, ['the net was trained without molly'], False),
        (None, {'epochs': 1}, ['the net was trained without molly'], False),
        (None, {}, ['nothing says whether the net was trained with molly'], False),
    ],
)
@pytest.mark.parametrize('gap', [smoothed(sure, lambda t: 0.3), sure])
def test_what_it_rests_on_is_said_and_no_line_given_where_there_is_no_answer(aa, settings, doubts, answered, gap):
    found = fit_report(report(sure, gap), network(aa, **settings))
    assert len(found.doubts) == len(doubts)
    assert all(doubt.startswith(words) for doubt, words in zip(found.doubts, doubts, strict=True))
    assert (found.aa is not None) == answered == (found.again is None)
    if found.aa:
        assert split_aa(found.aa) == split_aa(aa)
    assert found.smoothing == ((0.0 if gap is sure else 0.3) if answered else None)


@pytest.mark.parametrize('case', ['varying', 'mixed'])
@pytest.mark.parametrize('aa', ['molly', 'molly-k2'])
def test_soft_labels_do_not_tell_what_hard_ones_would(case, aa):
    found = fit_report(report(sure, CASES[case][0]), network(aa, smoothing=0.0))
    assert found.doubts[0] == f'the net was trained with the labels of {aa}, not with hard ones'
    assert found.again == 'molly-k100'


@pytest.mark.parametrize('case', ['varying', 'mixed'])
def test_weights_do_not_tell_what_is_ruined(case):
    found = fit_report(report(sure, CASES[case][0]), network('molly-w', smoothing=0.0))
    assert found.doubts[0] == 'the net was trained with molly-w, which leaves out of the loss what is ruined'
    assert found.again == 'molly-k100'


def test_a_net_that_is_too_sure_of_clean_images_is_not_called_unsure():
    found = fit_report(report(sure, lambda t: sure(t) + (0.1 if t else -0.07)), network('molly', smoothing=0.0))
    assert found.case == 'mixed'
    assert fit_report(report(sure, lambda t: sure(t) + (0.1 if t else -0.01)), network()).case == 'unsure'


def test_soft_labels_that_lack_the_same_at_every_t_are_smoothed():
    found = fit_report(report(sure, CASES['constant'][0]), network('molly-k2', smoothing=0.0))
    assert str(found).endswith('Train with: --aa molly-k2 --smoothing 0.3')


@pytest.mark.parametrize(
    ('aa', 'settings', 'again'),
    [
        ('molly', {'smoothing': 0.0}, 'molly-k2'),
        ('molly', {'smoothing': None}, 'molly-k2'),
        ('molly-b4+rand-m9', {'smoothing': 0.0}, 'molly-b4-k2+rand-m9'),
        ('molly-b4-k2+rand-m9', {'smoothing': 0.0}, 'molly-b4-k100+rand-m9'),
        ('molly-mxn-kn2', {'smoothing': 0.0}, 'molly-mxn-k100'),
        ('molly-kn3', {'smoothing': 0.0}, 'molly-kn6-kb2'),
        ('molly-mxn-kb100', {'smoothing': 0.0}, 'molly-mxn-kn2-kb200'),
        ('molly-mxb-kb100', {'smoothing': 0.0}, None),
        ('molly', {'smoothing': 0.1}, 'molly'),
        ('molly-w', {'smoothing': 0.1}, 'molly-w'),
        ('molly-w', {'smoothing': 0.0}, None),
        ('molly-k100', {'smoothing': None}, None),
    ],
)
def test_an_unsure_net_gets_labels_that_keep_more_confidence(aa, settings, again):
    """First without the smoothing, then with twice the label powers, then with hard labels."""
    found = fit_report(report(sure, lambda t: sure(t) + 0.1), network(aa, **settings))
    assert (found.case, found.again, found.aa, found.doubts) == ('unsure', again, None, ())
    end = f'train with --aa {again} --smoothing 0, fit that, and compare their errors. Its labels keep more confidence.'
    assert str(found).endswith(end) == (again is not None)


@pytest.mark.parametrize(
    ('images', 'constant', 'varying', 'reason'),
    [
        (100_000, 0.015, 0.01, ', which is little: the net is'),
        (1500, 0.022, 0.01, ', no more than chance makes among 1500 images: the net is'),
        (1500, 0.01, 0.02, ', label powers of '),
    ],
)
def test_why_all_labels_are_smoothed_alike_is_said(images, constant, varying, reason):
    """Also where powers that depend on t would leave less of the gap."""
    found = fit_report(report(sure, CASES['constant'][0], images=images), network(smoothing=0.0))
    text = str(dataclasses.replace(found, left={**found.left, 'constant': constant, 'varying': varying}))
    assert f'would leave {constant:.3f} of it{reason}' in text
    assert 'the net is as much too sure at every t' in text


@pytest.mark.parametrize('case', CASES)
def test_few_images_raise_a_doubt_once(case):
    few = fit_report(report(sure, CASES[case][0], images=300), network(smoothing=0.0))
    assert str(few).count('chance alone makes up to 0.058') == 1
    many = fit_report(report(sure, CASES[case][0], images=3000), network(smoothing=0.0))
    assert 'chance' not in str(many)


@pytest.mark.parametrize(('right', 'gap', 'doubts'), [(0.499, 0.1, 1), (0.501, 0.1, 0), (0.499, 0.0, 0)])
def test_a_network_that_is_mostly_wrong_may_have_more_to_learn(right, gap, doubts):
    found = fit_report(report(lambda t: right + gap + 0 * t, lambda t: right + 0 * t), network(smoothing=0.0))
    assert len(found.doubts) == doubts
    assert all('only 49.9 % of the clean images are right: after a longer training' in doubt for doubt in found.doubts)


@pytest.mark.parametrize(
    ('names', 'under'),
    [(('noise', 'blur'), 'noise and blur as molly makes them'), (('blur',), 'blur as molly makes it')],
)
@pytest.mark.parametrize('gap', [0.0, 0.1])
def test_whose_noise_and_blur_it_is_is_said(names, under, gap):
    found = fit_report(report(sure, lambda t: sure(t) - gap, names=names), network('rand-m9', smoothing=0.0))
    assert f'nder {under} the net is ' in str(found)


def test_powers_that_follow_badly_raise_a_doubt():
    wild = {t: 0.4 + 0.2 * (i % 2) if t > 0.5 else 0.0 for i, t in enumerate(T)}
    found = fit_report(report(lambda t: 0.9, lambda t: 0.9 - wild[t]), network())
    assert found.case == 'varying'
    assert found.doubts[-1].startswith('even the best powers leave a gap of 0.')


def test_a_checkpoint_is_fitted_and_its_line_printed(flags, tmp_path, capsys):
    assert main(['fit', *flags, '-o', str(tmp_path)]) == 0
    text = capsys.readouterr().out
    saved = Report.load(tmp_path)
    assert saved.benchmark.taught == 'molly-b4'
    kept = json.loads((tmp_path / 'fit.json').read_text())
    for name in ('noise', 'blur'):
        cells = [saved.clean, *saved.at(name).values()]
        assert kept[name]['t'] == [0, *TEMPERATURES]
        assert kept[name]['confidence'] == [cell.confidence for cell in cells]
        assert kept[name]['correct'] == [1 - cell.error for cell in cells]
        gap = [max(0, (c.confidence - 1 + c.error) / (c.confidence - 1 / 3)) for c in cells]
        np.testing.assert_allclose(kept[name]['smoothing'], np.minimum(gap, 1), atol=1e-6)
    assert f'{kept["left"]["none"]:.3f}' in text or kept['case'] == 'unsure'
    assert f'--aa {kept["aa"] or kept["again"]}' in text
    with Image.open(tmp_path / 'fit.png') as image:
        assert image.width > 500
    said = text.partition('smoothing that closes it')[2] or text
    verdict = next(line for line in said.splitlines() if line.startswith(('No gap', 'Under noise')))
    page = html.unescape((tmp_path / 'report.html').read_text())
    assert json.dumps(verdict)[1:-1] in page
    assert verdict in (tmp_path / 'report.md').read_text()
    assert f'--aa {kept["aa"] or kept["again"]}' in page


def test_roles_that_are_not_trained_are_not_fitted(flags, tmp_path):
    assert main(['fit', *flags, '--aa', 'molly-mxn-kb3', '-o', str(tmp_path)]) == 0
    kept = json.loads((tmp_path / 'fit.json').read_text())
    assert 'noise' in kept
    assert 'blur' not in kept


def test_from_python_it_is_the_same_and_names_a_temperature(image_folder):
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=3)
    pictures = [(np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8), i % 3) for i in range(12)]
    classifier = Classifier(model, input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    found = timm_molly.fit(classifier, pictures, 'molly-w', workers=0, progress=False)
    assert found.report.benchmark.taught == 'molly-w'
    assert found.temperature is None or 1e-3 <= found.temperature <= 1e3


def test_fit_without_data_is_named(capsys):
    assert main(['fit', '--model', 'test_resnet']) == 2
    assert 'no data: give --data-dir or --dataset' in capsys.readouterr().err


def test_training_images_are_suspected(flags, tmp_path, capsys):
    assert main(['fit', *flags, '--split', 'train', '-o', str(tmp_path)]) == 0
    assert 'But: these may be images that the net was trained on' in capsys.readouterr().out


@pytest.mark.parametrize('inside', [False, True])
def test_measuring_training_images_is_noted(flags, tmp_path, caplog, inside):
    data = flags[flags.index('--data-dir') + 1]
    words = ['--data-dir', f'{data}/train'] if inside else ['--split', 'train']
    assert main(['validate', *flags, *words, '--corruptions', 'fog', '--severities', '1', '-o', str(tmp_path)]) == 0
    where = f'{data}/train' if inside else f'{data}, split train'
    assert f'note: the model may have been trained on these images: {where}\n' in caplog.text
    assert Report.load(tmp_path).data.split == (None if inside else 'train')  # a folder of classes is no split


def test_a_temperature_of_training_images_is_noted(flags, tmp_path, caplog):
    words = ['--corruptions', 'fog', '--severities', '1', '--calibrate', 'train', '-o']
    assert main(['validate', *flags, *words, str(tmp_path)]) == 0
    assert caplog.text.count('trained on') == 1
    assert 'note: the model may have been trained on the images of the temperature: ' in caplog.text


def test_held_out_images_are_not_suspected(flags, tmp_path, caplog):
    assert main(['validate', *flags, '--corruptions', 'fog', '--severities', '1', '-o', str(tmp_path)]) == 0
    assert 'trained on' not in caplog.text


@pytest.mark.parametrize(
    ('folder', 'split', 'seen'),
    [
        ('a', 'validation', False),
        ('a', 'tenth', True),
        ('a', None, True),  # no splits: train.py took the whole folder too
        ('b', 'tenth', False),
        ('b', None, False),
        ('a/train', None, True),
        ('b/training', None, True),
        ('b', 'train', True),
        (None, 'train', True),
        (None, None, False),
    ],
)
def test_images_of_the_training_are_known_by_their_names(tmp_path, folder, split, seen):
    trained = network(data_dir=str(tmp_path / 'a'), train_split='tenth')
    assert seen_in_training(trained, folder and str(tmp_path / folder), split) == seen
