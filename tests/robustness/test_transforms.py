"""Against laws, formulas and other libraries; tests/test_corruptions_reference.py compares with the published code."""

import colorsys
import io
import pickle
import zlib

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from imagecorruptions import corrupt as published
from PIL import Image
from sklearn.datasets import load_sample_image
from support import corruptions as C
from support.reference import DETERMINISTIC

from timm_molly.robustness import Corrupt
from timm_molly.robustness.corruptions.transforms import corrupt_pixels

SIDES = {'imagenet-c': 224, 'tiny-imagenet-c': 64, 'cifar-c': 32}
CASES = [(name, table) for table in C.TABLES for name in C.names_of(table)]
FEW_DRAWS = (*DETERMINISTIC, 'circular_motion_blur', 'transverse_chromatic_abberation')  # none, or one of six


def picture(side=32, height=None):
    return Image.fromarray(load_sample_image('china.jpg')).resize((side, height or side))


def pixels(image):
    return np.asarray(image).astype(float)


def grey(level, side=64):
    return Image.fromarray(np.full((side, side, 3), level, np.uint8))


@pytest.mark.parametrize('table', C.TABLES)
def test_the_tables_have_every_corruption_at_five_severities(table):
    assert set(C.TABLES[table]) == set(C.names_of(table))
    assert {len(strengths) for strengths in C.TABLES[table].values()} == {5}
    assert len(C.names_of(table)) == 15 + 4 + 10
    assert sum(len(group) for group in C.GROUPS.values()) == 15


@pytest.mark.parametrize(('name', 'table'), CASES)
def test_a_corruption_keeps_size_and_mode_and_does_something(name, table):
    for image in (picture(SIDES[table]), picture(SIDES[table] + 9, SIDES[table] + 2), picture(64).convert('L')):
        for severity in C.SEVERITIES:
            corrupted = C.corrupt(image, name, severity, table, 0)
            assert (corrupted.size, corrupted.mode) == (image.size, image.mode)
        if name not in ('saturate', 'spatter') or image.mode == 'RGB':
            assert not np.array_equal(pixels(corrupted), pixels(image))


@pytest.mark.parametrize('table', C.TABLES)
@pytest.mark.parametrize('name', [n for n in C.COMMON if n != 'elastic_transform'])
def test_severity_5_is_further_from_the_image_than_severity_1(name, table):
    image = picture(SIDES[table])

    def distance(severity):
        return np.mean([np.abs(pixels(C.corrupt(image, name, severity, table, i)) - pixels(image)) for i in range(5)])

    assert distance(5) > distance(1)


@given(
    name=st.sampled_from(C.names_of('cifar-c')),
    severity=st.sampled_from(C.SEVERITIES),
    index=st.integers(0, 2**40),
    seed=st.integers(0, 2**32),
    before=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_a_draw_depends_on_index_corruption_severity_and_seed_only(name, severity, index, seed, before):
    image = picture()
    first = C.corrupt(image, name, severity, 'cifar-c', index, seed)
    C.corrupt(image, 'gaussian_noise', 1, 'cifar-c', 3)
    np.random.seed(before)
    state = np.random.get_state()
    assert np.array_equal(pixels(first), pixels(C.corrupt(image, name, severity, 'cifar-c', index, seed)))
    assert all(np.array_equal(a, b) for a, b in zip(state, np.random.get_state(), strict=True))


@pytest.mark.parametrize('name', [n for n in C.names_of('tiny-imagenet-c') if n not in FEW_DRAWS])
def test_images_and_seeds_differ_in_their_draws(name):
    image = picture(64)
    draws = [
        C.corrupt(image, name, 3, 'tiny-imagenet-c', index, seed) for index, seed in ((0, 0), (1, 0), (0, 1), (2, 0))
    ]
    assert len({draw.tobytes() for draw in draws}) == 4


@pytest.mark.parametrize('severity', C.SEVERITIES)
@pytest.mark.parametrize('name', DETERMINISTIC)
def test_what_imagecorruptions_has_is_the_same(name, severity):
    image = picture(224)
    theirs = published(np.asarray(image), corruption_name=name, severity=severity).astype(float)
    assert np.abs(pixels(C.corrupt(image, name, severity, 'imagenet-c', 0)) - theirs).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    'name', ['gaussian_noise', 'shot_noise', 'impulse_noise', 'speckle_noise', 'glass_blur', 'fog']
)
def test_draws_have_the_mean_and_variance_of_imagecorruptions(name):
    image = picture(224 if name == 'fog' else 96)  # the size of fog's map
    np.random.seed(0)
    theirs = np.array([published(np.asarray(image), corruption_name=name, severity=3) for _ in range(300)], float)
    ours = np.array([pixels(C.corrupt(image, name, 3, 'imagenet-c', i)) for i in range(300)])
    for statistic in (lambda x: x.mean((1, 2, 3)), lambda x: x.var((1, 2, 3))):
        a, b = statistic(ours), statistic(theirs)
        assert abs(a.mean() - b.mean()) < 4 * np.sqrt((a.var() + b.var()) / 300)


