"""`timm-molly validate` end to end: against an independent computation, interrupted, and on bad input."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import corruptions as C
from support.measured import MEAN, STD, validation_images
from support.metrics import independent

from timm_molly import Classifier, training
from timm_molly.cli import main
from timm_molly.robustness import Calibration
from timm_molly.robustness import evaluate as evaluate_module
from timm_molly.robustness.conditions import TEMPERATURES
from timm_molly.robustness.corruptions import transforms
from timm_molly.robustness.images import folder_name
from timm_molly.robustness.report import METRICS
from timm_molly.weights import read_checkpoint

BRIGHT = 1.3


def run(*arguments, output):
    assert main(['validate', *map(str, arguments), '-o', str(output)]) == 0
    return json.loads((output / 'report.json').read_text())


def refused(capsys, *arguments, words, command='validate'):
    assert main([command, *map(str, arguments)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f'timm-molly {command}: ')
    assert words in error
    return error


def load(checkpoint, key='state_dict'):
    state = torch.load(checkpoint, weights_only=False)[key]
    model = timm.create_model('test_resnet', num_classes=3)
    model.load_state_dict({name.removeprefix('module.'): value for name, value in state.items()})
    return model.eval()


@torch.inference_mode()
def logits_of(model, images):
    """One image at a time, normalised in float64."""
    rows = []
    for image in images:
        x = (np.asarray(image, np.float64) / 255 - MEAN) / STD
        rows.append(model(torch.from_numpy(x).float().permute(2, 0, 1)[None])[0].numpy())
    return np.array(rows)


def test_the_report_is_an_independent_computation_in_numpy(flags, checkpoint, image_folder, tmp_path):
    images, labels = validation_images(image_folder)
    report = run(*flags, '--corruptions', 'all', '--seed', 7, output=tmp_path / 'out')
    model = load(checkpoint)

    def check(cell, logits):
        for name, value in independent(logits, labels).items():
            assert cell[name] == pytest.approx(value, abs=1e-6), name
        return {name: cell[name] for name in METRICS}

    check(report['clean'], logits_of(model, images))
    cells = {}
    for name in (*C.COMMON, *C.HELD_OUT):
        for s in C.SEVERITIES:
            corrupted = [C.corrupt(image, name, s, 'cifar-c', i, 7) for i, image in enumerate(images)]
            cells[name, s] = check(report['cells'][name][str(s)], logits_of(model, corrupted))
    summary = report['summary']
    for metric in METRICS:
        by_name = {name: np.mean([cells[name, s][metric] for s in C.SEVERITIES]) for name in (*C.COMMON, *C.HELD_OUT)}
        for name, value in by_name.items():
            assert summary['corruptions'][name][metric] == pytest.approx(value, abs=1e-9)
        for group, names in C.GROUPS.items():
            assert summary['groups'][group][metric] == pytest.approx(np.mean([by_name[n] for n in names]), abs=1e-9)
        assert summary['mean'][metric] == pytest.approx(np.mean([by_name[n] for n in C.COMMON]), abs=1e-9)
    assert 'mCE' not in summary  # AlexNet's errors are those of ImageNet's classes
    assert report['benchmark']['table'] == 'cifar-c'
    assert report['model']['aa'] == 'molly-b4+rand-m9'


def test_clean_error_is_that_of_timms_loader(flags, checkpoint, image_folder, tmp_path):
    from timm.data import create_dataset, create_loader
    from timm.utils import accuracy

    report = run(*flags, '--corruptions', 'fog', '--severities', 1, output=tmp_path / 'out')
    loader = create_loader(
        create_dataset('', root=str(image_folder), split='validation'),
        (3, 32, 32),
        5,
        mean=MEAN,
        std=STD,
        interpolation=report['model']['interpolation'],
        crop_pct=report['model']['crop_pct'],
        num_workers=0,
        persistent_workers=False,
        device=torch.device('cpu'),
    )
    with torch.inference_mode():
        correct = sum(accuracy(load(checkpoint)(x), y)[0].item() * len(y) for x, y in loader)
    assert 100 * report['clean']['error'] == pytest.approx(100 - correct / 12, abs=1e-9)


@pytest.mark.skipif('TIMM_TRAIN_SCRIPT' not in os.environ, reason="TIMM_TRAIN_SCRIPT names no copy of timm's scripts")
@pytest.mark.parametrize('ema', [False, True])
def test_clean_error_is_that_of_timms_validate_script(flags, tmp_path, ema):
    script = Path(os.environ['TIMM_TRAIN_SCRIPT']).with_name('validate.py')
    extra = ['--use-ema'] * ema
    done = subprocess.run(
        [sys.executable, script, *flags, *extra, '--device', 'cpu', '-j', '1'],
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = json.loads(done.stdout.split('--result')[1])
    report = run(*flags, *extra, '--corruptions', 'fog', '--severities', 1, output=tmp_path / 'out')
    assert round(100 * report['clean']['error'], 4) == theirs['top1_err']


def test_ema_weights_are_the_others(flags, checkpoint, image_folder, tmp_path):
    images, labels = validation_images(image_folder)
    report = run(*flags, '--use-ema', '--corruptions', 'fog', output=tmp_path / 'out')
    wanted = independent(logits_of(load(checkpoint, 'state_dict_ema'), images), labels)
    assert report['clean']['nll'] == pytest.approx(wanted['nll'], abs=1e-5)


def test_a_training_is_measured_with_the_weights_that_load_takes(flags, checkpoint, tmp_path, capsys):
    chosen = ['--corruptions', 'fog', '--severities', 1]
    raw = run(*flags, *chosen, output=tmp_path / 'raw')['model']
    assert 'EMA weights' not in capsys.readouterr().err
    averaged = run(checkpoint, *without_checkpoint(flags), *chosen, output=tmp_path / 'averaged')['model']
    assert (raw['ema'], averaged['ema']) == (False, True)
    assert f'as in the training of {checkpoint}, EMA weights: ' in capsys.readouterr().err
    taken = Classifier.from_run(checkpoint, 'test_resnet', num_classes=3)  # as load and push do
    assert averaged['sha256'] == taken.sha256 != raw['sha256']


def test_a_quicker_report_in_the_place_of_a_longer_says_so(flags, tmp_path, capsys):
    chosen = ['--corruptions', 'fog', '--severities']
    run(*flags, *chosen, 1, 3, output=tmp_path / 'out')
    assert 'a longer report was there' not in capsys.readouterr().out
    run(*flags, *chosen, 1, 3, output=tmp_path / 'out')
    assert 'a longer report was there' not in capsys.readouterr().out  # as long
    run(*flags, *chosen, 3, output=tmp_path / 'out')
    assert 'a longer report was there' in capsys.readouterr().out
    run(*flags, *chosen, 1, output=tmp_path / 'out')
    assert 'a longer report was there' not in capsys.readouterr().out


def test_workers_change_no_figure(flags, tmp_path):
    arguments = [*flags, '--corruptions', 'glass_blur', 'fog', 'frost', '--severities', 5, 1]
    alone, helped = (run(*arguments, '-j', workers, output=tmp_path / workers) for workers in ('0', '2'))
    for name, levels in alone['cells'].items():
        for severity, cell in levels.items():
            for metric in METRICS:  # the model's threads differ, and with them its last bits
                assert helped['cells'][name][severity][metric] == pytest.approx(cell[metric], abs=1e-6)


def test_an_interrupted_run_goes_on_and_ends_in_the_same_report(flags, tmp_path, monkeypatch, capsys):
    arguments = [*flags, '--corruptions', 'noise', 'contrast']
    run(*arguments, output=tmp_path / 'whole')

    update, batches = Calibration.update, []

    def interrupted(self, *batch):
        if len(batches) == 20:
            raise KeyboardInterrupt
        batches.append(1)
        update(self, *batch)

    with monkeypatch.context() as context:
        context.setattr(Calibration, 'update', interrupted)
        assert main(['validate', *arguments, '-o', str(tmp_path / 'cut')]) == 130
    assert 'the same command goes on' in capsys.readouterr().err
    on_disk = {path.name for path in (tmp_path / 'cut' / 'cells').iterdir()}
    assert on_disk == {'clean.json', *(f'gaussian_noise-{s}.json' for s in (1, 2, 3, 4, 5))}
    assert not (tmp_path / 'cut' / 'report.json').exists()

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'cut' / 'cells').iterdir()}
    run(*arguments, output=tmp_path / 'cut')
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for name in ('report.json', 'report.csv', 'report.md'):
        cut = (tmp_path / 'cut' / name).read_text().replace(str(tmp_path / 'cut'), str(tmp_path / 'whole'))
        assert cut == (tmp_path / 'whole' / name).read_text()


def test_a_folder_of_another_run_is_left_alone(flags, tmp_path, capsys):
    arguments = [*flags, '--corruptions', 'fog', '-o', str(tmp_path)]
    assert main(['validate', *arguments]) == 0
    before = (tmp_path / 'report.json').read_bytes()
    refused(
        capsys,
        *arguments,
        '--seed',
        1,
        words='holds another measurement (there and now: benchmark.seed: 42, 1): delete it, or choose another --output',
    )
    refused(capsys, *arguments, '--use-ema', words='model.sha256')
    assert (tmp_path / 'report.json').read_bytes() == before


def test_a_model_that_gives_nan_is_named_and_not_averaged(flags, tmp_path, monkeypatch, capsys):
    def broken(*args, **kwargs):
        """Not a number for pictures that are bright on the whole."""
        model = create(*args, **kwargs)
        forward = model.forward
        model.forward = lambda x: forward(x) + torch.where(x.mean((1, 2, 3)) > BRIGHT, torch.nan, 0.0)[:, None]
        return model

    create = timm.create_model
    monkeypatch.setattr(timm, 'create_model', broken)
    report = run(*flags, '--corruptions', 'brightness', 'contrast', output=tmp_path)
    assert report['not_finite'] == ['brightness 4', 'brightness 5']
    assert report['cells']['brightness']['5']['error'] is None
    assert report['cells']['brightness']['5']['not_finite'] > 0
    assert report['cells']['brightness']['1']['error'] is not None
    assert report['summary']['corruptions']['brightness']['error'] is None
    assert report['summary']['groups']['weather']['error'] is None
    assert report['summary']['mean']['error'] is None
    assert report['summary']['groups']['digital']['error'] is not None
    text = capsys.readouterr().out
    assert 'NOT A NUMBER: the model gave logits that are not finite in brightness 4, brightness 5' in text
    assert json.dumps(report) == json.dumps(report, allow_nan=False)


def test_mollification_is_measured_as_training_makes_it(flags, checkpoint, image_folder, tmp_path):
    from timm_molly.functional import blur, noise

    images, labels = validation_images(image_folder)
    x = torch.stack([torch.from_numpy((np.asarray(i, float) / 255 - MEAN) / STD).permute(2, 0, 1) for i in images])
    x = x.float()
    eps = torch.stack(
        [torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(5 * 2**32 + i)) for i in range(12)]
    )
    report = run(*flags, '--mollification', '--aa', 'molly-kn3', '--seed', 5, output=tmp_path)
    model = load(checkpoint)
    assert list(report['cells']) == ['noise', 'blur']
    for t in (TEMPERATURES[0], 0.5, 1.0):
        at = torch.full((12,), t)
        for name, mollified in (('noise', noise(x, at, eps)), ('blur', blur(x, at))):
            with torch.inference_mode():
                wanted = independent(model(mollified), labels)
            for metric, value in wanted.items():
                assert report['cells'][name][f'{t:g}'][metric] == pytest.approx(value, abs=1e-4)
        assert report['taught']['noise'][f'{t:g}'] == pytest.approx(1 - np.sin(np.pi * t / 2) ** 6 * 2 / 3)
        assert report['taught']['blur'][f'{t:g}'] == pytest.approx(1 - t * 2 / 3)


def test_the_label_schedule_shown_is_the_one_of_the_training(flags, tmp_path, capsys):
    report = run(*flags, '--mollification', output=tmp_path)
    assert report['benchmark']['taught'] == 'molly-b4'
    said = 'taught: the confidence of the labels of molly-b4 at that t, less for label smoothing if there was any'
    assert f'\n{said}\n' in capsys.readouterr().out


def cifar_c(root, images=12, names=C.COMMON):
    root.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for name in names:
        np.save(root / f'{name}.npy', rng.integers(0, 256, (5 * images, 32, 32, 3), dtype=np.uint8))
    np.save(root / 'labels.npy', np.tile(np.arange(images) % 3, 5).astype(np.uint8))
    return root


def test_cifar_c_arrays_are_read_severity_by_severity(flags, checkpoint, tmp_path):
    root = cifar_c(tmp_path / 'CIFAR-10-C')
    report = run(*flags[2:], '--corrupted-dir', root, output=tmp_path / 'out')
    assert report['clean'] is None
    model, labels = load(checkpoint), np.arange(12) % 3
    array = np.load(root / 'fog.npy')
    for s in C.SEVERITIES:
        wanted = independent(logits_of(model, array[(s - 1) * 12 : s * 12]), labels)
        for metric, value in wanted.items():
            assert report['cells']['fog'][str(s)][metric] == pytest.approx(value, abs=1e-6)


def imagenet_c(root, image_folder, names, severities=C.SEVERITIES):
    for name in names:
        for s in severities:
            for path in sorted((image_folder / 'validation').rglob('*.png')):
                to = root / name / str(s) / path.parent.name / f'{path.stem}.png'
                to.parent.mkdir(parents=True, exist_ok=True)
                image = Image.open(path).convert('RGB').resize((32, 32))
                C.corrupt(image, name, s, 'cifar-c', int(path.stem)).save(to)
    return root


def test_folders_are_read_uncropped_and_beside_the_clean_set(flags, checkpoint, image_folder, tmp_path):
    root = imagenet_c(tmp_path / 'Tiny-ImageNet-C', image_folder, ('contrast', 'fog'))
    report = run(*flags, '--corrupted-dir', root, '--corruptions', 'fog', 'contrast', output=tmp_path / 'out')
    assert report['clean']['images'] == 12
    model = load(checkpoint)
    for name, s in (('fog', 2), ('contrast', 5)):
        paths = sorted((root / name / str(s)).rglob('*.png'))
        wanted = independent(logits_of(model, [Image.open(path) for path in paths]), np.arange(12) // 4)
        for metric, value in wanted.items():
            assert report['cells'][name][str(s)][metric] == pytest.approx(value, abs=1e-6)


def test_cifar_10_c_bar_arrays_have_a_mean_of_their_own(flags, tmp_path, capsys):
    root = cifar_c(tmp_path / 'CIFAR-10-C-Bar', names=C.BAR_OF['cifar-c'])
    report = run(*flags[2:], '--corrupted-dir', root, '--corruptions', 'bar', output=tmp_path / 'out')
    assert {*report['cells']} == {*C.BAR_OF['cifar-c']}
    errors = [cell['error'] for of in report['cells'].values() for cell in of.values()]
    assert report['summary']['bar']['error'] == pytest.approx(np.mean(errors))
    assert report['summary']['mean']['error'] is None
    assert 'mean of C-bar  ' in capsys.readouterr().out
    refused(
        capsys,
        *(*flags[2:], '--corrupted-dir', root, '--corruptions', 'plasma_noise'),
        words='cifar-c has no strengths of plasma_noise; of C-bar it has blue_noise_sample',
    )


def test_imagenet_c_bar_folders_are_named_after_their_strengths(flags, image_folder, tmp_path, capsys):
    root = tmp_path / 'ImageNet-C-Bar'
    for strength in ('4.60', '5.20', '5.80', '7.60', '8.80'):
        shutil.copytree(image_folder / 'validation', root / 'perlin_noise' / strength)
    arguments = [*flags, '--corrupted-dir', root, '--corruptions', 'perlin_noise', '--crop-pct', '0.95']
    report = run(*arguments, output=tmp_path / 'out')
    assert [*report['cells']['perlin_noise']] == ['1', '2', '3', '4', '5']
    assert report['summary']['bar']['nll'] == pytest.approx(report['clean']['nll'])  # the same pictures
    shutil.rmtree(root / 'perlin_noise' / '5.80')
    refused(capsys, *arguments, words=f'{root} lacks perlin_noise/5.80; --corruptions and --severities name those to')


def test_common_and_bar_are_measured_in_one_run_and_not_averaged(flags, tmp_path, capsys):
    choice = ['--corruptions', 'fog', 'bar', '--severities', '1', '2']
    report = run(*flags, *choice, output=tmp_path / 'out')
    assert report['summary']['mean'] == report['summary']['corruptions']['fog']
    bar = [report['summary']['corruptions'][name]['error'] for name in C.BAR_OF['cifar-c']]
    assert report['summary']['bar']['error'] == pytest.approx(np.mean(bar))
    assert 'corrupted on the fly as in cifar-c and cifar-10-c-bar' in capsys.readouterr().out
    assert {path.name for path in (tmp_path / 'out').glob('*.png')} == {
        f'{name}.png' for name in ('error-by-severity', 'heat-map', 'reliability')
    }


@pytest.mark.parametrize(
    ('extra', 'words'),
    [
        (['--data-dir', 'nowhere'], 'no such folder: nowhere'),
        (['--data-dir', 'x', '--dataset', 'torch/nonsense'], "timm cannot open 'torch/nonsense'"),
        (['--checkpoint', 'nowhere.pth'], 'no such folder or checkpoint: nowhere.pth'),
        (['--checkpoint', 'resnet50'], 'For the model of timm give --model resnet50'),
        (['--model', 'resnet_18'], "timm cannot create 'resnet_18'"),
        (['--model', 'test_vit'], 'model_best.pth.tar does not fit test_vit'),
        (['--img-size', '32', '--table', 'imagenet-c'], 'imagenet-c needs images of 41 pixels or more, got 32'),
        (['--corruptions', 'rain'], "no corruption 'rain'; there are common, held-out"),
        (['--corruptions', 'fogs'], "no corruption 'fogs' (did you mean fog?)"),
        (['--corrupted-dir', 'nowhere'], 'no such folder: nowhere'),
        (['--corrupted-dir', '.', '--table', 'cifar-c'], 'leave --table and --mollification out'),
        (['a/run'], 'a/run and --checkpoint'),
        (['--pretrained'], '--pretrained and a checkpoint both name weights'),
        (['--device', 'abacus'], 'device abacus cannot be used'),
        (['-b', '0'], 'batch_size must be 1 or more, got 0'),
        (['-j', '-1'], 'workers must be 0 or more, got -1'),
        (['--seed', '-1'], 'seed must be 0 or more, got -1'),
        (['--seed', str(2**40)], 'seed must be below 2**31'),
        (['--mean', '.5', '.5'], 'mean needs 1 or 3 numbers, one a channel, got 2'),
        (['--crop-pct', '0'], 'crop_pct must be above 0, got 0.0'),
        (['--input-size', '4', '32', '32'], 'images have 1 or 3 channels, got 4 (input_size)'),
        (['--model-kwargs', 'nonsense'], "--model-kwargs takes key=value, got 'nonsense'"),
        (['--split', 'test'], "has no split 'test', it has train, validation"),
        (['--mollification', '--table', 'cifar-c'], 'leave --table, --corruptions and --severities out'),
        (['--mollification', '--aa', 'rand-m9'], "'rand-m9' has no molly in it"),
        (['--mollification', '--aa', 'molly-mx'], 'neither noises nor blurs'),
        (['--mollification', '--aa', 'molly-s99'], 'is 99 pixels, more than the side, 32'),
    ],
)
def test_bad_flags_are_named_before_the_model_runs(flags, extra, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate_module, 'measure', lambda *_: pytest.fail('ran'))
    monkeypatch.chdir(tmp_path)
    refused(capsys, *flags, *extra, words=words)
    assert list(tmp_path.iterdir()) == []


def test_no_data_at_all_is_named(capsys):
    refused(capsys, '--model', 'test_resnet', words='no data: give --data-dir, or --corrupted-dir')


def test_class_folders_that_are_not_the_models_are_named(flags, image_folder, tmp_path, capsys):
    root = shutil.copytree(image_folder, tmp_path / 'data')
    (root / 'validation' / 'dots').rename(root / 'validation' / 'a new class')
    shutil.copytree(root / 'validation' / 'stripes', root / 'validation' / 'more stripes')
    said = 'has 4 class folders, but test_resnet has 3 classes'
    refused(capsys, *flags, '--data-dir', root, words=f'{said}; it lacks dots, which train has')
    shutil.rmtree(root / 'train')
    refused(capsys, *flags, '--data-dir', root, words=f'{said} (train it with --num-classes 4, or give --class-map')


def test_label_names_of_the_model_in_another_order_are_named(flags, image_folder, tmp_path, capsys, monkeypatch):
    names: list[str] = []
    monkeypatch.setattr(training, 'label_names', lambda *_: list(names))
    names[:] = 'stripes', 'dots', 'circles'
    refused(capsys, *flags, '-o', tmp_path / 'o', words='they differ in their order')
    names[:] = 'circles', 'spots', 'stripes'
    refused(
        capsys, *flags, '-o', tmp_path / 'o', words='they differ in dots, spots. Name them as in the training, or give'
    )
    names[:] = 'circles', 'dots', 'stripes'
    run(*flags, '--corruptions', 'fog', output=tmp_path / 'out')


def test_what_an_official_set_lacks_is_named(flags, image_folder, tmp_path, capsys):
    arguments = [*flags[2:], '-o', str(tmp_path / 'out'), '--corrupted-dir']
    root = cifar_c(tmp_path / 'c')
    (root / 'fog.npy').unlink()
    (root / 'snow.npy').unlink()
    refused(capsys, *arguments, root, words='lacks snow.npy, fog.npy; --corruptions names those')
    (root / 'labels.npy').unlink()
    refused(capsys, *arguments, root, '--corruptions', 'frost', words='lacks labels.npy')
    folders = imagenet_c(tmp_path / 'folders', image_folder, ('fog', 'snow'))
    shutil.rmtree(folders / 'fog' / '3')
    chosen = ['--corruptions', 'fog', 'snow']
    refused(capsys, *arguments, folders, *chosen, words=f'lacks {Path("fog/3")}; --corruptions and --severities')
    refused(capsys, *arguments, tmp_path, words='has neither folders such as')
    shutil.copytree(folders / 'fog' / '2', folders / 'fog' / '3')
    (folders / 'fog' / '3' / 'dots').rename(folders / 'fog' / '3' / 'spots')
    refused(capsys, *arguments, folders, *chosen, words='the files of snow 1 and fog 3 differ in dots/00.png, dots/01')
    (folders / 'fog' / '3' / 'spots').rename(folders / 'fog' / '3' / 'dots')
    (folders / 'fog' / '3' / 'dots' / '00.png').unlink()
    refused(capsys, *arguments, folders, *chosen, words='the files of snow 1 and fog 3 differ in dots/00.png')
    refused(capsys, '--data-dir', folders, *flags[2:], words='is a set of corrupted images: give it as --corrupted-dir')


@pytest.mark.parametrize(
    ('name', 'array', 'words'),
    [
        ('fog', np.zeros((60, 32, 32), np.uint8), 'must be uint8 (N, H, W, 3), got uint8 (60, 32, 32)'),
        ('fog', np.zeros((60, 32, 32, 3), np.float32), 'must be uint8 (N, H, W, 3), got float32'),
        ('fog', np.zeros((50, 32, 32, 3), np.uint8), 'fog.npy has 50 images, but labels.npy has 60 labels'),
        ('labels', np.zeros(59, np.uint8), 'must hold a label for each image of five severities, got uint8 (59,)'),
        ('labels', np.tile(np.arange(12) % 8, 5), 'has labels 0 to 7, but the model has 3 classes'),
        ('labels', np.tile(np.arange(12) % 2, 5), 'has labels 0 to 1, but the model has 3 classes'),
        ('labels', np.arange(60) % 7 % 3, 'has other labels for one severity than for another'),
        ('labels', np.zeros(60), 'got float64 (60,)'),
        ('fog', np.array([{}] * 60), 'fog.npy is not a NumPy array that can be read'),
    ],
)
def test_wrong_arrays_are_named(flags, tmp_path, capsys, monkeypatch, name, array, words):
    monkeypatch.setattr(evaluate_module, 'measure', lambda *_: pytest.fail('ran'))
    root = cifar_c(tmp_path / 'c')
    np.save(root / f'{name}.npy', array)
    refused(capsys, *flags[2:], '-o', tmp_path / 'out', '--corrupted-dir', root, words=words)


def test_an_array_cut_short_is_named(flags, tmp_path, capsys):
    root = cifar_c(tmp_path / 'c')
    data = (root / 'fog.npy').read_bytes()
    (root / 'fog.npy').write_bytes(data[: len(data) // 2])
    refused(capsys, *flags[2:], '-o', tmp_path / 'out', '--corrupted-dir', root, words='fog.npy is not a NumPy array')


@pytest.mark.parametrize('workers', ['0', '2'])
def test_an_image_that_cannot_be_read_is_named(flags, image_folder, tmp_path, capsys, workers):
    root = shutil.copytree(image_folder, tmp_path / 'data')
    path = root / 'validation' / 'dots' / '02.png'
    path.write_bytes(path.read_bytes()[:200])
    arguments = [*flags, '--data-dir', root, '-o', tmp_path / 'out', '-j', workers]
    refused(capsys, *arguments, words=f'cannot read {path} as an image: ')


class Trap:
    def __reduce__(self):
        return (os.system, ('touch trapped',))


def test_a_checkpoint_that_needs_code_is_refused_and_its_code_not_run(flags, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = timm.create_model('test_resnet', num_classes=3).state_dict()
    torch.save({'state_dict': state, 'extra': Trap()}, 'trap.pth')
    arguments = [*flags, '--checkpoint', 'trap.pth', '--corruptions', 'fog', '-o', 'out']
    refused(capsys, *arguments, words='trap.pth needs pickled code to load')
    assert not Path('trapped').exists()
    assert not Path('out').exists()
    assert main(['validate', *map(str, arguments), '--trust-pickle']) == 0
    assert Path('trapped').exists()


@pytest.mark.parametrize('name', ['random.pth', 'random.safetensors'])
def test_a_file_that_is_no_checkpoint_is_named(flags, tmp_path, capsys, name):
    (tmp_path / name).write_bytes(np.random.default_rng(0).bytes(500))
    refused(capsys, *flags, '--checkpoint', tmp_path / name, words='that can be read')


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_bytes_that_are_no_checkpoint_are_a_value_error(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'c.pth'
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r'c\.pth'):
            read_checkpoint(path, use_ema=False)


@pytest.mark.parametrize('share', [0.1, 0.5, 0.9, 0.999])
def test_a_checkpoint_cut_short_is_named(flags, checkpoint, tmp_path, capsys, share):
    data = checkpoint.read_bytes()
    (tmp_path / 'cut.pth').write_bytes(data[: int(share * len(data))])
    refused(capsys, *flags, '--checkpoint', tmp_path / 'cut.pth', words='cut.pth is not a checkpoint that can be read')


def test_weights_without_ema_are_not_taken_for_ema(flags, tmp_path, capsys):
    torch.save({'state_dict': timm.create_model('test_resnet', num_classes=3).state_dict()}, tmp_path / 'c.pth')
    refused(capsys, *flags, '--checkpoint', tmp_path / 'c.pth', '--use-ema', words='has no EMA weights')


def test_safetensors_and_local_dir_give_the_same_as_the_checkpoint(flags, checkpoint, tmp_path):
    from safetensors.torch import save_file

    save_for_hf = getattr(timm.models, 'save_for_hf', None)
    if save_for_hf is None:
        pytest.skip('this timm cannot write local-dir: models beside this huggingface_hub')
    model = load(checkpoint)
    save_file(model.state_dict(), tmp_path / 'weights.safetensors')
    save_for_hf(model, tmp_path / 'hub')
    chosen = ['--corruptions', 'fog', '--severities', '3']
    a = run(*flags, *chosen, output=tmp_path / 'a')
    b = run(*flags, *chosen, '--checkpoint', tmp_path / 'weights.safetensors', output=tmp_path / 'b')
    c = run(*without_checkpoint(flags), *chosen, '--model', f'local-dir:{tmp_path / "hub"}', output=tmp_path / 'c')
    assert a['cells'] == b['cells'] == c['cells']
    assert a['model']['sha256'] == b['model']['sha256'] == c['model']['sha256']


def test_pickled_weights_of_a_local_model_are_refused(flags, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('hub').mkdir()
    config = {'architecture': 'test_resnet', 'num_classes': 3, 'pretrained_cfg': {}}
    Path('hub/config.json').write_text(json.dumps(config))
    torch.save({**timm.create_model('test_resnet', num_classes=3).state_dict(), 'x': Trap()}, 'hub/pytorch_model.bin')
    if not hasattr(timm.models, 'save_for_hf'):
        pytest.skip('this timm cannot read local-dir: models beside this huggingface_hub')
    refused(capsys, *without_checkpoint(flags), '--model', 'local-dir:hub', words='--trust-pickle')
    assert not Path('trapped').exists()


def without_checkpoint(flags):
    return [f for i, f in enumerate(flags) if '--checkpoint' not in (f, flags[i - 1])]


@pytest.mark.parametrize('content', [{1: torch.zeros(2)}, {'state_dict': [1, 2]}, [1, 2]])
def test_a_checkpoint_without_weights_by_name_is_named(flags, tmp_path, capsys, content):
    torch.save(content, tmp_path / 'c.pth')
    refused(capsys, *flags, '--checkpoint', tmp_path / 'c.pth', words='c.pth holds no weights by name')


def test_a_model_that_timm_does_not_have_is_named_with_the_nearest(image_folder, capsys):
    said = "timm cannot create 'resnt18': Unknown model (resnt18) (did you mean resnet18?)"
    refused(capsys, '--model', 'resnt18', '--data-dir', image_folder, words=said)


def test_a_model_that_cannot_take_the_size_is_named_before_anything_is_written(flags, tmp_path, capsys):
    model = timm.create_model('vit_tiny_patch16_224', num_classes=3)
    torch.save(model.state_dict(), tmp_path / 'vit.pth')
    arguments = [
        *flags,
        '--model',
        'vit_tiny_patch16_224',
        '--checkpoint',
        tmp_path / 'vit.pth',
        '-o',
        tmp_path / 'out',
    ]
    refused(capsys, *arguments, words='vit_tiny_patch16_224 cannot take images of 3 x 32 x 32')
    assert not (tmp_path / 'out').exists()
    small = timm.create_model('vit_tiny_patch16_224', num_classes=3, img_size=32)
    torch.save(small.state_dict(), tmp_path / 'vit.pth')
    assert main(['validate', *map(str, arguments), '--model-kwargs', 'img_size=32', '--corruptions', 'fog']) == 0


def part_of(root, to, names):
    for name in names:
        shutil.copytree(root / name, to / name)
    return to


def test_a_class_map_holds_for_clean_and_official_images(flags, checkpoint, image_folder, tmp_path):
    """The last two of three classes alone, which without the map would be taken for the first two."""
    names = ('dots', 'stripes')
    clean = part_of(image_folder / 'validation', tmp_path / 'data' / 'validation', names).parent
    official = imagenet_c(tmp_path / 'official', clean, ('contrast',))
    (tmp_path / 'map.txt').write_text('circles\ndots\nstripes\n')
    arguments = [*flags, '--data-dir', clean, '--corrupted-dir', official, '--corruptions', 'contrast']
    report = run(*arguments, '--class-map', tmp_path / 'map.txt', output=tmp_path / 'out')
    model = load(checkpoint)
    paths = sorted((official / 'contrast' / '1').rglob('*.png'))
    wanted = independent(logits_of(model, [Image.open(path) for path in paths]), 1 + np.arange(8) // 4)
    assert report['cells']['contrast']['1']['nll'] == pytest.approx(wanted['nll'], abs=1e-6)
    whole, labels = validation_images(image_folder)
    wanted = independent(logits_of(model, whole[4:]), labels[4:])
    assert report['clean']['nll'] == pytest.approx(wanted['nll'], abs=1e-6)


def test_clean_and_corrupted_images_of_different_classes_are_named(flags, image_folder, tmp_path, capsys):
    official = imagenet_c(tmp_path / 'official', image_folder, ('fog',))
    for severity in official.joinpath('fog').iterdir():
        (severity / 'dots').rename(severity / 'spots')
    arguments = [*flags, '--corrupted-dir', official, '--corruptions', 'fog', '-o', tmp_path / 'out']
    refused(capsys, *arguments, words='the class folders of the clean and the corrupted images differ in dots, spots')


def test_the_crop_of_an_official_set_is_recorded_and_tells_runs_apart(flags, image_folder, tmp_path, capsys):
    official = imagenet_c(tmp_path / 'official', image_folder, ('fog',))
    arguments = [*flags[2:], '--corrupted-dir', official, '--corruptions', 'fog']
    report = run(*arguments, output=tmp_path / 'out')
    assert report['benchmark']['crop_pct'] == 1.0
    assert 'crop 1' in capsys.readouterr().out
    arguments += ['-o', tmp_path / 'out']
    refused(capsys, *arguments, '--crop-pct', '0.8', words='benchmark.crop_pct: 1.0, 0.8')


@pytest.mark.parametrize(
    ('path', 'name'), [('.', 'photos'), ('..', 'images'), ('link/', 'link'), ('there/../link', 'link')]
)
def test_images_are_named_as_their_folder_was(path, name, tmp_path, monkeypatch):
    (tmp_path / 'images' / 'photos').mkdir(parents=True)
    (tmp_path / 'images' / 'photos' / 'link').symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path / 'images' / 'photos')
    assert folder_name(path) == folder_name(Path(path)) == name


def test_another_set_of_the_same_name_is_another_run(flags, image_folder, tmp_path, capsys):
    arguments = [*flags[2:], '-o', tmp_path / 'out', '--corruptions', 'fog', '--corrupted-dir']
    for parent in 'ab':
        (tmp_path / parent).mkdir()
        cifar_c(tmp_path / parent / 'c', names=['fog'])
    assert main(['validate', *map(str, arguments), str(tmp_path / 'a' / 'c')]) == 0
    refused(capsys, *arguments, tmp_path / 'b' / 'c', words='data.corrupted_dir')


def test_a_damaged_cell_is_measured_again_and_damaged_settings_are_named(flags, tmp_path, capsys):
    arguments = [*flags, '--corruptions', 'fog', 'contrast']
    run(*arguments, output=tmp_path)
    whole = {path.name: path.read_bytes() for path in (tmp_path / 'cells').iterdir()}
    (tmp_path / 'cells' / 'fog-1.json').write_text('{"images": 1')
    (tmp_path / 'cells' / 'fog-2.json').write_text('[]')
    (tmp_path / 'cells' / 'fog-3.json').unlink()
    before = json.loads(whole['fog-4.json'])
    del before['adaptive_ece'], before['aurc'], before['e_aurc']  # as written before these were measured
    (tmp_path / 'cells' / 'fog-4.json').write_text(json.dumps(before))
    run(*arguments, output=tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / 'cells').iterdir()} == whole
    (tmp_path / 'settings.json').write_text('7')
    refused(capsys, *arguments, '-o', tmp_path, words='settings.json is damaged')
    (tmp_path / 'settings.json').unlink()
    refused(capsys, *arguments, '-o', tmp_path, words='holds cells of a run but not its settings.json')


def test_grey_models_and_rectangular_inputs_are_measured(flags, tmp_path, capsys):
    grey = timm.create_model('test_resnet', num_classes=3, in_chans=1)
    torch.save(grey.state_dict(), tmp_path / 'grey.pth')
    size = ['--input-size', '1', '32', '32', '--mean', '.5', '--std', '.5', '--checkpoint', tmp_path / 'grey.pth']
    report = run(*flags, *size, '--corruptions', 'fog', output=tmp_path / 'grey')
    assert report['model']['input_size'] == [1, 32, 32]
    c = cifar_c(tmp_path / 'c', names=['fog'])
    run(*flags[2:], *size, '--corrupted-dir', c, '--corruptions', 'fog', output=tmp_path / 'grey-c')
    for width in (48, 64):
        wide = [*flags, '--input-size', 3, 32, width, '--corruptions', 'fog']
        report = run(*wide, output=tmp_path / str(width))
        assert report['benchmark']['image_size'] == [32, width]
    assert main(['compare', str(tmp_path / '48'), str(tmp_path / '64'), '-o', str(tmp_path / 'x')]) == 2
    assert (
        'measured different things, so measure both alike: image_size (A: 32, 48; B: 32, 64)' in capsys.readouterr().err
    )


def test_a_worker_that_dies_is_named_without_a_traceback(flags, tmp_path, capsys, monkeypatch):
    def die(image, *_):
        os._exit(9)

    monkeypatch.setattr(transforms, 'corrupt_pixels', die)
    arguments = [*flags, '--corruptions', 'fog', '-j', '1', '-o', tmp_path]
    refused(capsys, *arguments, words='a worker process died, of too little memory? Try a smaller -j')


def test_a_worker_whose_death_is_signalled_late_is_named_without_a_traceback(flags, tmp_path, capsys, monkeypatch):
    """The pipe breaks first, and PyTorch's handler of the signal raises wherever the program is by then."""

    def breaks(*_):
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        raise ConnectionResetError('the pipe is broken')
        yield

    def signalled(*_):
        raise RuntimeError('DataLoader worker (pid 1) exited unexpectedly')

    monkeypatch.setattr(evaluate_module, 'measure', breaks)
    before = signal.signal(signal.SIGALRM, signalled)
    try:
        refused(capsys, *flags, '--corruptions', 'fog', '-j', '1', '-o', tmp_path, words='a worker process died')
        time.sleep(0.5)  # nothing is left to come
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_too_little_memory_of_the_device_is_named(flags, tmp_path, capsys, monkeypatch):
    def full(self, *_):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')

    monkeypatch.setattr(Calibration, 'update', full)
    refused(capsys, *flags, '-o', tmp_path, words='Tried to allocate 2.00 GiB: try a smaller -b')


