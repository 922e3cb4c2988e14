import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.loss import LabelSmoothingCrossEntropy

from timm_molly.config import MollyConfig, split_aa
from timm_molly.target import CoupledTarget

positive = st.floats(1e-300, 1e300, exclude_min=True) | st.integers(1, 10**6)
configs = st.builds(
    MollyConfig,
    roles=st.text('xnbe', min_size=1, max_size=8),
    alpha=positive,
    beta=positive,
    noise_power=positive,
    blur_power=positive,
    min_scale=positive,
    weighted=st.booleans(),
)


@given(configs)
def test_the_string_round_trips(config):
    assert MollyConfig.from_string(str(config)) == config


@given(configs)
def test_the_order_of_sections_does_not_matter(config):
    name, *sections = str(config).split('-')
    assert MollyConfig.from_string('-'.join([name, *reversed(sections)])) == config


def test_the_default_is_the_papers_setting_and_the_shortest_string():
    config = MollyConfig.from_string('molly')
    assert dataclasses.astuple(config) == ('xnb', 1, 2, 1, 1, 0.3, False)
    assert str(config) == 'molly'
    assert str(MollyConfig.from_string('molly-b2-s0.3-k1-a1-mxnb')) == 'molly'


@pytest.mark.parametrize(
    ('string', 'changed'),
    [
        ('molly-b4-mxn', {'beta': 4, 'roles': 'xn'}),
        ('molly-mxxnbe', {'roles': 'xxnbe'}),
        ('molly-kn12-kb4.5', {'noise_power': 12, 'blur_power': 4.5}),
        ('molly-k1000', {'noise_power': 1000, 'blur_power': 1000}),
        ('molly-a.5-s1', {'alpha': 0.5, 'min_scale': 1}),
        ('molly-w', {'weighted': True}),
        ('molly-b4-w', {'beta': 4, 'weighted': True}),
    ],
)
def test_sections_mean_what_the_grammar_says(string, changed):
    config = MollyConfig.from_string(string)
    assert config == dataclasses.replace(MollyConfig(), **changed)


powers = st.floats(0.01, 100)
# Nearer to 0 than a draw in float32 can be, torch may lose t: on some CPUs its sine flushes subnormal numbers.
temperatures = st.just(0.0) | st.floats(1e-38, 1)


@given(st.sampled_from('xnbe'), powers, powers, temperatures, st.integers(1, 1000))
def test_the_confidence_is_that_of_the_dense_label_that_training_sees(role, noise_power, blur_power, t, num_classes):
    config = MollyConfig(noise_power=noise_power, blur_power=blur_power)
    gamma = {'x': 0.0, 'n': math.sin(math.pi / 2 * t) ** (2 * noise_power), 'b': t**blur_power, 'e': 1.0}[role]
    at = torch.tensor([t], dtype=torch.float64)
    assert config.gamma(role, at).item() == pytest.approx(gamma, rel=1e-9, abs=1e-12)
    dense = CoupledTarget(torch.tensor([num_classes - 1]), config.gamma(role, at)).dense(num_classes)
    assert config.confidence(role, at, num_classes).item() == pytest.approx(dense[0, -1].item(), abs=1e-12)


@pytest.mark.parametrize('smoothing', [0.0, 0.1, 0.6])
@pytest.mark.parametrize('t', [0.0, 0.3, 1.0])
def test_with_label_smoothing_it_is_that_of_the_label_that_timms_loss_takes(smoothing, t):
    at, logits = torch.tensor([t], dtype=torch.float64), torch.tensor([[0.3, -1.0, 2.0, 0.1]], dtype=torch.float64)
    target = CoupledTarget(torch.tensor([1]), MollyConfig().gamma('b', at))
    confidence = MollyConfig().confidence('b', at, 4, smoothing).item()
    label = torch.full((1, 4), (1 - confidence) / 3, dtype=torch.float64)
    label[0, 1] = confidence
    expected = torch.nn.functional.cross_entropy(logits, label)
    torch.testing.assert_close(LabelSmoothingCrossEntropy(smoothing)(logits, target), expected)


