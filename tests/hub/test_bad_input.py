"""What is not as it should be, on this machine and on the Hub: a clear error, and nothing written, pushed or run."""

import json
import os
import pickle
import shutil
import struct
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from timm.models import _hub

import timm_molly
from timm_molly.cli import main
from timm_molly.hub import card, make
from timm_molly.hub.folder import read_config, read_folder

WRITER = ('--token', 'hf_writer')
LOCAL_DIR = hasattr(_hub, 'load_model_config_from_path')  # not in timm 1.0.15
SETTINGS = {
    'model': 'test_resnet',
    'num_classes': 3,
    'img_size': 32,
    'mean': [0.5, 0.5, 0.5],
    'std': [0.2, 0.2, 0.2],
    'crop_pct': 0.9,
    'aa': 'molly-b4',
    'epochs': 2,
    'model_kwargs': {},
}


def write_run(folder, settings=SETTINGS, noted=SETTINGS, **changes):
    """Leave a folder as train.py does."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    state = timm.create_model('test_resnet', num_classes=3).state_dict()
    checkpoint = {'epoch': 1, 'arch': 'test_resnet', 'state_dict': state, 'args': Namespace(**noted), 'metric': 50.0}
    torch.save({**checkpoint, **changes}, folder / 'model_best.pth.tar')
    (folder / 'args.yaml').write_text(yaml.safe_dump(settings))
    (folder / 'summary.csv').write_text('epoch,train_loss,eval_loss,eval_top1\n0,1.1,1.0,40.0\n1,0.9,0.8,50.0\n')
    return folder


@pytest.fixture
def run(tmp_path):
    """A run's folder."""
    return write_run(tmp_path / 'run')


@pytest.fixture(scope='module')
def ready(tmp_path_factory):
    """A folder ready for the Hub, and not to be changed."""
    root = tmp_path_factory.mktemp('ready')
    arguments = ['push', str(write_run(root / 'run')), '--repo-id', 'me/net', '--dry-run', '-o', str(root / 'out')]
    assert main(arguments) == 0
    return root / 'out'


@pytest.fixture
def out(ready, tmp_path):
    """A copy of it."""
    return shutil.copytree(ready, tmp_path / 'out')


def refused(capsys, *arguments, words, command='push', repo='me/net'):
    given = [command, *map(str, arguments), *(['--repo-id', repo] if command == 'push' else [])]
    capsys.readouterr()
    assert main(given) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith(f'timm-molly {command}: ')
    assert words in error[-1]
    return error[-1]


@pytest.fixture
def nothing_done(hub, tmp_path):
    """Nothing is pushed, and nothing written but what the test writes itself."""
    before = None

    def remember():
        nonlocal before
        before = sorted(tmp_path.rglob('*'))

    yield remember
    assert [path for path in sorted(tmp_path.rglob('*')) if path not in before] == []
    assert all(len(repo.refs['main']) == 1 for repo in hub.repos.values())
    assert not any('/commit/' in request for request in hub.requests)


class Trap:
    def __reduce__(self):
        return (os.system, ('touch trapped',))


def break_checkpoint(folder, how):
    path = folder / 'model_best.pth.tar'
    checkpoint = torch.load(path, weights_only=False)
    state = checkpoint['state_dict']
    if how == 'no checkpoint':
        path.unlink()
        return 'has no model_best.pth.tar or model.safetensors; is it the folder that train.py wrote?'
    if how == 'random bytes':
        path.write_bytes(np.random.default_rng(0).bytes(3000))
        return 'model_best.pth.tar is not a checkpoint that can be read'
    if how == 'cut short':
        path.write_bytes(path.read_bytes()[:-5000])
        return 'model_best.pth.tar is not a checkpoint that can be read'
    if how == 'pickled code':
        torch.save({**checkpoint, 'extra': Trap()}, path)
        return 'needs pickled code to load'
    if how == 'foreign':
        torch.save([1, 2], path)
        return 'holds no weights by name'
    if how == 'another network':
        torch.save({**checkpoint, 'state_dict': timm.create_model('test_vit', num_classes=3).state_dict()}, path)
        return 'does not fit test_resnet: '
    if how == 'a key too few and one too many':
        state['fc.wait'] = state.pop('fc.weight')
        torch.save(checkpoint, path)
        return 'does not fit test_resnet: 1 missing: fc.weight; 1 unknown: fc.wait'
    if how == 'another shape':
        state['fc.bias'] = torch.zeros(4)
        torch.save(checkpoint, path)
        return 'does not fit test_resnet: 1 of another shape: fc.bias is (4,), not (3,)'
    if how == 'whole numbers':
        state['fc.bias'] = torch.zeros(3, dtype=torch.int64)
        torch.save(checkpoint, path)
        return 'fc.bias is (3,) of integers, not (3,)'
    if how == 'no tensor':
        state['fc.bias'] = [0, 0, 0]
        torch.save(checkpoint, path)
        return 'fc.bias is no tensor'
    if how == 'NaN':
        state['fc.bias'][1] = torch.nan
        torch.save(checkpoint, path)
        return 'has weights that are not finite, as of a training that diverged: fc.bias'
    if how == 'infinite':
        state['layer1.0.bn1.weight'][1] = -torch.inf
        torch.save(checkpoint, path)
        return 'has weights that are not finite, as of a training that diverged: layer1.0.bn1.weight'
    if how == 'NaN in EMA alone':
        averaged = {name: value.clone() for name, value in state.items()}
        averaged['bn1.running_var'][0] = torch.nan
        torch.save({**checkpoint, 'state_dict_ema': averaged}, path)
        return 'not finite, as of a training that diverged: bn1.running_var'
    raise AssertionError(how)


