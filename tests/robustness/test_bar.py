"""The corruptions of C-bar: against laws; `test_bar_reference.py` compares with the published code."""

import math

import numpy as np
import pytest
from sklearn.datasets import load_sample_image
from support import corruptions as C

from timm_molly.errors import UserError
from timm_molly.robustness import Corrupt, bar
from timm_molly.robustness.corruptions.bar import _perlin, _sample, _spectral_noise, caustic_refraction
from timm_molly.robustness.corruptions.names import chosen

CHINA = load_sample_image('china.jpg')


def picture(side):
    return CHINA[100 : 100 + side, 200 : 200 + side]


def grey(level, side=64):
    return np.full((side, side, 3), level, np.uint8)


def strength(name, severity, table='cifar-c'):
    return C.TABLES[table][name][severity - 1][0]


def draws(image, name, severity, count, table='cifar-c'):
    return np.array([C.corrupt(image, name, severity, table, i) for i in range(count)]).astype(float)


@pytest.mark.parametrize('severity', C.SEVERITIES)
def test_blue_noise_leaves_the_pixels_above_a_threshold_of_the_normal_law(severity):
    kept = (draws(grey(200), 'blue_noise_sample', severity, 40) == 200).mean()
    threshold = 0.3 * strength('blue_noise_sample', severity) - 2.5
    assert kept == pytest.approx(math.erfc(threshold / math.sqrt(2)) / 2, abs=0.01)


def test_brownish_noise_has_its_strength_and_lower_frequencies_more_of_it():
    noise = draws(grey(128, 32), 'brownish_noise', 1, 200) - 128
    assert noise.std(axis=(1, 2)).mean() == pytest.approx(6.4 * strength('brownish_noise', 1), rel=0.02)
    power = (np.abs(np.fft.fft2(noise[..., 0])) ** 2).mean(0)
    assert 35 < power[0, 1] / power[0, 4] < 150  # amplitudes 1 / 2 and 1 / 17


@pytest.mark.parametrize('severity', C.SEVERITIES)
def test_checkerboard_cuts_out_its_share_of_half_of_the_fields(severity):
    cut = draws(grey(255), 'checkerboard_cutout', severity, 300)
    assert set(np.unique(cut)) == {128, 255}
    assert (cut == 128).mean() == pytest.approx(strength('checkerboard_cutout', severity) / 20, rel=0.15)


@pytest.mark.parametrize(('name', 'table'), [('sparkles', 'cifar-c'), ('inverse_sparkles', 'imagenet-c')])
def test_sparkles_brighten_and_nothing_more(name, table):
    image = picture(64)
    for severity in C.SEVERITIES:
        assert (draws(image, name, severity, 5, table) >= image).all()
        assert draws(grey(255, 64), name, severity, 2, table).min() == 255


def test_waves_have_the_amplitude_of_their_strength():
    for severity in (1, 2, 3):
        wave = draws(grey(128, 224), 'single_frequency_greyscale', severity, 5, 'imagenet-c') - 128
        amplitude = 19.6 * strength('single_frequency_greyscale', severity, 'imagenet-c')
        assert np.abs(wave).max() == pytest.approx(amplitude, abs=2)
        assert wave.std(axis=(1, 2)) == pytest.approx(np.full((5, 3), amplitude / math.sqrt(2)), rel=0.05)
        rings = draws(grey(128, 224), 'cocentric_sine_waves', severity, 5, 'imagenet-c') - 128
        limit = 6.4 * strength('cocentric_sine_waves', severity, 'imagenet-c')
        assert -limit - 1 <= rings.min() < -0.9 * limit
        assert 0.9 * limit < rings.max() <= limit


def test_plasma_and_perlin_noise_lie_over_the_image_with_their_weight():
    for severity in C.SEVERITIES:
        weight = 6.4 * strength('plasma_noise', severity, 'imagenet-c')
        plasma = draws(grey(0, 64), 'plasma_noise', severity, 20, 'imagenet-c')
        assert weight - 2 <= plasma.max() <= weight
        weight = 0.05 * strength('perlin_noise', severity, 'imagenet-c')
        clouds = draws(grey(0, 64), 'perlin_noise', severity, 5, 'imagenet-c')
        assert clouds.min() >= math.floor(127 * weight)
        assert clouds.max() <= 255 * weight
        white = draws(grey(255, 64), 'perlin_noise', severity, 5, 'imagenet-c')
        assert np.abs(white - clouds - 255 * (1 - weight)).max() <= 1


def test_perlins_noise_is_0_at_whole_numbers_and_smooth_between():
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * math.pi, 256)
    gradients = np.stack([np.cos(angle), np.sin(angle)], 1)
    permutation = np.tile(rng.permutation(256), 2)
    whole = np.mgrid[-3:4, 0:7].astype(float)
    assert np.abs(_perlin(*whole, permutation, gradients)).max() == 0
    along = np.linspace(-5, 5, 20_001)
    for places in ((along, 0.3 * along), (0.3 * along, along)):
        found = _perlin(*places, permutation, gradients)
        assert np.abs(np.diff(found)).max() < 6 * (along[1] - along[0])
        assert 0.3 < np.abs(found).max() <= 1.5