@given(st.sampled_from('xnbe'), powers, st.floats(0, 1))
def test_weighted_labels_keep_all_confidence(role, power, t):
    config = MollyConfig(noise_power=power, weighted=True)
    at = torch.tensor([t], dtype=torch.float64)
    assert config.confidence(role, at, 10).item() == 1
    assert torch.equal(config.gamma(role, at), dataclasses.replace(config, weighted=False).gamma(role, at))


@pytest.mark.parametrize('value', [1, 'yes', None])
def test_weighted_is_yes_or_no(value):
    with pytest.raises(ValueError, match='weighted must be True or False'):
        MollyConfig(weighted=value)


@pytest.mark.parametrize('role', ['q', '', 'xn', None])
def test_a_role_that_is_none_is_refused(role):
    for ask in (MollyConfig().gamma, lambda role, t: MollyConfig().confidence(role, t, 10)):
        with pytest.raises(ValueError, match="role must be 'x', 'n', 'b' or 'e', got"):
            ask(role, torch.tensor([0.5]))


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MollyConfig().beta = 3


@pytest.mark.parametrize(
    ('string', 'words'),
    [
        ('molly-z3', "section 'z3' in 'molly-z3'. Sections are m<roles>"),
        ('molly-bx', "section 'bx'"),
        ('molly-b', "section 'b'"),
        ('molly-b-2', "section 'b'"),
        ('molly-b1e3', "section 'b1e3'"),
        ('molly-bnan', "section 'bnan'"),
        ('molly-', "section ''"),
        ('molly-b0', "section 'b0' in 'molly-b0': molly beta must be a finite number above 0, got 0.0"),
        ('molly-a0', 'alpha must be a finite number above 0'),
        ('molly-k0', 'noise_power must be a finite number above 0, got 0.0; labels that keep'),
        ('molly-s0', 'min_scale must be a finite number above 0'),
        (
            'molly-mq',
            "section 'mq' in 'molly-mq': molly roles must be one or more of the letters x, n, b, e (clean, noise",
        ),
        ('molly-m', "section 'm'"),
        ('molly-b2-b3', "beta is given twice in 'molly-b2-b3'"),
        ('molly-w-w', "weighted is given twice in 'molly-w-w'"),
        ('molly-w2', "section 'w2'"),
        ('molly-k2-kn3', "noise_power is given twice in 'molly-k2-kn3', the second time by 'kn3'"),
        ('mollyb4', "got 'mollyb4' (did you mean molly-b4?)"),
        ('moly', '(did you mean molly?)'),
        ('molly_k100', '(did you mean molly-k100?)'),
        ('rand-m9+molly', "molly's part alone"),
        ('molly+rand-m9', "molly's part alone"),
        ('Molly', "starts with 'molly'"),
        ('molly,rand-m9', "(and another policy with '+'), got 'molly,rand-m9'"),
        ('rand-m9', "starts with 'molly'"),
    ],
)
def test_a_bad_string_is_refused_with_the_section_and_the_choice(string, words):
    with pytest.raises(ValueError) as error:
        MollyConfig.from_string(string)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ('section', 'meant'),
    [
        ('xnb', 'mxnb'),
        ('Mxn', 'mxn'),
        ('beta=4', 'b4'),
        ('B4', 'b4'),
        ('weighted', 'w'),
        ('noise_power2', 'kn2'),
    ],
)
def test_a_section_that_is_nearly_one_is_told_which(section, meant):
    MollyConfig.from_string(f'molly-{meant}')
    with pytest.raises(ValueError, match=rf'\(did you mean {meant}\?\)'):
        MollyConfig.from_string(f'molly-{section}')
    with pytest.raises(ValueError) as error:
        MollyConfig.from_string('molly-z4')
    assert 'did you mean' not in str(error.value)


@pytest.mark.parametrize(('key', 'needs'), [('b', 'a number: b2'), ('k', 'a number: k2'), ('m', 'roles: mxn')])
def test_a_section_without_its_value_is_told_so(key, needs):
    for string in (f'molly-{key}', f'molly-{key}-2'):
        with pytest.raises(ValueError, match=rf"section '{key}' in '{string}' \({key} needs {needs}, say\)"):
            MollyConfig.from_string(string)