HOW = (
    *('no checkpoint', 'random bytes', 'cut short', 'pickled code', 'foreign', 'another network', 'another shape'),
    *('a key too few and one too many', 'whole numbers', 'no tensor', 'NaN', 'infinite', 'NaN in EMA alone'),
)


@pytest.mark.parametrize('how', HOW)
def test_a_checkpoint_that_will_not_do(run, capsys, nothing_done, monkeypatch, tmp_path, how):
    monkeypatch.chdir(tmp_path)
    words = break_checkpoint(run, how)
    nothing_done()
    refused(capsys, run, *WRITER, words=words)
    refused(capsys, run, '--dry-run', '-o', tmp_path / 'out', words=words)
    assert not Path('trapped').exists()


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ({**SETTINGS, 'model': 'test_vit'}, "model is 'test_vit' there, 'test_resnet' here"),
        ({**SETTINGS, 'mean': [0, 0, 0]}, 'mean is [0, 0, 0] there, [0.5, 0.5, 0.5] here'),
        ({**SETTINGS, 'aa': 'molly'}, "args.yaml is not of the training of model_best.pth.tar: aa is 'molly' there"),
        ({**SETTINGS, 'model_kwargs': {'global_pool': 'max'}}, "model_kwargs is {'global_pool': 'max'} there, {} here"),
        (['model', 'test_resnet'], "args.yaml is not train.py's: it holds no settings by name"),
        ('{', 'args.yaml is not YAML'),
        ('!!python/object/apply:os.system ["touch trapped"]', 'args.yaml is not YAML'),
        ('a: !!bool foo', 'args.yaml is not YAML'),
        ("a: !!int ''", 'args.yaml is not YAML'),
        ('a: !!timestamp x', 'args.yaml is not YAML'),
        ('model_kwargs: &a {x: *a}', "model is None there, 'test_resnet' here"),
        ('a: ' + 'b' * 2**20, 'args.yaml is larger than any args.yaml'),
    ],
)
def test_settings_of_another_training(run, capsys, nothing_done, tmp_path, monkeypatch, settings, words):
    monkeypatch.chdir(tmp_path)
    (run / 'args.yaml').write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings))
    nothing_done()
    refused(capsys, run, *WRITER, words=words)


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ({'model': 'nonsense'}, "timm cannot create 'nonsense'"),
        ({'model': '../../etc/passwd'}, 'timm cannot create'),
        ({'model': None}, 'says which model it is: add --model'),
        ({'model': 7}, 'says which model it is: add --model'),
        ({'num_classes': 4}, 'fc.bias is (3,), not (4,)'),
        ({'mean': [0.5, 0.5]}, 'has no sound image settings'),
        ({'std': 'wide'}, 'has no sound image settings'),
        ({'std': [0.2, 0.0, 0.2]}, 'std needs finite numbers above 0, got (0.2, 0.0, 0.2)'),
        ({'mean': [0.2, float('nan'), 0.2]}, 'mean is [0.2, nan, 0.2] there'),
        ({'img_size': 'x'}, 'has no sound image settings'),
        ({'img_size': 10**6}, 'input_size must be channels, height and width'),
        ({'interpolation': '../x'}, 'interpolation must be one of'),
        ({'crop_pct': -1}, 'crop_pct must be above 0, got -1'),
        ({'model_kwargs': [1]}, 'model_kwargs must be a mapping, got [1]'),
        ({'model_kwargs': {'checkpoint_path': 'x'}}, "not for a model, 'checkpoint_path'"),
        ({'model_kwargs': {'trust': True}}, "timm cannot create 'test_resnet'"),
        ({'model_kwargs': {'name': 'x'}}, "timm cannot create 'test_resnet'"),
        ({'model_kwargs': {'pretrained': True}}, "not for a model, 'pretrained'"),
        ({'model_kwargs': {'device': 'meta'}}, "not for a model, 'device'"),
        ({'model_kwargs': {1: 2}}, "not for a model, '1'"),
        ({'model_kwargs': {'layers': 10**9}}, 'model_kwargs layers is no plain value'),
        ({'in_chans': 1}, '1 of another shape: conv1.0.weight'),
        ({'model_kwargs': {'nonsense': 1}}, "timm cannot create 'test_resnet'"),
        ({'aa': 'molly-z'}, "section 'z' in 'molly-z'"),
        ({'aa': 5}, 'args.yaml: aa must be text, got 5'),
        ({'dataset': 5, 'data_dir': 5, 'val_split': [5], 'lr': {'a': '|`'}}, None),
    ],
)
def test_settings_that_make_no_sense(tmp_path, capsys, nothing_done, settings, words):
    settings = {**SETTINGS, **settings}
    run = write_run(tmp_path / 'run', settings, settings)
    nothing_done()
    if words is None:
        arguments = ['push', str(run), '--repo-id', 'me/net', '--dry-run', '-o', str(tmp_path / 'out')]
        assert main(arguments) == 0
        shutil.rmtree(tmp_path / 'out')
    else:
        refused(capsys, run, '--dry-run', '-o', tmp_path / 'out', words=words)
        refused(capsys, run, *WRITER, words=words)


