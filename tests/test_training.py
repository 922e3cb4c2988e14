"""`validate --checkpoint` of what train.py left: measured as in that training, whose own validation is the truth."""

import argparse
import csv
import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from support import warm
from support.train import SCRIPT, arguments

from timm_molly.cli import main

# What train.py can be told of model and images. An option given twice counts the last time.
OPTIONS = [
    '',
    '--img-size 56',
    '--mean 0.4 0.5 0.6 --std 0.2 0.3 0.25',
    '--in-chans 1 --mean 0.5 --std 0.3',
    '--input-size 3 40 36',
    '--interpolation nearest --img-size 36',
    '--crop-pct 0.6',
    '--gp max --img-size 96',
    '--model-kwargs act_layer=gelu',
    '--model-ema --model-ema-decay 0.5',
]


@pytest.mark.train
@pytest.mark.parametrize('options', OPTIONS)
def test_the_error_is_what_train_py_measured(options, image_folder, tmp_path, capsys):
    done = warm.run_script(SCRIPT, *arguments(image_folder, tmp_path, f'{options} --aa molly --seed 3'))
    assert done.returncode == 0, done.stderr[-4000:]
    run = tmp_path / 'run'
    with (run / 'summary.csv').open() as file:
        row = list(csv.DictReader(file))[-1]
    for name, place in (('folder', run), ('file', run / 'last.pth.tar'), ('bare', bare(run))):
        output = tmp_path / name
        command = ['validate', '--data-dir', image_folder, '--checkpoint', place, '-j', '0', '-o', output]
        command += ['--use-ema'] if 'ema' in options and name != 'bare' else []
        assert main([*map(str, command), '--corruptions', 'brightness', '--severities', '1']) == 0
        clean = json.loads((output / 'report.json').read_text())['clean']
        assert 100 * (1 - clean['error']) == pytest.approx(float(row['eval_top1']), abs=1e-3)
        assert clean['nll'] == pytest.approx(float(row['eval_loss']), rel=1e-4, abs=1e-5)
        assert 'as in the training of' in capsys.readouterr().err


def bare(run: Path) -> Path:
    """Weights alone, beside the args.yaml of their training."""
    folder = run.with_name('weights')
    folder.mkdir()
    shutil.copy(run / 'args.yaml', folder)
    checkpoint = torch.load(run / 'last.pth.tar', weights_only=False)
    save_file(checkpoint.get('state_dict_ema') or checkpoint['state_dict'], folder / 'model.safetensors')
    return folder


@pytest.fixture
def trained(tmp_path):
    """A checkpoint in a folder as train.py leaves it, untrained."""
    settings = {'model': 'test_resnet', 'num_classes': 3, 'img_size': 48, 'mean': [0.4], 'std': [0.3], 'aa': 'molly'}
    folder = tmp_path / 'net'
    folder.mkdir()
    state = timm.create_model('test_resnet', num_classes=3).state_dict()
    torch.save({'state_dict': state, 'args': argparse.Namespace(**settings)}, folder / 'model_best.pth.tar')
    torch.save(state, folder / 'my.pth')
    return folder


