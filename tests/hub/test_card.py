"""The card: every figure and field in it has a source, and the Hub can read it."""

import math
import re
from dataclasses import replace

import huggingface_hub
import pytest
import timm
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.reports import cell, empty, made, mollified

from timm_molly.hub import card
from timm_molly.robustness.corruptions.names import COMMON

CONFIG = {
    'architecture': 'resnet50',
    'num_classes': 10,
    'pretrained_cfg': {
        'input_size': (3, 32, 40),
        'mean': (0.4, 0.5, 0.6),
        'std': (0.2, 0.3, 0.25),
        'crop_pct': 0.875,
        'crop_mode': 'center',
        'interpolation': 'bicubic',
    },
    'model_args': {},
}
ABOUT = {'repo_id': 'me/net', 'aa': 'molly-mxxn-b4-kn2+rand-m9', 'ema': True, 'epoch': 7, 'sha256': 64 * 'a'}
SETTINGS = {'dataset': '', 'data_dir': '/home/somebody/shapes', 'epochs': 12, 'lr': 0.003, 'opt': 'lamb', 'seed': 0}
MEASURED = {'crop_mode': 'center', 'interpolation': 'bicubic', 'crop_pct': 0.875}
FIGURES = ['figures/heat-map.png']

needs_evaluation_files = pytest.mark.skipif(
    not hasattr(huggingface_hub, 'EvalResultEntry'), reason='this huggingface_hub has no evaluation files'
)


def write(config=CONFIG, about=ABOUT, settings=SETTINGS, report=None, figures=FIGURES):
    return card.write(config, about, settings, report, figures if report else [], 25_557_032)


@pytest.fixture(scope='module')
def report():
    """A report with its own number in every cell."""
    report = made(**MEASURED)
    return replace(report, data=replace(report.data, dataset='shapes', split='test'))


def section(text, heading):
    return re.search(rf'\n## {heading}\n(.*?)(?=\n## |\n<!--)', text, re.DOTALL)[1]


def numbers(text):
    return re.findall(r'(?<![\w.])\d+\.\d+', text)


def test_what_the_hub_reads_is_what_the_report_says(report):
    text = write(report=report)
    data = ModelCard(text).data
    assert (data.to_dict()['library_name'], data.pipeline_tag) == ('timm', 'image-classification')
    assert data.model_name == 'net'
    assert 'mollification' in data.tags
    found = {(r.dataset_config, r.metric_type): r.metric_value for r in data.eval_results}
    mean, clean = report.mean, report.clean
    corrupted = '15 corruptions of cifar-c, severities 1 to 5'
    for condition, expected in (('clean', clean), (corrupted, mean)):
        assert found.pop((condition, 'accuracy')) == pytest.approx(1 - expected.error, abs=1e-6)
        for metric in ('error', 'nll', 'ece'):
            assert found.pop((condition, metric)) == pytest.approx(expected[metric], abs=1e-6)
    assert found == {}
    assert {(r.dataset_name.partition(',')[0], r.dataset_split) for r in data.eval_results} == {('shapes', 'test')}
    # The metadata as YAML, without the Hub's client.
    raw = yaml.safe_load(text.split('---\n')[1])
    name, results = model_index_to_eval_results(raw['model-index'])
    assert name == 'net'
    assert len(results) == 8


def test_every_figure_has_a_source(report):
    text = section(write(report=report), 'How good it is')
    rows = {line.split(' | ')[0].strip('| '): line for line in text.splitlines() if line.startswith('| ')}
    for name, metrics in {**report.corruptions, 'mean of common': report.mean, 'clean': report.clean}.items():
        expected = [f'{100 * metrics["error"]:.1f}', *(f'{metrics[m]:.3f}' for m in ('nll', 'ece', 'confidence'))]
        assert numbers(rows.pop(name)) == expected
    for group, metrics in report.groups.items():
        assert f'| {100 * metrics["error"]:.1f} |' in rows.pop(f'mean of {group}')
    assert set(rows) <= {'', '---'}
    assert '![heat map](figures/heat-map.png)' in text
    limits = section(write(report=report), 'Limits')
    for cells in (report.clean, report.mean):
        word = 'more' if cells['confidence'] > 1 - cells['error'] else 'less'
        assert f'it is {word} sure of itself than it is right' in limits
        assert f'mean confidence {cells["confidence"]:.3f}, share correct {1 - cells["error"]:.3f}' in limits