def test_settings_nested_without_end(tmp_path, capsys, nothing_done):
    run = write_run(tmp_path / 'run', noted={})
    (run / 'args.yaml').write_text('model: test_resnet\nmodel_kwargs: &a {x: *a}')
    nothing_done()
    refused(capsys, run, *WRITER, words='model_kwargs x is no plain value')


def test_an_image_size_that_a_model_cannot_take(tmp_path, capsys, nothing_done):
    settings = {**SETTINGS, 'model': 'test_vit', 'img_size': 64, 'model_kwargs': {'dynamic_img_size': False}}
    run = write_run(tmp_path / 'run', settings, settings)
    checkpoint = torch.load(run / 'model_best.pth.tar', weights_only=False)
    checkpoint['state_dict'] = timm.create_model('test_vit', num_classes=3).state_dict()
    torch.save(checkpoint, run / 'model_best.pth.tar')
    nothing_done()
    said = refused(capsys, run, *WRITER, words='test_vit')
    # Some timms, such as 1.0.15 and 1.0.28, make the net for these images, which the weights do not fit.
    assert 'test_vit cannot take images of (3, 64, 64)' in said or 'does not fit test_vit' in said


def test_a_class_map_that_is_pickled_is_not_read(tmp_path, monkeypatch, image_folder):
    monkeypatch.chdir(tmp_path)
    with open('map.pkl', 'wb') as file:
        pickle.dump(Trap(), file)
    monkeypatch.setattr(timm.data, 'create_dataset', lambda *_, **__: pytest.fail('read'))  # older ones unpickle it
    settings = {**SETTINGS, 'data_dir': str(image_folder), 'class_map': 'map.pkl'}
    run = write_run(tmp_path / 'run', settings, settings)
    assert main(['push', str(run), '--repo-id', 'me/net', '--dry-run', '-o', 'out']) == 0
    assert not Path('trapped').exists()
    assert timm_molly.load('out').label_names is None


def test_pickled_code_is_not_run_whatever_the_settings_say(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Trap(), 'evil.pth')
    settings = {**SETTINGS, 'model_kwargs': {'trust': True, 'checkpoint_path': 'evil.pth'}}
    refused(capsys, write_run(tmp_path / 'run', settings, settings), *WRITER, words='not for a model')
    assert not Path('trapped').exists()


def test_names_of_weights_of_wrapped_models(tmp_path):
    run = write_run(tmp_path / 'run')
    checkpoint = torch.load(run / 'model_best.pth.tar', weights_only=False)
    state = checkpoint['state_dict']
    for prefix in ('module.', '_orig_mod.'):  # of DistributedDataParallel and torch.compile
        checkpoint['state_dict'] = {f'{prefix}{name}': value for name, value in state.items()}
        torch.save(checkpoint, run / 'model_best.pth.tar')
        out = tmp_path / prefix
        assert main(['push', str(run), '--repo-id', 'me/net', '--dry-run', '-o', str(out)]) == 0
        assert load_file(out / 'model.safetensors').keys() == state.keys()


@pytest.mark.skipif(not LOCAL_DIR, reason='timm 1.0.15 cannot make its vision transformers without memory')
def test_a_config_of_a_giant_is_refused_before_it_is_made(out, monkeypatch):
    changed_config(out, 'architecture', value='vit_giant_patch14_clip_224')
    made = []
    monkeypatch.setattr(torch.nn.Linear, 'reset_parameters', lambda self: made.append(self.weight.device.type))
    with pytest.raises(ValueError, match='does not fit vit_giant_patch14_clip_224'):
        timm_molly.load(out)
    assert set(made) == {'meta'}


def test_the_last_layer_of_a_distilled_model_is_found(tmp_path):
    model = timm.create_model('deit_tiny_distilled_patch16_224', num_classes=3)
    save_file(model.state_dict(), tmp_path / 'alone.safetensors')
    push = ['push', str(tmp_path / 'alone.safetensors'), '--model', 'deit_tiny_distilled_patch16_224']
    assert main([*push, '--repo-id', 'me/net', '--dry-run', '-o', str(tmp_path / 'out')]) == 0
    assert timm_molly.load(tmp_path / 'out').model.num_classes == 3


@pytest.mark.parametrize(
    ('summary', 'changes', 'expected'),
    [
        (None, {}, {'loss': 0.8, 'top1': 50.0}),
        (None, {'epoch': 0, 'metric': 40.0}, {'loss': 1.0, 'top1': 40.0}),
        (None, {'metric': 49.0}, None),  # of another run
        (None, {'metric': None}, None),
        ('epoch,eval_top1\n1,40.0\n1,50.0\n1', {}, {'top1': 50.0}),  # resumed, and cut short
        ('epoch,eval_top1,eval_loss\n1,50.0,nan', {}, {'top1': 50.0}),
        ('epoch,train_loss\n1,50.0', {}, None),
        ('\0\n' + 'x' * 200_000, {}, None),
        ('', {}, None),
    ],
)
def test_what_train_py_measured_is_taken_where_it_is_of_these_weights(tmp_path, summary, changes, expected):
    run = write_run(tmp_path / 'run', **changes)
    if summary is not None:
        (run / 'summary.csv').write_text(summary)
    assert main(['push', str(run), '--repo-id', 'me/net', '--dry-run', '-o', str(tmp_path / 'out')]) == 0
    assert read_config(tmp_path / 'out' / 'config.json')['timm_molly'].get('validation') == expected