@pytest.mark.parametrize('aa', ['moly', 'Mollly-b4', 'rand-m9+moly'])
def test_a_misspelt_molly_does_not_go_to_timm(aa):
    with pytest.raises(ValueError, match=r'\(did you mean molly\?\)'):
        split_aa(aa)
    if '+' not in aa:
        with pytest.raises(ValueError, match=r'\(did you mean molly\?\)'):
            MollyConfig.from_string(aa.lower())


@pytest.mark.parametrize('field', ['alpha', 'beta', 'noise_power', 'blur_power', 'min_scale'])
@pytest.mark.parametrize('value', [0, -1, math.nan, math.inf, '2'])
def test_bad_values_are_refused(field, value):
    with pytest.raises(ValueError, match=f'{field} must be a finite number above 0'):
        MollyConfig(**{field: value})


@pytest.mark.parametrize('roles', ['', 'xq', 3, None, ('x', 'n')])
def test_bad_roles_are_refused(roles):
    with pytest.raises(ValueError, match='molly roles must be one or more of the letters'):
        MollyConfig(roles=roles)


def test_numpys_numbers_are_numbers():
    assert MollyConfig(beta=np.float32(4)) == MollyConfig(beta=4)
    assert str(MollyConfig(beta=np.float32(4))) == 'molly-b4'


@given(st.text(max_size=30))
def test_any_text_gives_a_config_or_a_value_error(text):
    for string in (text, f'molly-{text}', f'{text}+molly'):
        try:
            config, rest = split_aa(string)
        except ValueError:
            continue
        assert (config is None) == ('molly' not in string.lower())
        assert config is None or rest != ''


@pytest.mark.parametrize(
    ('aa', 'config', 'rest'),
    [
        ('molly', 'molly', None),
        ('molly-b4+rand-m9-mstd0.5-inc1', 'molly-b4', 'rand-m9-mstd0.5-inc1'),
        ('augmix-m5-w4-d2+molly-mxn', 'molly-mxn', 'augmix-m5-w4-d2'),
        ('molly + original', 'molly', 'original'),
        ('rand-m9-mstd0.5-inc1', None, 'rand-m9-mstd0.5-inc1'),
        ('', None, ''),
    ],
)
def test_molly_is_taken_out_of_the_aa_string(aa, config, rest):
    assert split_aa(aa) == (config and MollyConfig.from_string(config), rest)


@pytest.mark.parametrize(
    'aa',
    [
        'molly+molly-b2',
        'rand-m9-molly',
        'rand-m9+v0+molly',
        'molly+',
        '+molly',
        'rand-m9-molly+molly',
        'my-molly',
    ],
)
def test_molly_is_taken_once_beside_one_policy(aa):
    with pytest.raises(ValueError, match='--aa takes molly once') as error:
        split_aa(aa)
    assert repr(aa) in str(error.value)


KNOWN = ['rand', 'augmix', 'original', 'originalr', 'v0', 'v0r', '3a']
NAMES = [*KNOWN, 'ran', 'random', 'augmi', 'imagenet', 'v1', '3b', 'trivial', 'autoaugment', 'Rand']


@pytest.mark.parametrize('name', NAMES)
def test_the_other_policy_is_one_that_timm_knows(name):
    from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform

    makers = {'rand': rand_augment_transform, 'augmix': augment_and_mix_transform}
    try:  # as timm's transforms choose
        next((make for start, make in makers.items() if name.startswith(start)), auto_augment_transform)(name, {})
        known = True
    except AssertionError:
        known = False
    if known:
        assert split_aa(f'molly-b4+{name}-m9') == (MollyConfig(beta=4), f'{name}-m9')
    else:
        with pytest.raises(ValueError, match=f"timm has no policy '{name}-m9', which 'molly-b4\\+{name}-m9' names"):
            split_aa(f'molly-b4+{name}-m9')
