"""The corruptions of C-bar beside the published generator: minutes, and skipped where the generator is not at hand.

MOLLY_C_BAR_CODE names the folder imagenet_c_bar of a checkout of facebookresearch/augmentation-corruption.
"""

import importlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import ks_2samp
from sklearn.datasets import load_sample_image
from support import corruptions as C

from timm_molly.robustness.corruptions import bar

CODE = os.environ.get('MOLLY_C_BAR_CODE')
if not CODE:
    pytest.skip('set MOLLY_C_BAR_CODE to imagenet_c_bar of augmentation-corruption', allow_module_level=True)

SIDES = {'imagenet-c': 224, 'cifar-c': 32}
CASES = [(table, name, severity) for table in SIDES for name in C.BAR_OF[table] for severity in (1, 3, 5)]


@pytest.fixture(scope='module')
def theirs():
    """Their classes by name; `np.int` has been dropped since, and `utils` is a folder of theirs."""
    np.int = int
    sys.path.insert(0, CODE)
    try:
        yield importlib.import_module('transform_finder').transform_dict
    finally:
        sys.path.remove(CODE)
        del np.int


def photo(side):
    return np.asarray(Image.fromarray(load_sample_image('china.jpg')).resize((side, side)))


class Given:
    """Stands for a generator: gives what is queued for each of its methods."""

    def __init__(self, **queues):
        self.queues = {name: list(values) for name, values in queues.items()}

    def __getattr__(self, name):
        def draw(*size, **_):
            value = self.queues[name].pop(0)
            return value(*size) if callable(value) else np.asarray(value)

        return draw


def given(name, p, side, gradients):
    """A generator that draws what their parameters say."""
    rng = np.random.RandomState(p.get('seed'))
    if name in ('blue_noise_sample', 'brownish_noise'):
        return Given(uniform=[rng.uniform(0, 2 * np.pi, size=(side, side // 2)) for _ in range(3)])
    if name == 'lines':
        draws = [rng.uniform(size=3) for _ in range(int(p['density'] * side))]
        queue = [part for draw in draws for part in (draw[:2], draw[2])]
        return Given(uniform=[p['angle'], p['angle_variation']], random=queue)
    if name == 'checkerboard_cutout':
        width = p['scales'][0]
        chosen = rng.uniform(size=(int(4 * side // width),) * 2)
        return Given(uniform=[p['angle'], width / side], random=[chosen])
    if name == 'perlin_noise':
        found = gradients(rng)
        return Given(permutation=[found.p[:256]], uniform=[found.g[:256].copy()])
    queues = {
        'caustic_refraction': lambda: {'uniform': [p['time'], p['size'] / side]},
        'circular_motion_blur': lambda: {},
        'cocentric_sine_waves': lambda: {'uniform': [p['offset'], p['freq'], p['amplitude'], p['ring_width']]},
        'inverse_sparkles': lambda: {
            'uniform': [p['center'] / side],
            'integers': [p['rays']],
            'standard_normal': [rng.randn],
        },
        'pinch_and_twirl': lambda: {'choice': [np.sign(p['angles'])]},
        'plasma_noise': lambda: {
            'uniform': [p['time'], p['sharpness'], p['scale'] / side],
            'integers': [p['iterations']],
        },
        'ripple': lambda: {'uniform': [p[key][:, None, None] for key in ('relative', 'phases')]},
        'single_frequency_greyscale': lambda: {'uniform': [0.0, 0.0, p['phase']], 'permutation': [p['freq']]},
        'sparkles': lambda: {
            'uniform': [p['centers'] / side],
            'integers': [p['nrays']],
            'standard_normal': [rng.randn] * 5,
        },
        'transverse_chromatic_abberation': lambda: {'permutation': [p['scales']]},
    }
    if name == 'ripple':
        p = {**p, 'relative': p['wavelengths'] / side}
    return Given(**queues[name]())


@pytest.mark.parametrize(('table', 'name', 'severity'), CASES)
def test_with_the_same_draws_pictures_are_the_same_to_a_grey_level(theirs, table, name, severity):
    side = SIDES[table]
    strength = C.TABLES[table][name][severity - 1][0]
    transform = theirs[name](severity=strength, im_size=side)
    np.random.seed(severity)
    parameters = transform.sample_parameters()
    wanted = transform.transform(photo(side).copy(), **parameters)
    gradients = importlib.import_module('utils.perlin_noise').PerlinNoiseGenerator
    x = getattr(bar, name)(photo(side) / 255.0, given(name, parameters, side, gradients), strength)
    found = (np.clip(x, 0, 1) * 255).astype(np.uint8)
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 1


@pytest.mark.parametrize('name', sorted({name for _, name, _ in CASES}))
def test_draws_follow_the_same_law(theirs, name):
    """Of 300 pictures of each at 32 pixels: mean, deviation and roughness, and the pixel in the middle."""
    table = next(table for table in SIDES if name in C.BAR_OF[table])
    strength = C.TABLES[table][name][2][0]
    transform = theirs[name](severity=strength, im_size=32)

    def ours(index):
        x = getattr(bar, name)(photo(32) / 255.0, np.random.default_rng(index), strength)
        return (np.clip(x, 0, 1) * 255).astype(np.uint8)

    np.random.seed(1)
    pictures = [transform(photo(32).copy()) for _ in range(300)], [ours(i) for i in range(300)]
    if name == 'circular_motion_blur':
        assert np.abs(pictures[0][0].astype(int) - pictures[1][0]).max() <= 1
        return
    for statistic in (np.mean, np.std, lambda x: np.abs(np.diff(x, axis=1)).mean(), lambda x: x[16, 16].mean()):
        a, b = ([statistic(x.astype(float)) for x in of] for of in pictures)
        assert ks_2samp(a, b).pvalue > 1e-4


def test_the_strengths_are_those_of_their_tables():
    for table, file in (('imagenet-c', 'imagenet_c_bar.csv'), ('cifar-c', 'cifar10_c_bar.csv')):
        rows = [line.split(',') for line in (Path(CODE) / file).read_text().split()]
        assert {name: tuple(map(float, of)) for name, *of in rows} == {
            name: tuple(s[0] for s in C.TABLES[table][name]) for name in C.BAR_OF[table]
        }