def test_names_of_folders_of_this_machine_are_told_of(tmp_path, report, capsys):
    settings = {**SETTINGS, 'output': '/home/x', 'resume': '', 'wandb_tags': ['a', '~/b'], 'data_dir': 'here'}
    run = write_run(tmp_path / 'run', settings, settings)
    (tmp_path / 'report.json').write_text(json.dumps({**report, 'command': 'timm-molly validate --data-dir /x'}))
    push = ['push', str(run), '--repo-id', 'me/net', '--dry-run', '-o']
    assert main([*push, str(tmp_path / 'a'), '--report', str(tmp_path / 'report.json')]) == 0
    expected = 'note: folders of this machine are named in args.yaml (output, wandb_tags) and report.json (command)'
    assert expected in capsys.readouterr().err
    run = write_run(tmp_path / 'run2')
    assert main([*push[:1], str(run), *push[2:], str(tmp_path / 'b')]) == 0
    assert 'note:' not in capsys.readouterr().err


def test_a_checkpoint_alone(tmp_path, capsys):
    write_run(tmp_path / 'run')
    path = tmp_path / 'alone.safetensors'
    save_file(torch.load(tmp_path / 'run' / 'model_best.pth.tar', weights_only=False)['state_dict'], path)
    refused(capsys, path, *WRITER, words='says which model it is: add --model')
    refused(capsys, path, *WRITER, '--model', 'test_vit', words='does not fit test_vit')
    refused(capsys, tmp_path / 'run', *WRITER, '--model', 'test_vit', words="is of model 'test_resnet', not of --model")
    refused(capsys, tmp_path / 'none.pth', *WRITER, words='no such folder or checkpoint')
    push = ['push', str(path), '--model', 'test_resnet', '--repo-id', 'me/net']
    assert main([*push, '--dry-run', '-o', str(tmp_path / 'out')]) == 0
    config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert config['num_classes'] == 3  # from the last layer
    assert config['pretrained_cfg']['input_size'] == [3, 160, 160]  # test_resnet's own
    assert not (tmp_path / 'out' / 'args.yaml').exists()
    text = (tmp_path / 'out' / 'README.md').read_text()
    assert 'How it was trained' not in text
    assert 'mollification' not in text
    # A checkpoint of train.py says what it was made with, also without its folder.
    shutil.copy(tmp_path / 'run' / 'model_best.pth.tar', tmp_path / 'last.pth.tar')
    push = ['push', str(tmp_path / 'last.pth.tar'), '--repo-id', 'me/net']
    assert main([*push, '--dry-run', '-o', str(tmp_path / 'out2')]) == 0
    assert timm_molly.load(tmp_path / 'out2').molly.beta == 4


@pytest.mark.parametrize(
    'repo', ['net', 'me/', '/net', 'a/b/c', '../net', 'me/..', 'me/a b', 'me/net\n', 'me/' + 'n' * 100, '']
)
def test_a_name_that_no_repository_can_have(run, capsys, nothing_done, repo):
    nothing_done()
    refused(capsys, run, *WRITER, words='repo_id must be owner/name', repo=repo)
    refused(capsys, run, '--dry-run', words='repo_id must be owner/name', repo=repo)


def test_tokens(run, capsys, nothing_done, hub):
    nothing_done()
    refused(capsys, run, words='no token: log in with `hf auth login`')
    assert hub.requests == []
    refused(capsys, run, '--token', 'hf_wrong', words='the Hub does not know this token, so nothing was pushed')
    refused(capsys, run, '--token', 'hf_reader', words='this token may not do that, so nothing was pushed')
    refused(capsys, run, *WRITER, words='this token may not do that, so nothing was pushed', repo='you/net')
    refused(capsys, run, *WRITER, '--create-pr', words='there is no me/net (for this token) to open a pull request for')