@pytest.mark.parametrize(
    ('images', 'words'),
    [
        (200, 'as sure of itself as it is right, as far as 200 images show'),
        (2000, 'less sure of itself than it is right'),
    ],
)
def test_chance_is_no_lack_of_confidence(images, words):
    of = made(cells={('clean', 0): cell(0.7, images, confidence=0.25)}, **MEASURED)  # 0.05 apart; 2 se: 0.065, 0.02
    of = replace(of, data=replace(of.data, images=images))
    assert f'On clean images it is {words}: mean confidence 0.250, share correct 0.300.' in write(report=of)


def test_a_field_without_a_source_is_left_out():
    text = write(about={'repo_id': 'me/net'}, settings={})
    data = ModelCard(text).data
    assert set(data.to_dict()) == {'library_name', 'pipeline_tag', 'tags'}
    assert 'were not measured' in text
    assert 'without mollification' in write(about={'repo_id': 'me/net'}, settings={**SETTINGS, 'aa': None})
    assert 'mollification' not in write(about={'repo_id': 'me/net'})
    for word in (
        'mollification',
        'molly-',
        'trained on',
        'How it was trained',
        'Licence',
        'EMA',
        'epoch',
        'started from',
    ):
        assert word not in text, word
    assert 'heinonen2025robust' not in text
    assert numbers(section(text, 'How good it is')) == []


def test_what_is_known_is_said():
    about = {**ABOUT, 'license': 'mit', 'base_model': 'timm/resnet50.a1_in1k', 'dataset_id': 'me/shapes'}
    about['validation'] = {'loss': 1.23456, 'top1': 71.239, 'top5': 90.5}
    text = write(about=about, settings={**SETTINGS, 'checkpoint_hist': 10, 'val_split': 'val'})
    data = ModelCard(text).data
    assert (data.license, data.base_model, data.datasets) == ('mit', 'timm/resnet50.a1_in1k', ['me/shapes'])
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_type) == ('accuracy', 0.71239, 'me/shapes')
    assert 'loss 1.2346, top-1 accuracy 71.24 %, top-5 accuracy 90.50 %' in section(text, 'How good it is')
    model = section(text, 'The model')
    for words in (
        '`resnet50`',
        '25.56 M',
        '32 x 40 pixels',
        'bicubic, center crop 0.875',
        '0.4, 0.5, 0.6; 0.2, 0.3, 0.25',
    ):
        assert words in model
    assert '(EMA) of those in training, after epoch 7, counted from 0' in model
    assert 'https://huggingface.co/timm/resnet50.a1_in1k' in model
    training = section(text, 'How it was trained')
    for row in ('- **epochs:** `12`', '- **learning rate:** `0.003`', '- **optimiser:** `lamb`', '- **seed:** `0`'):
        assert row in training
    assert 'python train.py --config args.yaml' in training
    assert 'trained on `shapes`' in text
    assert 'somebody' not in text  # whose folder it was


def test_mollification_is_told_as_it_was_set():
    text = section(write(), 'Mollification')
    assert 't ~ Beta(1, 4)' in text
    assert 'label + γ / 10' in text
    assert '| clean | 2/3 | 0 | 1.000 |' in text
    assert '| noise | 1/3 | sin²(πt/2)^2 | 0.775 |' in text  # sin²(π/4)² is 1/4, of which the label keeps a tenth
    assert 'blur |' not in text


@pytest.mark.parametrize(('severities', 'said'), [((3,), 'severity 3'), ((1, 3), 'severities 1, 3')])
def test_severities_are_named(severities, said):
    of = made(cells={('clean', 0): cell(0.1)} | {(name, s): cell(0.3) for name in COMMON for s in severities})
    assert f'15 corruptions of cifar-c, {said},' in write(report=of)


