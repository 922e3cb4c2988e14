import json
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from timm_molly.cli import demo as demo_module
from timm_molly.cli import main


@pytest.mark.slow
def test_it_trains_twice_and_compares(image_folder, tmp_path, capsys, monkeypatch):
    trained = []
    train = demo_module.train

    def spy(loader, *args):
        trained.append((type(loader).__name__, len(loader)))
        return train(loader, *args)

    monkeypatch.setattr(demo_module, 'train', spy)
    arguments = ['demo', '--data-dir', str(image_folder), '--output', str(tmp_path / 'out'), '--epochs', '1']
    assert main([*arguments, '--aa', 'molly-b4']) == 0
    assert trained == [('PrefetchLoader', 1), ('MollyLoader', 1)]
    text = capsys.readouterr().out
    mollified, corrupted = text.split('corrupted on the fly as in cifar-c')
    rows = {re.split(r'\s{2,}', line)[0]: line for line in mollified.splitlines()}
    assert len(re.findall(r'\d+\.\d+', rows['clean'])) == 9  # error, NLL and ECE of both, and the differences
    assert {'noise t=0.1', 'noise t=0.5', 'blur t=0.5'} <= rows.keys()
    assert 'with molly-b4' in text
    assert '3 classes, 48 training and 12 validation images of 32 px, 1 epochs, seed 0' in text
    rows = {re.split(r'\s{2,}', line)[0]: line for line in corrupted.splitlines()}
    for column, name in enumerate(('without-molly', 'with-molly-b4')):
        report = json.loads((tmp_path / 'out' / name / 'report.json').read_text())
        error = report['summary']['mean']['error']
        assert re.split(r'\s{2,}', rows['mean of common'])[1 + column] == f'{100 * error:.1f}'
        assert report['command'].startswith(f'timm-molly validate --checkpoint {tmp_path}')
        state = load_file(tmp_path / 'out' / name / 'model.safetensors')
        assert state['fc.weight'].shape[0] == 3
    for name in ('mollified.png', 'preview.png', 'corrupted.png'):
        with Image.open(tmp_path / 'out' / name) as image:
            assert image.width > 500


def test_the_digits_are_scikit_learns(tmp_path):
    root = demo_module.write_digits(tmp_path / 'digits', 8)
    files = sorted(root.rglob('*.png'))
    assert len(files) == 1797
    assert {path.parent.name for path in files} == {str(digit) for digit in range(10)}
    from sklearn.datasets import load_digits

    data = load_digits()
    for path in files[::200]:
        i = int(path.stem)
        assert path.parent.name == str(data.target[i])
        assert path.parent.parent.name == ('train' if i % 4 else 'validation')
        with Image.open(path) as image:
            np.testing.assert_allclose(np.asarray(image, float) * 16 / 255, data.images[i], atol=0.1)


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--aa', 'rand-m9'], 'has no molly in it'),
        (['--aa', 'molly-z3'], "section 'z3'"),
        (['--aa', 'molly-mxe'], "'molly-mxe' neither noises nor blurs"),
        (['--output', 'file/out'], 'cannot write file/out: Not a directory'),
        (['--data-dir', 'nowhere'], 'nowhere has no folder train'),
        (['--epochs', '0'], 'epochs must be 1 or more, got 0'),
        (['--img-size', '16'], 'cifar-c needs images of 29 pixels or more, got 16'),
        (['--aa', 'molly-s40'], 'is 40 pixels, more than the side of the images, 32'),
        (['--aa', 'molly+nonsense'], "timm has no policy 'nonsense', which 'molly+nonsense' names"),
    ],
)
def test_bad_options_are_named_in_a_line_before_training(tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').touch()
    monkeypatch.setattr(demo_module, 'train', lambda *_: pytest.fail('trained'))
    assert main(['demo', *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    assert words in error


def test_images_of_ones_own_need_no_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'sklearn', None)
    assert main(['demo', '--data-dir', str(tmp_path / 'missing'), '--output', str(tmp_path / 'out')]) == 2
    assert 'needs more' not in capsys.readouterr().err


@pytest.mark.parametrize('package', ['matplotlib', 'sklearn', 'tqdm'])
def test_a_missing_package_is_named_before_anything_is_written(tmp_path, capsys, monkeypatch, package):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(['demo']) == 2
    assert 'the demo needs more: pip install "timm-molly[demo]" (' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_class_folders_that_differ_are_named_before_training(image_folder, tmp_path, capsys):
    root = shutil.copytree(image_folder, tmp_path / 'data')
    (root / 'validation' / 'dots').rename(root / 'validation' / 'spots')
    assert main(['demo', '--data-dir', str(root), '--output', str(tmp_path / 'out')]) == 2
    assert 'train/ lacks the class spots, which validation/ has' in capsys.readouterr().err


def test_a_folder_without_images_is_named(tmp_path, capsys):
    (tmp_path / 'train' / 'a').mkdir(parents=True)
    assert main(['demo', '--data-dir', str(tmp_path), '--output', str(tmp_path / 'out')]) == 2
    assert 'Found 0 images' in capsys.readouterr().err