def test_a_reader_cannot_push_to_what_is_there(run, capsys, hub):
    assert main(['push', str(run), '--repo-id', 'me/net', *WRITER]) == 0
    arguments = ['--token', 'hf_reader', '--license', 'mit']
    refused(capsys, run, *arguments, words='this token may not do that, so nothing was pushed')
    assert len(hub.repos['me/net'].refs['main']) == 2


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['-o', 'x'], '-o is for --dry-run'),
        (['--dry-run', '--private'], '--dry-run stops before the network; leave --private'),
        (['--dry-run', '-o', '{run}'], 'is there already: choose another folder (-o), or delete it'),
        (['--dry-run', '-o', '{run}/args.yaml'], 'is there already: choose another folder (-o), or delete it'),
        (['--dry-run', '-o', '{run}/args.yaml/x'], 'args.yaml'),
        (['--dry-run', '-o', 'new/deep/out', '--report', 'nowhere'], 'no such report: nowhere'),
        (['--token', 'hf_writer\n'], 'the token has characters that no token has'),
        (['--token', 'hf_wr\u00eet'], 'the token has characters that no token has'),
        ([*WRITER, '--report', 'nowhere'], 'no such report: nowhere'),
        ([*WRITER, '--report', '{run}/args.yaml'], 'args.yaml is no report.json'),
        ([*WRITER, '--license', 'a\nb: c'], "license takes a name as the Hub has them, got 'a\\nb: c'"),
        (['--dry-run', '--dataset-id', '../x'], "dataset_id takes a name as the Hub has them, got '../x'"),
    ],
)
def test_options_that_will_not_do(run, capsys, nothing_done, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    nothing_done()
    refused(capsys, run, *[argument.format(run=run) for argument in arguments], words=words)


def test_a_folder_that_cannot_be_finished_is_not_begun(run, tmp_path, capsys, monkeypatch, nothing_done):
    def fail(*arguments):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(card, 'write', fail)
    nothing_done()
    refused(capsys, run, '--dry-run', '-o', tmp_path / 'out', words='No space left on device')
    refused(capsys, run, *WRITER, words='No space left on device')


def test_a_model_that_timm_would_make_otherwise_is_not_pushed(run, out, capsys, monkeypatch, nothing_done):
    read = make.read_folder
    monkeypatch.setattr(make, 'read_folder', lambda folder: changed(read(folder)))

    def changed(found):
        found.model.bn1.eps = 0.1
        return found

    nothing_done()
    for folder, arguments in ((run, WRITER), (out, WRITER), (out, ['--dry-run'])):
        refused(capsys, folder, *arguments, words='what timm makes of the config is not the trained model')


# Reports.


@pytest.fixture(scope='module')
def report(image_folder, ready, tmp_path_factory):
    """A report on the weights of `ready`."""
    folder = tmp_path_factory.mktemp('report')
    training = ready.with_name('run')
    flags = f'--data-dir {image_folder} --checkpoint {training} -j 0 --corruptions fog --severities 1'
    assert main(['validate', *flags.split(), '-o', str(folder)]) == 0
    return json.loads((folder / 'report.json').read_text())


def test_a_report_of_a_model_is_for_that_model(run, report, tmp_path, capsys, nothing_done):
    path = tmp_path / 'report.json'
    path.write_text(json.dumps(report))
    arguments = ['push', str(run), '--repo-id', 'me/net', '--report', str(path), '--dry-run', '-o']
    assert main([*arguments, str(tmp_path / 'good')]) == 0
    assert json.loads((tmp_path / 'good' / 'report.json').read_text()) == json.loads(path.read_text())
    checkpoint = torch.load(run / 'model_best.pth.tar', weights_only=False)
    checkpoint['state_dict']['fc.bias'] += 1e-6
    torch.save(checkpoint, run / 'model_best.pth.tar')
    nothing_done()
    refused(capsys, run, *WRITER, '--report', path, words='report.json measured another model')


def test_a_report_on_images_normalised_otherwise_is_refused(run, report, tmp_path, capsys, nothing_done):
    report = json.loads(json.dumps(report))
    report['model']['std'] = [0.2, 0.2, 0.25]
    (tmp_path / 'report.json').write_text(json.dumps(report))
    nothing_done()
    words = 'the training normalised with [0.2, 0.2, 0.2]: measure again with --std 0.2 0.2 0.2'
    refused(capsys, run, *WRITER, '--report', tmp_path / 'report.json', words=words)


def at(*keys, value=None):
    def change(report):
        place = report
        for key in keys[:-1]:
            place = place[key]
        if value is None:
            del place[keys[-1]]
        else:
            place[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (at('clean', 'error', value='low'), "clean: error must be a finite number, got 'low'"),
        (at('clean', 'error', value=1.5), 'clean: error must be from 0 to 1, got 1.5'),
        (at('clean', 'nll', value=-1.0), 'clean: nll must be from 0 to inf, got -1.0'),
        (at('clean', 'nll', value=float('inf')), 'clean: nll must be a finite number, got inf'),
        (at('clean', 'bins', 'images', value=['x'] * 15), "clean: bins: images must be a finite number, got 'x'"),
        (at('clean', 'bins', 'correct', value=[1.0]), 'clean: bins must be 15 numbers from 0 on each, got (1.0,)'),
        (at('clean', 'images', value=13), 'a cell has other than 12 images'),
        (at('clean', 'ece'), 'clean lacks ece'),
        (at('cells', 'x|y', value={'1': {}}), 'x|y 1 lacks error'),
        (at('cells', 'fog', value={'1': 3}), 'fog 1 must be a mapping, got 3'),
        (at('cells', 'fog', value={'strong': {}}), "fog has 'strong', which is no severity and no t"),
        (at('cells', value=[]), 'cells must be a mapping of mappings, got []'),
        (at('model', 'parameters', value=10**400), 'model: parameters must be a whole number, got 1000'),
        (at('model', 'sha256'), 'model lacks sha256'),
        (at('model', 'crop_mode'), 'model lacks crop_mode'),
        (at('model', 'name'), 'model lacks name'),
        (at('model', 'sha256', value='a' * 64), 'measured another model'),
        (at('packages'), 'it lacks packages'),
        (at('data', 'split'), 'data lacks split'),
        (at('data', 'dataset', value=['x']), "data: dataset must be text, got ['x']"),
        (at('data', value=None), 'data must be a mapping, got None'),
        (at('benchmark', 'kind'), 'benchmark lacks kind'),
        (at('benchmark', 'severities', value=[1, 2]), 'its cells are not those of its benchmark: fog 2'),
        (at('schema', value='x'), 'is not a report of timm-molly validate'),
        (at('version', value=9), 'has version 9 of the schema'),
    ],
)
def test_a_report_that_is_none(run, report, tmp_path, capsys, nothing_done, change, words):
    changed = json.loads(json.dumps(report))
    change(changed)
    (tmp_path / 'report.json').write_text(json.dumps(changed))
    nothing_done()
    refused(capsys, run, *WRITER, '--report', tmp_path / 'report.json', words=words)


