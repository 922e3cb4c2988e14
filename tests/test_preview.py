import random

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from timm_molly.cli import main
from timm_molly.config import MollyConfig
from timm_molly.errors import UserError
from timm_molly.preview import TEMPERATURES, draw, preview


@pytest.fixture
def photo(tmp_path):
    rows, columns = np.mgrid[:60, :80]
    path = tmp_path / 'photo.jpg'
    Image.fromarray(np.stack([rows * 4, columns * 3, rows + columns], 2).astype('uint8')).save(path)
    return path


def draw_small(config, num_classes=10):
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return draw(x, torch.zeros(3), torch.ones(3), MollyConfig.from_string(config), num_classes, config)


def captions(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize('suffix', ['png', 'pdf', 'svg'])
def test_it_writes_the_picture_and_nothing_else(photo, tmp_path, suffix, capsys):
    output = tmp_path / f'out.{suffix}'
    assert main(['preview', str(photo), str(photo), '--aa', 'molly-b4', '-o', str(output), '--img-size', '32']) == 0
    assert capsys.readouterr().out == f'wrote {output}\n'
    assert output.stat().st_size > 5000
    assert {path.name for path in tmp_path.iterdir()} == {'photo.jpg', output.name}
    if suffix == 'png':
        with Image.open(output) as image:
            assert image.width > image.height > 500


def test_each_picture_says_its_t_its_strength_and_the_confidence_left():
    texts = captions(draw_small('molly-k2'))
    assert len(texts) == 2 * 2 * len(TEMPERATURES) * 2  # images, degradations, temperatures, lines
    # By hand: sin(pi .4 / 2) = .588, gamma = .588**4 = .119, and 1 - .119 * 9 / 10 = .893.
    i = texts.index('t = 0.4, std 0.59')
    assert texts[i + 1] == 'confidence 0.893'
    # By hand: .3**.6 * 16**.4 = 1.47 px, gamma = .4**2 = .16, and 1 - .16 * .9 = .856.
    i = texts.index('t = 0.4, 1.47 px')
    assert texts[i + 1] == 'confidence 0.856'
    assert 't = 1, std 1.00' in texts
    assert 't = 0, 0.3 px' in texts
    assert 't = 1, 16 px' in texts


def test_a_hard_label_says_its_weight():
    figure = draw_small('molly-w-k2')
    texts = captions(figure)
    assert texts[texts.index('t = 0.4, std 0.59') + 1] == 'weight 0.881'  # by hand: 1 - sin(pi .4 / 2)**4
    assert texts[texts.index('t = 0.4, 1.47 px') + 1] == 'weight 0.840'
    axes = figure.axes[-1]
    curves = {line.get_label(): line for line in axes.lines}
    np.testing.assert_allclose(curves['blur'].get_ydata(), 1 - np.linspace(0, 1, 201) ** 2, atol=1e-6)
    assert axes.get_ylabel() == 'weight of the loss'


def test_the_pictures_are_the_degraded_images():
    figure = draw_small('molly')
    pictures = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(pictures) == 2 * 2 * len(TEMPERATURES)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))[0].clamp(0, 1).permute(1, 2, 0)
    np.testing.assert_allclose(pictures[0], x, atol=1e-6)  # first image, noise, t = 0
    np.testing.assert_array_less(np.var(pictures[-1], axis=(0, 1)), 1e-3)  # second image, blur, t = 1


def test_the_schedules_are_drawn():
    axes = draw_small('molly').axes[-1]
    curves = {line.get_label(): line for line in axes.lines}
    t = np.linspace(0, 1, 201)
    np.testing.assert_allclose(curves['noise'].get_ydata(), 1 - np.sin(np.pi * t / 2) ** 2 * 0.9, atol=1e-6)
    np.testing.assert_allclose(curves['blur'].get_ydata(), 1 - t * 0.9, atol=1e-6)


@pytest.mark.parametrize('config', ['molly', 'molly-a100-b100', 'molly-a0.01-b900'])
def test_the_law_of_t_is_drawn_whatever_its_shape(config):
    (area,) = draw_small(config).axes[-1].collections
    heights = area.get_paths()[0].vertices[:, 1]
    assert np.isfinite(heights).all()
    assert heights.max() == pytest.approx(0.3)  # low


def test_only_what_the_roles_ask_for_is_drawn():
    assert not any('px' in text for text in captions(draw_small('molly-mxn')))
    assert not any('std' in text for text in captions(draw_small('molly-mb')))


@pytest.fixture
def rows_of(monkeypatch):
    """What is drawn: the normalised images, and with which mean, std and number of classes."""
    found = {}

    def draw(x, mean, std, config, num_classes, title):
        found.update(
            x=x, mean=mean.tolist(), std=std.tolist(), config=str(config), num_classes=num_classes, title=title
        )
        return Figure()

    monkeypatch.setattr('timm_molly.preview.draw', draw)
    return found


def test_of_a_folder_four_images_are_drawn_of_different_classes(tmp_path, rows_of, capsys):
    for i in range(8):
        (tmp_path / 'data' / f'class{i}').mkdir(parents=True)
        for j in range(3):
            Image.new('RGB', (40, 40), (30 * i, 0, 0)).save(tmp_path / 'data' / f'class{i}' / f'{j}.png')
    (tmp_path / 'data' / 'notes.txt').write_text('no image')
    preview([tmp_path / 'data'], mean=(0.0,), std=(1.0,), img_size=32)
    assert (255 * rows_of['x'][:, 0, 0, 0]).round().tolist() == [0, 60, 120, 180]
    (tmp_path / 'empty').mkdir()
    assert main(['preview', str(tmp_path / 'empty')]) == 2
    assert 'empty holds no images' in capsys.readouterr().err