def test_label_smoothing_is_counted_in_what_labels_kept():
    text = section(write(settings={'smoothing': 0.2}), 'Mollification')
    assert "label + γ / 10, after timm's label smoothing of 0.2." in text
    assert '| clean | 2/3 | 0 | 0.820 |' in text
    assert '| noise | 1/3 | sin²(πt/2)^2 | 0.640 |' in text  # (1 - 0.2) (1 - 1/4) + 0.4 / 10


def test_labels_that_stay_hard_are_not_said_to_lose_confidence():
    text = write(about={**ABOUT, 'aa': 'molly-k100'})
    assert '| blur | 1/3 | t^100 | 1.000 |' in section(text, 'Mollification')
    weighted = section(write(about={**ABOUT, 'aa': 'molly-w'}), 'Mollification')
    assert 'its loss counted 1 - γ times' in weighted
    assert 'weight of the loss at t = 0.5' in weighted
    assert '| blur | 1/3 | t | 0.500 |' in weighted
    assert 'label became' not in weighted
    assert not any('labels lose' in page for page in (text, weighted))


@needs_evaluation_files
def test_evaluation_results_need_a_data_set_on_the_hub(report):
    assert card.evaluation_file(ABOUT, SETTINGS, report) is None
    assert card.evaluation_file({**ABOUT, 'dataset_id': 'me/shapes'}, SETTINGS, None) is None
    other = {**SETTINGS, 'data_dir': 'other'}  # the name given is of the training's data
    assert card.evaluation_file({**ABOUT, 'dataset_id': 'me/shapes'}, other, report) is None
    entries = yaml.safe_load(card.evaluation_file({**ABOUT, 'dataset_id': 'me/shapes'}, SETTINGS, report))
    assert {entry['dataset']['id'] for entry in entries} == {'me/shapes'}
    values = {entry['dataset']['task_id']: entry['value'] for entry in entries}
    assert values['corrupted_nll'] == pytest.approx(report.mean.nll, abs=1e-6)
    assert values['clean_accuracy'] == pytest.approx(1 - report.clean.error, abs=1e-6)
    assert len(entries) == len(values) == 8
    on_the_hub = replace(report, data=replace(report.data, dataset='hfds/you/pictures'))
    assert 'id: you/pictures' in card.evaluation_file(ABOUT, SETTINGS, on_the_hub)


def test_a_measurement_at_another_size_says_so(report):
    other = {**CONFIG, 'pretrained_cfg': {**CONFIG['pretrained_cfg'], 'crop_pct': 1.0}}
    size = list(report.model.input_size)
    text = section(write(other, report=report), 'How good it is')
    assert f'input_size {size} in place of [3, 32, 40]' in text
    same = {'input_size': tuple(size), **{k: getattr(report.model, k) for k in MEASURED}}
    text = section(
        write({**CONFIG, 'pretrained_cfg': {**CONFIG['pretrained_cfg'], **same}}, report=report), 'How good it is'
    )
    assert 'in place of' not in text


def test_a_published_set_is_named_for_what_was_measured_on_it(report):
    benchmark = replace(report.benchmark, kind='official', name='CIFAR-10-C', crop_pct=1.0, table=None, seed=None)
    report = replace(report, benchmark=benchmark, model=replace(report.model, amp='bfloat16'))
    about = {**ABOUT, 'dataset_id': 'me/shapes'}
    text = write(about=about, report=report)
    results = {r.dataset_config: r for r in ModelCard(text).data.eval_results}
    assert results['clean'].dataset_type == 'me/shapes'
    corrupted = results['15 corruptions of CIFAR-10-C, severities 1 to 5']
    assert corrupted.dataset_type == 'cifar-10-c'
    assert corrupted.dataset_name == 'CIFAR-10-C'
    assert f'{report.data.images} images of shapes/{report.data.split}, corrupted: CIFAR-10-C' in text
    assert 'corrupted' not in (card.evaluation_file(about, SETTINGS, report) or '')  # of an older client
    assert 'The corrupted images are as they are stored, with crop 1.' in text
    assert 'in mixed precision, bfloat16' in text
    cells = {place: cell for place, cell in report.cells.items() if place != ('clean', 0)}
    alone = replace(report, cells=cells, data=replace(report.data, dataset=None, split=None))
    (result, *_) = ModelCard(write(report=alone)).data.eval_results
    assert result.dataset_name == 'CIFAR-10-C'
    assert 'None' not in section(write(report=alone), 'How good it is')