@pytest.mark.parametrize('content', ['[' * 10**5, '{', '', '[]', '\xff', ' ' * 2**24 + '{}'])
def test_files_that_are_no_report(out, content):
    (out / 'report.json').write_text(content, encoding='latin-1')
    with pytest.raises(ValueError, match=r'report\.json'):
        timm_molly.load(out)


# Folders for the Hub, which may be anybody's.


def break_folder(folder, how):
    config = json.loads((folder / 'config.json').read_text())
    state = load_file(folder / 'model.safetensors')
    if how == 'other weights':
        state['fc.bias'] += 1
        save_file(state, folder / 'model.safetensors')
        return 'are not the weights that config.json was written for'
    if how == 'other classes':
        config['num_classes'] = config['model_args']['num_classes'] = 4
        (folder / 'config.json').write_text(json.dumps(config))
        return 'does not fit test_resnet: 2 of another shape: fc.weight'
    if how == 'other pooling':
        config['model_args']['global_pool'] = ''
        (folder / 'config.json').write_text(json.dumps(config))
        return 'config.json: the network cannot take images of'
    if how == 'other network':
        config['architecture'] = 'test_vit'
        (folder / 'config.json').write_text(json.dumps(config))
        return 'does not fit test_vit'
    if how == 'NaN':
        state['fc.bias'][0] = torch.nan
        save_file(state, folder / 'model.safetensors')
        return 'has weights that are not finite'
    if how == 'no card':
        (folder / 'README.md').unlink()
        return f'has no README.md; timm-molly card {folder} writes it'
    if how == 'no weights':
        (folder / 'model.safetensors').unlink()
        return 'has no model.safetensors'
    if how == 'no settings':
        (folder / 'args.yaml').write_text('- 1')
        return "args.yaml is not train.py's"
    raise AssertionError(how)


@pytest.mark.parametrize(
    'how',
    ['other weights', 'other classes', 'other network', 'other pooling', 'NaN', 'no card', 'no weights', 'no settings'],
)
def test_a_folder_whose_files_do_not_belong_together(out, capsys, nothing_done, how):
    words = break_folder(out, how)
    nothing_done()
    refused(capsys, out, *WRITER, words=words)
    refused(capsys, out, '--dry-run', words=words)
    if how not in ('no card', 'no settings'):
        with pytest.raises(ValueError, match=words):
            timm_molly.load(out)


def test_a_folder_is_pushed_as_it_stands_or_not_at_all(out, capsys, nothing_done):
    nothing_done()
    refused(capsys, out, *WRITER, words='was made for me/net, not for me/other', repo='me/other')
    refused(capsys, out, *WRITER, '--license', 'mit', words='is pushed as it stands; leave license out')
    refused(capsys, out, *WRITER, '--no-ema', '--model', 'x', words='leave model, use_ema out')


def test_a_ready_folder_whose_report_is_on_images_normalised_otherwise(out, report, capsys, nothing_done):
    (out / 'report.json').write_text(json.dumps(report))
    assert main(['push', str(out), '--repo-id', 'me/net', '--dry-run']) == 0
    changed_config(out, 'pretrained_cfg', 'std', value=[0.2, 0.2, 0.25])
    nothing_done()
    words = 'the report measured with std [0.2, 0.2, 0.2], but the training normalised with [0.2, 0.2, 0.25]'
    refused(capsys, out, *WRITER, words=words)


def changed_config(folder, *keys, value):
    config = json.loads((folder / 'config.json').read_text())
    place = config
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (folder / 'config.json').write_text(json.dumps(config))