@pytest.fixture
def model_of(image_folder, tmp_path, monkeypatch, capsys):
    """Run validate, and return what the report says of the model, and what was said on the way."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        command = ['validate', '--data-dir', image_folder, '-j', '0', '--corruptions', 'contrast', '--severities', '1']
        assert main([*map(str, command), *map(str, words), '-o', str(tmp_path / 'out')]) == 0
        shutil.copy(tmp_path / 'out' / 'report.json', tmp_path)
        shutil.rmtree(tmp_path / 'out')
        return json.loads((tmp_path / 'report.json').read_text())['model'], capsys.readouterr().err

    return run


def test_what_was_taken_is_said_as_flags(trained, model_of):
    model, said = model_of('--checkpoint', trained)
    assert model['input_size'] == [3, 48, 48]
    assert (model['mean'], model['std'], model['aa']) == ([0.4] * 3, [0.3] * 3, 'molly')
    words = '--model test_resnet --num-classes 3 --img-size 48 --mean 0.4 --std 0.3 --aa molly'
    assert f'as in the training of {trained}/model_best.pth.tar: {words}\n' in said


def test_flags_come_first(trained, model_of):
    model, said = model_of('--checkpoint', trained, '--model', 'test_resnet', '--input-size', 3, 32, 40, '--mean', 0.1)
    assert model['input_size'] == [3, 32, 40]
    assert (model['mean'], model['std']) == ([0.1] * 3, [0.3] * 3)
    assert 'model_best.pth.tar: --num-classes 3 --std 0.3 --aa molly\n' in said


def test_where_nothing_says_it_a_guess_is_called_a_guess(trained, model_of):
    _, said = model_of('--checkpoint', trained / 'my.pth', '--model', 'test_resnet', '--num-classes', 3)
    assert 'note: nothing says how the images of' in said
    assert 'a guess, from test_resnet in timm: input 3 x 160 x 160 (--img-size), mean' in said
    known = ('--img-size', 32, '--mean', 0.5, '--std', 0.5)
    _, said = model_of('--checkpoint', trained / 'my.pth', '--model', 'test_resnet', '--num-classes', 3, *known)
    assert 'guess' not in said


def test_settings_of_another_model_are_not_used(trained, model_of):
    (trained / 'args.yaml').write_text(yaml.safe_dump({'model': 'resnet18', 'img_size': 48}))
    model, said = model_of('--checkpoint', trained / 'my.pth', '--model', 'test_resnet', '--num-classes', 3)
    assert 'is of a training of resnet18, so that its settings are not used' in said
    assert model['input_size'] == [3, 160, 160]


def test_settings_that_name_other_weights_are_refused(trained, image_folder, capsys):
    settings = {'model': 'test_resnet', 'model_kwargs': {'checkpoint_path': '/etc/passwd'}}
    (trained / 'args.yaml').write_text(yaml.safe_dump(settings))
    assert main(['validate', '--data-dir', str(image_folder), '--checkpoint', str(trained / 'my.pth')]) == 2
    assert "has an argument that is not for a model, 'checkpoint_path'" in capsys.readouterr().err


def test_a_classifier_of_another_size_says_which_flag_helps(trained, image_folder, capsys):
    command = ['validate', '--data-dir', str(image_folder), '--checkpoint', str(trained / 'my.pth')]
    assert main([*command, '--model', 'test_resnet']) == 2
    assert 'Its last layer has 3 classes: add --num-classes 3' in capsys.readouterr().err


def test_a_checkpoint_that_names_no_model_asks_for_it(trained, image_folder, capsys):
    assert main(['validate', '--data-dir', str(image_folder), '--checkpoint', str(trained / 'my.pth')]) == 2
    assert 'which model? Add --model' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('place', 'name'), [('my.pth', 'my'), ('--checkpoint my.pth', 'my'), ('model_best.pth.tar', 'net'), ('.', 'net')]
)
def test_a_report_is_named_after_the_training_or_the_file(trained, image_folder, monkeypatch, place, name):
    monkeypatch.chdir(trained)
    command = f'validate {place} --model test_resnet --num-classes 3 --img-size 32 --mean 0.5 --std 0.5'
    flags = ['--data-dir', str(image_folder), '-j', '0', '--corruptions', 'contrast', '--severities', '1']
    assert main([*command.split(), *flags]) == 0
    assert (trained / 'output' / 'validate' / name / 'report.json').is_file()


@pytest.mark.parametrize('command', ['validate', 'fit'])
def test_a_folder_that_is_missing_is_said_before_the_hub_is_asked(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('timm.create_model', lambda *_, **__: pytest.fail('asked for weights'))
    assert main([command, '--data-dir', 'nowhere', '--model', 'resnet18']) == 2
    assert 'no such folder: nowhere (--data-dir)' in capsys.readouterr().err
    (tmp_path / 'images').mkdir()
    assert main([command, '--data-dir', str(tmp_path / 'imagse'), '--model', 'resnet18']) == 2
    assert f'no such folder: {tmp_path / "imagse"} (did you mean images?) (--data-dir)' in capsys.readouterr().err
    assert main([command, str(tmp_path / 'imagse'), '--data-dir', str(tmp_path)]) == 2
    assert f'no such folder or checkpoint: {tmp_path / "imagse"} (did you mean images?)' in capsys.readouterr().err
    assert main([command, '--model', 'resnet18']) == 2
    assert 'no data: give --data-dir' in capsys.readouterr().err


@pytest.mark.parametrize('old', ['before num_batches_tracked', 'weights alone'])
def test_weights_load_that_torch_loads(old, trained, model_of):
    state = torch.load(trained / 'my.pth')
    if old == 'before num_batches_tracked':
        state = {name: value for name, value in state.items() if 'num_batches_tracked' not in name}
    torch.save({'state_dict': state}, trained / 'old.pth')
    new, _ = model_of('--checkpoint', trained / 'my.pth', '--model', 'test_resnet', '--num-classes', 3)
    model, _ = model_of('--checkpoint', trained / 'old.pth', '--model', 'test_resnet', '--num-classes', 3)
    assert model['sha256'] == new['sha256']