def test_the_flags_are_train_pys(photo, tmp_path, rows_of, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ['preview', str(photo), '--model', 'preactresnet18.cifar100']
    assert main(command) == 0
    assert (rows_of['x'].shape, rows_of['num_classes']) == ((1, 3, 32, 32), 100)
    np.testing.assert_allclose(rows_of['mean'], [0.5071, 0.4865, 0.4409], atol=1e-4)  # of the data set
    assert main([*command, '--img-size', '24', '--mean', '0.5', '--std', '.1', '.2', '.3', '--num-classes', '7']) == 0
    assert (rows_of['x'].shape, rows_of['num_classes'], rows_of['mean']) == ((1, 3, 24, 24), 7, [0.5] * 3)
    np.testing.assert_allclose(rows_of['std'], [0.1, 0.2, 0.3])
    for flags, words in (
        (['--model', 'resnet5O'], "timm has no model 'resnet5O' (did you mean resnet50?)"),
        (['--model', 'resnet50.nonsense'], "timm has no model 'resnet50.nonsense'"),
        (['--mean', '0', '1'], 'mean and std must be 1 or 3 numbers'),
        (['--std', '0'], 'std above 0'),
    ):
        assert main(['preview', str(photo), *flags]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize('policy', ['rand-m9-mstd0.5-inc1', 'augmix-m3-w3', 'original'])
def test_timms_policy_is_drawn_too_and_the_same_each_time(photo, rows_of, policy):
    drawn = []
    for aa in ('molly', f'molly+{policy}', f'molly+{policy}'):
        preview([photo], aa, 48)
        drawn.append(rows_of['x'])
        assert rows_of['title'] == aa
        np.random.rand(), random.random()
    assert not torch.allclose(drawn[0], drawn[1], atol=0.05)
    assert torch.equal(drawn[1], drawn[2])


def damaged(path, how):
    whole = path.read_bytes()
    path.write_bytes({'truncated': whole[: len(whole) // 2], 'not an image': b'hello' * 100, 'empty': b''}[how])
    return path


@pytest.mark.parametrize('how', ['truncated', 'not an image', 'empty', 'missing'])
def test_an_image_that_cannot_be_read_is_named_in_a_line(photo, tmp_path, capsys, how):
    bad = tmp_path / 'none.png' if how == 'missing' else damaged(photo, how)
    good = tmp_path / 'good.png'
    Image.new('RGB', (40, 40)).save(good)
    before = sorted(tmp_path.iterdir())
    assert main(['preview', str(good), str(bad), '-o', str(tmp_path / 'out.png')]) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    assert error.startswith('timm-molly preview: ')
    assert str(bad) in error
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--aa', 'molly-z3'], "section 'z3'"),
        (['--aa', 'rand-m9'], 'nothing to draw'),
        (['--aa', 'molly-mxe'], 'nothing to draw'),
        (
            ['--aa', 'molly-s99', '--img-size', '32'],
            'is 99 pixels, more than the side, 32',
        ),
        (['--img-size', '0'], 'got 0 and 1000'),
        (['--num-classes', '1'], 'got 224 and 1'),
        (['-o', 'no/folder/out.png'], "no folder 'no/folder'"),
        (['-o', 'out.xyz'], "must be a .png, .pdf or .svg file, got 'out.xyz'"),
    ],
)
def test_bad_options_are_named_in_a_line(photo, tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(['preview', str(photo), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    assert words in error
    assert [path.name for path in tmp_path.iterdir()] == ['photo.jpg']


def test_an_interrupted_write_leaves_the_old_picture(photo, tmp_path, monkeypatch):
    output = tmp_path / 'out.png'
    output.write_text('old')
    monkeypatch.setattr('matplotlib.figure.Figure.savefig', lambda *_: (_ for _ in ()).throw(OSError('disk full')))
    assert main(['preview', str(photo), '-o', str(output)]) == 2
    assert output.read_text() == 'old'
    assert len(list(tmp_path.iterdir())) == 2


def test_without_matplotlib_the_extra_is_named(photo, capsys, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'matplotlib.figure', None)
    assert main(['preview', str(photo)]) == 2
    assert capsys.readouterr().err.startswith('timm-molly preview: drawing needs more: pip install "timm-molly[plot]"')


def test_from_python_it_draws_and_writes_nothing(photo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    figure = preview([photo], img_size=32, num_classes=10)
    assert len([axes for axes in figure.axes if axes.images]) == 2 * len(TEMPERATURES)
    assert [path.name for path in tmp_path.iterdir()] == ['photo.jpg']
    assert capsys.readouterr() == ('', '')
    with pytest.raises(UserError, match='no images to draw'):
        preview([])


def test_a_label_that_is_present_or_absent_keeps_at_least_a_half():
    figure = draw_small('molly-mb', None)
    (schedule,) = [axes for axes in figure.axes if axes.lines]
    assert schedule.get_ylabel() == 'confidence in a label that is present'
    line = schedule.lines[0]
    np.testing.assert_allclose(line.get_ydata(), 1 - line.get_xdata() / 2, atol=1e-6)  # gamma is t


def test_where_it_is_to_go_is_checked_before_anything_is_drawn(photo, monkeypatch):
    monkeypatch.setattr('timm_molly.preview.draw', lambda *_: pytest.fail('drawn'))
    assert main(['preview', str(photo), '-o', 'no/folder/out.png']) == 2