@pytest.mark.parametrize(
    ('keys', 'value', 'words'),
    [
        (('architecture',), '../../etc/passwd', 'no architecture of timm'),
        (('architecture',), 'hf-hub:evil/net', 'no architecture of timm'),
        (('architecture',), 'nonsense', 'know no such architecture'),
        (('architecture',), ['test_resnet'], 'no architecture of timm'),
        (('num_classes',), 10**400, 'num_classes must be 1 to'),
        (('num_classes',), True, 'num_classes must be 1 to'),
        (('num_classes',), 0, 'num_classes must be 1 to'),
        (('pretrained_cfg',), 'x', 'pretrained_cfg must be a mapping'),
        (('pretrained_cfg', 'input_size'), [3, 32], 'input_size must be'),
        (('pretrained_cfg', 'input_size'), [3, 10**9, 32], 'input_size must be'),
        (('pretrained_cfg', 'mean'), [0.5, 0.5, '0.5'], 'mean must be'),
        (('pretrained_cfg', 'std'), [0.5, -0.5, 0.5], 'std must be'),
        (('pretrained_cfg', 'crop_pct'), 0, 'crop_pct must be'),
        (('pretrained_cfg', 'crop_mode'), 'x', 'crop_mode must be one of'),
        (('pretrained_cfg', 'interpolation'), 'x', 'interpolation must be one of'),
        (('pretrained_cfg', 'first_conv'), '../x', 'first_conv is no plain value'),
        (('model_args',), ['x'], 'model_args must be a mapping'),
        (('model_args', 'checkpoint_path'), 'x', 'an argument that is not for a model'),
        (('model_args', 'pretrained_cfg'), {'file': 'x'}, 'an argument that is not for a model'),
        (('model_args', 'pretrained'), True, 'an argument that is not for a model'),
        (('model_args', 'a b'), 1, 'an argument that is not for a model'),
        (('model_args', 'act_layer'), '../x', 'model_args act_layer is no plain value'),
        (('model_args', 'width'), 10**9, 'model_args width is no plain value'),
        (('model_args', 'layers'), [[[[1]]]], 'model_args layers is no plain value'),
        (('model_args', 'layers'), [1] * 500, 'model_args layers is no plain value'),
        (('model_args', 'nonsense'), 1, "timm cannot create 'test_resnet'"),
        (('label_names',), ['a', 'b', 'c', 'd'], 'label_names must be 3 names'),
        (('label_names',), ['a', 'b'], 'label_names must be 3 names'),
        (('model_args', 'num_classes'), 4, 'model_args num_classes must be 3 as elsewhere'),
        (('model_args', 'in_chans'), 1, 'model_args in_chans must be 3 as elsewhere'),
        (('model_args', 'trust'), True, "timm cannot create 'test_resnet'"),
        (('model_args', 'name'), 'x', "timm cannot create 'test_resnet'"),
        (('model_args', 'device'), 'meta', 'an argument that is not for a model'),
        (('label_names',), [1, 2, 3], 'label_names must be 3 names'),
        (('timm_molly',), [], 'timm_molly must be a mapping'),
        (('timm_molly', 'aa'), 5, 'timm_molly aa is malformed'),
        (('timm_molly', 'aa'), 'molly-z', "section 'z' in 'molly-z'"),
        (('timm_molly', 'validation'), {'top1': 'x'}, 'validation top1 must be a number'),
    ],
)
def test_a_config_that_will_not_do(out, keys, value, words):
    config = json.loads((out / 'config.json').read_text())
    if len(keys) == 2 and keys[0] not in config:
        changed_config(out, keys[0], value={})
    changed_config(out, *keys, value=value)
    with pytest.raises(ValueError, match=words.replace('(', r'\(')) as error:
        timm_molly.load(out)
    assert len(str(error.value)) < 700


def test_what_a_config_says_of_other_files_is_not_read(out, hub, monkeypatch):
    before = timm_molly.load(out).model.state_dict()
    for key in ('file', 'url', 'hf_hub_id', 'hf_hub_filename', 'source', 'state_dict'):
        changed_config(out, 'pretrained_cfg', key, value='../../secret.bin')
    changed_config(out, 'pretrained_cfg', 'custom_load', value=True)
    changed_config(out, 'pretrained_cfg', 'label_offset', value=1)
    torch.save(Trap(), out / 'pytorch_model.bin')
    opened = []
    monkeypatch.setattr(torch, 'load', lambda *arguments, **options: opened.append(arguments))
    after = timm_molly.load(out).model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert opened == []
    assert hub.requests == []


@pytest.mark.parametrize(
    'content', [b'', b'[1]', b'{', b'\xff', b'[' * 10**5, b'{"a": NaN}', b'1' * 5000, b' ' * 2**23 + b'{}']
)
def test_a_config_that_is_none(out, content):
    (out / 'config.json').write_bytes(content)
    with pytest.raises(ValueError, match=r'config\.json'):
        timm_molly.load(out)


def test_files_too_large_are_not_downloaded(out, hub):
    assert main(['push', str(out), '--repo-id', 'me/net', *WRITER]) == 0
    files = hub.repos['me/net'].refs['main'][-1].files
    files['config.json'] = (b' ' * 2**23 + b'{}', False)
    hub.requests.clear()
    with pytest.raises(ValueError, match=r'me/net has a config\.json larger than any such file: 8388610 bytes'):
        timm_molly.load('me/net')
    assert not any('/resolve/' in request for request in hub.requests)
    del files['config.json']
    with pytest.raises(ValueError, match=r'me/net has no config\.json: is it an image classifier of timm\?'):
        timm_molly.load('me/net')


@pytest.mark.parametrize('name', ['no/such', 'nonsense', '../..x', 'a/b/c', 'me/net\n'])
def test_names_of_nothing(hub, name):
    with pytest.raises(
        ValueError, match=r'cannot be the name of a repository|shows no such repository|has no such place'
    ):
        timm_molly.load(name)