def test_lines_are_grey_and_as_many_as_the_density_says():
    image = grey(255, 224)
    for severity in (1, 5):
        drawn = C.corrupt(image, 'lines', severity, 'cifar-c', 0)
        assert drawn.min() >= 126  # each line cuts a grey level down
        assert 0 < (drawn < 255).mean() < 1
    few, many = ((draws(image, 'lines', s, 5) < 255).mean() for s in (1, 5))
    assert many > 2 * few


@pytest.mark.parametrize(
    'name', ['ripple', 'pinch_and_twirl', 'circular_motion_blur', 'transverse_chromatic_abberation']
)
def test_what_moves_pixels_leaves_a_flat_middle_as_it_was(name):
    middle = draws(grey(100, 96), name, 1, 3)[:, 30:66, 30:66]
    assert np.median(np.abs(middle - 100)) <= 1


def test_circular_motion_blur_keeps_what_is_round():
    y, x = np.mgrid[-31.5:32, -31.5:32]
    rings = (127.5 + 127 * np.cos(np.hypot(x, y) / 3))[..., None].repeat(3, -1).astype(np.uint8)
    blurred = C.corrupt(rings, 'circular_motion_blur', 5, 'cifar-c', 0).astype(float)
    inside = np.hypot(x, y) < 28
    assert np.abs(blurred - rings)[inside].mean() < 4
    photo = picture(64)
    assert np.abs(C.corrupt(photo, 'circular_motion_blur', 5, 'cifar-c', 0).astype(float) - photo)[inside].mean() > 8


def test_chromatic_aberration_enlarges_each_colour_by_another_scale():
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8)[:, None], (64, 1, 3))
    at_5 = strength('transverse_chromatic_abberation', 5)
    for index in range(6):
        moved = C.corrupt(ramp, 'transverse_chromatic_abberation', 5, 'cifar-c', index).astype(float)
        slopes = (moved[:, 50] - moved[:, 10]).mean(0) / 160
        assert sorted(slopes) == pytest.approx([1 / (1 + 0.05 * at_5), 1 / (1 + 0.025 * at_5), 1], rel=0.04)


def test_caustics_move_and_light_in_proportion_to_their_strength():
    flat = np.full((96, 96, 3), 0.5)
    light, double = ((caustic_refraction(flat, np.random.default_rng(0), s) - 0.5)[20:-20, 20:-20] for s in (1, 2))
    assert np.abs(light).max() > 0.01
    assert double == pytest.approx(2 * light, abs=1e-9)
    ramp = np.tile(np.linspace(0, 1, 96)[None, :, None], (96, 1, 3))
    level, moved = (caustic_refraction(x, np.random.default_rng(0), 2) for x in (flat, ramp))
    shift = (moved - level + 0.5 - ramp)[20:-20, 20:-20, 0] * 95  # pixels to the right
    assert 0.5 < np.abs(shift).max() < 0.1 * 96  # a lens of a tenth of the side


def test_samples_are_bilinear_and_black_outside():
    image = np.arange(12.0).reshape(3, 4, 1)
    places = np.array([[[0, 0.5, -0.5, 2, 9]], [[1, 1.5, 0, 3.25, 0]]])
    expected = [1, 0.25 * (1 + 2 + 5 + 6), 0, 0.75 * 11, 0]
    assert _sample(image, places)[0, :, 0] == pytest.approx(expected)


@pytest.mark.parametrize('shape', [(8, 8), (7, 8), (8, 7), (5, 9)])
def test_spectral_noise_has_variance_1_and_no_frequency_of_amplitude_0(shape):
    amplitude = np.ones(shape)
    amplitude[shape[0] // 2, shape[1] // 2] = 0
    noise = _spectral_noise(amplitude, np.random.default_rng(0))
    assert noise.shape == shape
    assert noise.std() == pytest.approx(1)
    assert noise.mean() == pytest.approx(0, abs=1e-12)


def test_bar_means_the_set_of_the_table():
    assert len(chosen(['bar'], 'imagenet-c')) == len(chosen(['bar'], 'cifar-c')) == 10
    assert len(set(chosen(['bar'], 'imagenet-c')) & set(chosen(['bar'], 'cifar-c'))) == 5
    assert chosen(['bar'], 'tiny-imagenet-c') == chosen(['bar'], 'cifar-c')
    assert bar().names == ('bar',)
    with pytest.raises(UserError, match='cifar-c has no strengths of plasma_noise; of C-bar it has blue_noise_sample'):
        chosen(['bar', 'plasma_noise'], 'cifar-c')
    with pytest.raises(UserError, match="cifar-c has no strengths of 'plasma_noise'"):
        Corrupt('plasma_noise', 3, table='cifar-c')
    with pytest.raises(UserError, match="imagenet-c has no strengths of 'ripple'"):
        Corrupt('ripple', 3)(picture(224))
