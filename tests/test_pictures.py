import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from timm_molly.cli import main
from timm_molly.pictures import eight_bits, is_16_bit
from timm_molly.robustness.images import open_dataset


@given(hnp.arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9))), st.sampled_from(['L', 'RGB']))
def test_16_bits_are_scaled(values, mode):
    image = Image.fromarray(values)
    assert is_16_bit(image)
    found = np.asarray(eight_bits(image, mode)).astype(float)
    wanted = values / 65535 * 255
    assert np.abs(found.reshape(*values.shape, -1) - wanted[..., None]).max() <= 0.5


@given(hnp.arrays(np.uint8, (4, 5, 3)))
def test_8_bits_stay_as_they_are(values):
    assert np.array_equal(np.asarray(eight_bits(Image.fromarray(values), 'RGB')), values)


@pytest.mark.parametrize('values', [np.full((2, 2), 0.5, np.float32), np.full((2, 2), 70000, np.int32)])
def test_values_without_a_white_are_refused(values):
    with pytest.raises(ValueError, match='save it with 8 or 16 bits'):
        eight_bits(Image.fromarray(values), 'L')


@pytest.fixture
def sixteen(image_folder, tmp_path):
    """The validation images in 16 bits of grey."""
    for path in (image_folder / 'validation').rglob('*.png'):
        to = tmp_path / 'data' / path.relative_to(image_folder)
        to.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(Image.open(path).convert('L')).astype(np.uint16) * 257).save(to)
    return tmp_path / 'data'


def test_png_files_of_16_bits_are_measured_as_those_of_8(image_folder, sixteen):
    options = {'name': '', 'split': 'validation', 'is_training': False}
    ours, theirs = (open_dataset('L', root=str(root), **options) for root in (sixteen, image_folder))
    assert ours.has_16_bits
    assert not theirs.has_16_bits
    for i in range(len(theirs)):
        assert np.array_equal(np.asarray(ours[i][0]), np.asarray(theirs[i][0]))


def test_they_are_said_to_be_scaled_and_drawn_in_grey(sixteen, tmp_path, capsys):
    command = ['validate', '--data-dir', sixteen, '--model', 'test_resnet', '--corruptions', 'contrast', '-j', 0]
    weights = tmp_path / 'a.pth'
    torch.save(timm.create_model('test_resnet', num_classes=3).state_dict(), weights)
    command += ['--num-classes', 3, '--checkpoint', weights, '--img-size', 32, '--severities', 1]
    assert main([*map(str, command), '-o', str(tmp_path / 'out')]) == 0
    assert "note: 16-bit grey images are scaled to 8 bits here. timm's own training" in capsys.readouterr().err
    picture = next(sixteen.rglob('*.png'))
    assert main(['preview', str(picture), '-o', str(tmp_path / 'p.png')]) == 0