@pytest.mark.parametrize(('table', 'severity'), [('imagenet-c', 3), ('cifar-c', 1), ('tiny-imagenet-c', 5)])
def test_noise_has_the_variance_of_its_formula(table, severity):
    x = pixels(grey(128)) / 255

    def draws(name):
        return np.array([pixels(C.corrupt(grey(128), name, severity, table, i)) for i in range(30)]) / 255

    def strength(name):
        return C.TABLES[table][name][severity - 1][0]

    photons = strength('shot_noise')
    assert draws('shot_noise').clip(0, 0.99).var() == pytest.approx(x.mean() / photons, rel=0.1)
    impulse = draws('impulse_noise')
    assert (impulse == 1).mean() == pytest.approx(strength('impulse_noise') / 2, rel=0.15)
    assert (impulse == 0).mean() == pytest.approx(strength('impulse_noise') / 2, rel=0.15)
    if table != 'imagenet-c':  # stronger noise is clipped
        assert draws('gaussian_noise').std() == pytest.approx(strength('gaussian_noise'), rel=0.03)
        assert draws('speckle_noise').std() == pytest.approx(0.5 * strength('speckle_noise'), rel=0.03)


@pytest.mark.parametrize('severity', C.SEVERITIES)
@pytest.mark.parametrize('table', C.TABLES)
def test_colours_follow_the_standard_librarys_hsv(table, severity):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))
    image.putpixel((0, 0), (90, 90, 90))
    image.putpixel((0, 1), (0, 0, 0))
    more = C.TABLES[table]['brightness'][severity - 1][0]
    factor, less_grey = C.TABLES[table]['saturate'][severity - 1]
    brighter = pixels(C.corrupt(image, 'brightness', severity, table, 0))
    saturated = pixels(C.corrupt(image, 'saturate', severity, table, 0))
    for at in [(0, 0), (1, 0), *np.random.default_rng(1).integers(0, 48, (100, 2)).tolist()]:
        h, s, v = colorsys.rgb_to_hsv(*(pixels(image)[tuple(at)] / 255))
        wanted = np.array(colorsys.hsv_to_rgb(h, s, min(v + more, 1))) * 255
        assert np.abs(brighter[tuple(at)] - wanted).max() <= 1.01
        wanted = np.array(colorsys.hsv_to_rgb(h, min(s * factor + less_grey, 1), v)) * 255
        assert np.abs(saturated[tuple(at)] - wanted).max() <= 1.01


def test_contrast_jpeg_and_pixelate_are_what_they_say():
    image = picture(32)
    x = pixels(image)
    mean = x.mean((0, 1))
    assert np.abs(pixels(C.corrupt(image, 'contrast', 2, 'cifar-c', 0)) - ((x - mean) * 0.5 + mean)).max() <= 1
    file = io.BytesIO()
    image.save(file, 'JPEG', quality=58)
    assert np.array_equal(pixels(C.corrupt(image, 'jpeg_compression', 3, 'cifar-c', 0)), pixels(Image.open(file)))
    blocks = pixels(C.corrupt(picture(64), 'pixelate', 5, 'tiny-imagenet-c', 0)).reshape(32, 2, 32, 2, 3)
    means = pixels(picture(64)).reshape(32, 2, 32, 2, 3).mean((1, 3), keepdims=True)
    assert np.abs(blocks - means).max() <= 1


def test_blurs_are_those_of_scipy():
    image = picture(64)
    x = pixels(image)
    wanted = scipy.ndimage.gaussian_filter(x, (1.25, 1.25, 0), mode='nearest')
    assert np.abs(pixels(C.corrupt(image, 'gaussian_blur', 4, 'tiny-imagenet-c', 0)) - wanted).max() <= 1
    zoomed = [x]
    for zoom in np.arange(1, 1.11, 0.01):
        side = int(np.ceil(64 / zoom))
        top = (64 - side) // 2
        middle = scipy.ndimage.zoom(x[top : top + side, top : top + side], (zoom, zoom, 1), order=1)
        trim = (middle.shape[0] - 64) // 2
        zoomed.append(middle[trim : trim + 64, trim : trim + 64])
    wanted = np.mean(zoomed, 0)
    assert np.abs(pixels(C.corrupt(image, 'zoom_blur', 2, 'tiny-imagenet-c', 0)) - wanted).max() <= 1.01


def test_motion_blur_smears_a_point_along_one_line():
    image = np.zeros((224, 224, 3), np.uint8)
    image[112, 112] = 255
    for index in range(10):
        rows, columns = np.nonzero(
            pixels(C.corrupt(Image.fromarray(image), 'motion_blur', 1, 'imagenet-c', index)).sum(-1)
        )
        assert len(rows) > 4
        # No further from the line through its ends than the rounding of a pixel.
        slope = np.polyfit(columns, rows, 1)
        assert np.abs(np.polyval(slope, columns) - rows).max() < 1
        assert abs(np.degrees(np.arctan(slope[0]))) < 46