def test_a_model_not_trained_with_molly_is_shown_without_a_schedule(flags, tmp_path, capsys):
    torch.save(timm.create_model('test_resnet', num_classes=3).state_dict(), tmp_path / 'c.pth')
    report = run(*flags, '--checkpoint', tmp_path / 'c.pth', '--mollification', output=tmp_path / 'out')
    assert report['taught'] is None
    assert 'taught' not in capsys.readouterr().out


def test_names_that_have_nothing_in_common_are_noted(flags, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, 'label_names', lambda *_: ['car', 'bus', 'tram'])
    run(*flags, '--corruptions', 'fog', output=tmp_path)
    assert 'have nothing in common; they are taken to be in the same order' in capsys.readouterr().err


def test_clean_and_corrupted_images_with_other_labels_are_named_before_the_model_runs(
    flags, image_folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(evaluate_module, 'measure', lambda *_: pytest.fail('ran'))
    official = imagenet_c(tmp_path / 'official', image_folder, ('fog',))
    for severity in (official / 'fog').iterdir():
        (severity / 'dots' / '03.png').rename(severity / 'circles' / '04.png')
    arguments = [*flags, '--corrupted-dir', official, '--corruptions', 'fog', '-o', tmp_path / 'out']
    refused(capsys, *arguments, words='clean and fog 1 have different labels, so they are not the same images')
    assert not (tmp_path / 'out').exists()


def test_a_class_that_a_split_lacks_is_named_with_the_split(flags, image_folder, tmp_path, capsys):
    root = shutil.copytree(image_folder, tmp_path / 'data')
    shutil.rmtree(root / 'validation' / 'dots')
    words = (
        f"split 'validation' of {root} has 2 class folders, but test_resnet has 3 classes; it lacks dots, which train"
    )
    refused(capsys, *flags, '--data-dir', root, words=words)


def test_robustbench_measures_its_own_images_of_imagenet_c(flags, tmp_path, capsys, monkeypatch):
    names = [f'ILSVRC2012_val_{n:08d}.png' for n in (3, 11, 20, 31, 41)]
    theirs = frozenset(names[i] for i in (1, 3, 4))
    monkeypatch.setattr('timm_molly.robustness.subset.file_names', lambda subset: theirs)
    rng = np.random.default_rng(0)
    for folder in ('data/validation', 'ImageNet-C/fog/1', 'ImageNet-C/fog/2'):
        for i, name in enumerate(names):
            path = tmp_path / folder / ('a', 'b', 'c')[i % 3] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    arguments = [*flags, '--data-dir', tmp_path / 'data', '--corrupted-dir', tmp_path / 'ImageNet-C']
    arguments += ['--corruptions', 'fog', '--severities', 1, 2, '--subset', 'robustbench']
    report = run(*arguments, output=tmp_path / 'out')
    assert (report['data']['images'], report['data']['subset']) == (3, 'robustbench')
    labels = hashlib.sha256(np.array([0, 1, 1]).tobytes()).hexdigest()  # a/31, b/11, b/41
    assert report['clean']['labels'] == report['cells']['fog']['2']['labels'] == labels
    assert '3 images of data/validation (robustbench), corrupted: ImageNet-C' in capsys.readouterr().out
    for folder in ('ImageNet-C', 'data'):
        images = {path: path.read_bytes() for path in (tmp_path / folder).rglob(names[4])}
        for path in images:
            path.unlink()
        refused(capsys, *arguments, words=f'lacks 1 of the 3 images of robustbench: {names[4]}')
        for path, data in images.items():
            path.write_bytes(data)
    arrays = cifar_c(tmp_path / 'CIFAR-10-C', names=['fog'])
    refused(
        capsys,
        *(*flags[2:], '--corrupted-dir', arrays, '--corruptions', 'fog', '--subset', 'robustbench'),
        words='are files of ImageNet, and',
    )