def test_a_folder_that_is_misspelt_is_named_before_the_hub_is_asked(hub, run, caplog, monkeypatch):
    monkeypatch.chdir(run.parent)
    with pytest.raises(ValueError, match='the Hub has no such place'):
        timm_molly.load(f'{run.name}x')
    assert caplog.messages == [
        f'note: there is no folder {run.name}x here (did you mean {run.name}?), so it is looked for on the Hub'
    ]


@pytest.mark.parametrize('form', ['./{run.name}x', '../{run.parent.name}/{run.name}x', '{run}x'])
def test_a_misspelt_folder_that_can_be_no_repository_is_not_looked_for(form, run, caplog, monkeypatch):
    monkeypatch.chdir(run.parent)
    place = form.format(run=run)
    with pytest.raises(ValueError, match=rf'no folder {place} here \(did you mean {run.name}\?\), and that cannot be'):
        timm_molly.load(place)
    assert not caplog.messages


def test_a_name_as_timm_has_it_is_told_what_to_leave_out():
    with pytest.raises(ValueError, match=r'no folder hf-hub:me/net here, and that cannot be .*; leave out hf-hub:$'):
        timm_molly.load('hf-hub:me/net')


def test_the_folder_above_a_model_is_named(run):
    with pytest.raises(
        ValueError, match=r'neither config\.json, .* nor a checkpoint .* is the model in a folder below it'
    ):
        timm_molly.load(run.parent)


def test_a_folder_has_no_revision(out):
    with pytest.raises(ValueError, match='is a folder, which has no revision'):
        timm_molly.load(out, revision='main')


keys_of_mappings = st.text(max_size=9) | st.sampled_from(
    ['name', 'trust', 'device', 'in_chans', 'num_classes', 'pretrained']
)
leaves = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    *(st.just(10**30), st.just('../../x'), st.just('hf-hub:a/b')),
)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner))


def paths(value, prefix=()):
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*prefix, key)
            yield from paths(each, (*prefix, key))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_fuzzed_configs_are_read_or_refused(ready, tmp_path_factory, data):
    config = json.loads((ready / 'config.json').read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        keys = data.draw(st.sampled_from(list(paths(config)) or [('a',)]))
        place = config
        for key in keys[:-1]:
            place = place[key]
        if isinstance(place, dict) and data.draw(st.booleans()):
            place[data.draw(keys_of_mappings)] = data.draw(values)
        else:
            place[keys[-1]] = data.draw(values)
    folder = tmp_path_factory.getbasetemp() / 'fuzz-config'
    folder.mkdir(exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(config))
    if not (folder / 'model.safetensors').exists():
        shutil.copy(ready / 'model.safetensors', folder)
    try:
        read_config(folder / 'config.json')
        loaded = timm_molly.load(folder)
    except ValueError as error:
        assert 'fuzz-config' in str(error) or 'timm cannot create' in str(error) or 'aa' in str(error)  # noqa: PT017
    else:
        assert loaded.model(torch.zeros(1, *loaded.model.pretrained_cfg['input_size'])).shape == (1, 3)


@given(st.binary(max_size=400))
@settings(max_examples=150, deadline=None)
def test_bytes_that_are_no_config_are_a_value_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / 'config.json'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'config\.json'):
        read_config(path)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_fuzzed_safetensors_are_the_same_weights_or_refused(ready, tmp_path_factory, data):
    content = bytearray((ready / 'model.safetensors').read_bytes())
    (size,) = struct.unpack('<Q', content[:8])
    kind = data.draw(st.sampled_from(['bytes of the header', 'length', 'text of the header', 'cut', 'more', 'numbers']))
    if kind == 'bytes of the header':
        for _ in range(data.draw(st.integers(1, 5))):
            content[data.draw(st.integers(0, 8 + size - 1))] = data.draw(st.integers(0, 255))
    elif kind == 'length':
        content[:8] = struct.pack('<Q', data.draw(st.integers(0, 2**64 - 1) | st.integers(0, 2 * size)))
    elif kind == 'text of the header':
        header = json.loads(content[8 : 8 + size])
        name = data.draw(st.sampled_from(sorted(set(header) - {'__metadata__'})))
        key = data.draw(st.sampled_from(['dtype', 'shape', 'data_offsets']))
        good = st.sampled_from(['F16', 'I64', 'F8_E4M3', [3], [96, 3], [0, 0], [0, 12], [-1, 12], [2**62, 2**62]])
        header[name][key] = data.draw(good | values)
        text = json.dumps(header).encode()
        content[: 8 + size] = struct.pack('<Q', len(text)) + text
    elif kind == 'cut':
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    elif kind == 'more':
        content += data.draw(st.binary(min_size=1, max_size=50))
    else:
        place = data.draw(st.integers(8 + size, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
    folder = tmp_path_factory.getbasetemp() / 'fuzz-weights'
    folder.mkdir(exist_ok=True)
    shutil.copy(ready / 'config.json', folder)
    (folder / 'model.safetensors').write_bytes(content)
    try:
        state = read_folder(folder).model.state_dict()
    except ValueError as error:
        assert 'model.safetensors' in str(error)  # noqa: PT017
    else:
        assert kind != 'numbers'
        assert all(torch.equal(state[name], value) for name, value in load_file(ready / 'model.safetensors').items())