@pytest.mark.parametrize('name', ['brightness', 'frost', 'snow'])
def test_weather_brightens_a_dark_picture(name):
    dark = grey(20, 224)
    assert pixels(C.corrupt(dark, name, 3, 'imagenet-c', 0)).mean() > 25


def test_images_larger_than_frost_and_fog_are_covered():
    large = Image.fromarray(np.zeros((1100, 1200, 3), np.uint8))
    frost = pixels(C.corrupt(large, 'frost', 5, 'imagenet-c', 1))
    assert (frost[-100:, -100:] > 0).mean() > 0.5
    C.corrupt(large, 'fog', 5, 'imagenet-c', 0)


@pytest.mark.parametrize(
    ('side', 'table'), [(28, 'cifar-c'), (32, 'cifar-c'), (64, 'tiny-imagenet-c'), (160, 'imagenet-c')]
)
def test_the_table_is_the_one_of_the_nearest_size(side, table):
    assert C.table_for(side) == table


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (('rain', 1, 'cifar-c'), "no corruption 'rain'; there are gaussian_noise"),
        (('fog', 0, 'cifar-c'), 'severity must be 1 to 5, got 0'),
        (('fog', 1, 'cifar'), "table must be one of imagenet-c, tiny-imagenet-c, cifar-c, got 'cifar'"),
        (
            ('fog', 1, 'imagenet-c'),
            'imagenet-c needs images of 41 pixels or more, got 32: .* of tiny-imagenet-c or cifar-c',
        ),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        C.corrupt(picture(32), *arguments, 0)


def test_images_and_numbers_out_of_range_are_named():
    with pytest.raises(ValueError, match='RGB or grey'):
        C.corrupt(picture(32).convert('RGBA'), 'fog', 1, 'cifar-c', 0)
    with pytest.raises(ValueError, match='index and seed must be 0 or more, got -1 and 0'):
        C.corrupt(picture(32), 'fog', 1, 'cifar-c', -1)


def test_images_too_small_for_any_table_say_so():
    with pytest.raises(ValueError, match='got 16: make the input larger'):
        C.check_size(16, 'cifar-c')


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (('fog', 3.0), 'severity must be 1 to 5, got 3.0'),
        (('fog', True), 'severity must be 1 to 5, got True'),
        (('fog', 3, None, -1), 'seed must be 0 or more, got -1'),
    ],
)
def test_a_transform_is_checked_when_it_is_made(arguments, words):
    with pytest.raises(ValueError, match=words):
        Corrupt(*arguments)


@pytest.mark.parametrize('image', [torch.zeros(3, 32, 32, dtype=torch.uint8), np.zeros((32, 32, 3)), 'photo.jpg'])
def test_what_is_no_image_is_refused(image):
    with pytest.raises(ValueError, match='must be a PIL image or a uint8 array'):
        Corrupt('fog')(image)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(C.names_of('cifar-c')),
    severity=st.sampled_from(C.SEVERITIES),
    seed=st.integers(0, 2**31 - 1),
    index=st.none() | st.integers(0, 10**6),
    side=st.sampled_from([32, 64]),
)
def test_pictures_and_arrays_colour_and_grey_are_corrupted_alike(name, severity, seed, index, side):
    transform = pickle.loads(pickle.dumps(Corrupt(name, severity, seed=seed)))  # as a worker gets it
    image = picture(side)
    found = np.asarray(transform(image, index))
    assert np.array_equal(found, transform(np.asarray(image), index))
    assert np.array_equal(found, np.asarray(transform(image, index)))
    table = C.table_for(side)
    number = zlib.crc32(np.asarray(image).tobytes()) if index is None else index
    assert np.array_equal(found, corrupt_pixels(np.asarray(image), name, severity, table, number, seed))
    grey = image.convert('L')
    corrupted = transform(grey, index)
    assert corrupted.mode == 'L'
    for shape in ((side, side), (side, side, 1)):
        assert np.array_equal(transform(np.asarray(grey).reshape(shape), index), np.asarray(corrupted).reshape(shape))


def test_two_images_get_different_noise_and_workers_change_nothing():
    images = [np.full((32, 32, 3), level, np.uint8) for level in (100, 101, 102, 103)]
    transform = Corrupt('gaussian_noise', 3)
    alone = [transform(image) for image in images]
    noise = [corrupted.astype(int) - image for corrupted, image in zip(alone, images, strict=True)]
    assert all(np.abs(noise[0] - other).mean() > 5 for other in noise[1:])
    data = Corrupted(images, transform)
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=2)
    for found, wanted in zip(loader, alone, strict=True):
        assert np.array_equal(found.numpy(), wanted)


class Corrupted(torch.utils.data.Dataset):
    def __init__(self, images, transform):
        self.images, self.transform = images, transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return torch.from_numpy(self.transform(self.images[index]))