def test_a_measurement_of_mollification_is_told(report):
    text = write(report=replace(mollified(), data=report.data, model=report.model))
    assert '| t | noise: correct | confidence | taught | ECE | blur: correct |' in text
    assert '| 0.25 | 0.875 |' in text
    assert {r.dataset_config for r in ModelCard(text).data.eval_results} == {'clean'}


def test_smoothing_is_told_where_it_is_off_too():  # by default it is on in timm
    assert '- **label smoothing:** `0.0`' in write(settings={**SETTINGS, 'smoothing': 0.0})


def test_a_setting_without_effect_is_left_out():
    assert 'EMA decay' not in write(settings={**SETTINGS, 'model_ema_decay': 0.99})
    assert '- **EMA decay:** `0.99`' in write(settings={**SETTINGS, 'model_ema_decay': 0.99, 'model_ema': True})
    assert 'mixed precision' not in write(settings={**SETTINGS, 'amp_dtype': 'float16', 'amp': False})
    assert 'base batch' not in write(settings={**SETTINGS, 'lr_base': 0.1})
    assert 'at the base batch size:** `0.1`' in write(settings={**SETTINGS, 'lr': None, 'lr_base': 0.1})


@pytest.mark.parametrize(
    ('channels', 'words'), [(1, "convert('L')"), (3, "convert('RGB')"), (5, 'torch.randn(5, 32, 32)')]
)
def test_the_code_to_copy_runs(channels, words, tmp_path, monkeypatch):
    model = timm.create_model('test_resnet', num_classes=2, in_chans=channels)
    cfg = {**CONFIG['pretrained_cfg'], 'input_size': (channels, 32, 32), 'mean': (0.5,) * channels}
    model.pretrained_cfg |= {**cfg, 'std': (0.5,) * channels, 'num_classes': 2, 'label_names': ['cat', 'dog']}
    config = {**CONFIG, 'num_classes': 2, 'label_names': ['cat', 'dog'], 'pretrained_cfg': cfg}
    code = re.search(r'```python\n(.*?)```', write(config), re.DOTALL)[1]
    assert words in code
    monkeypatch.chdir(tmp_path)
    Image.new('RGB', (50, 40)).save('photo.jpg')
    monkeypatch.setattr(timm, 'create_model', lambda name, pretrained: model)
    said = []
    exec(code, {'print': lambda *values: said.append(values)})
    ((name, p),) = said
    assert name in ('cat', 'dog')
    assert 0.5 <= p <= 1


def test_a_net_that_gave_no_numbers_is_said_to(report):
    cells = {('clean', 0): cell(0.1), ('fog', 1): empty()}
    text = write(report=replace(made(cells=cells, **MEASURED), data=report.data))
    assert 'logits that are not finite in fog 1' in text
    found = ModelCard(text).data.eval_results
    assert {r.dataset_config for r in found} == {'clean'}
    assert not any(math.isnan(r.metric_value) for r in found)


def test_names_do_not_break_the_table_or_the_page():
    settings = {**SETTINGS, 'data_dir': '/x/a|b`c_*d*\n# e', 'opt': '`|x', 'aa': None}
    text = write(settings=settings)
    assert "trained on `a\\|b'c_*d* # e`" in text
    assert "- **optimiser:** `'\\|x`" in text


@given(st.text(min_size=1), st.integers(0))
def test_an_edit_is_noticed(inserted, place):
    text = write()
    assert card.is_generated(text)
    place %= len(text) + 1
    edited = text[:place] + inserted + text[place:]
    assert not card.is_generated(edited) or edited == text
    assert not card.is_generated(text[:place] + text[place + 1 :]) or place >= len(text)


def test_our_networks_say_which_package_they_need():
    text = write({**CONFIG, 'architecture': 'preactresnet18.install_timm-molly'})
    assert 'pip install timm timm-molly' in text
    assert 'Unknown model (preactresnet18.install_timm-molly)' in text
    assert 'the network `preactresnet18` of `timm-molly`' in text
    assert 'pip install timm\n' in write()
