"""From a train script's folder to the Hub and back, with the real client, real timm, and a server of our own."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from support import warm
from support.tiny_images import CLASSES
from support.train import FOLDER, SCRIPT, arguments

import timm_molly
from timm_molly import MollyConfig
from timm_molly.cli import main
from timm_molly.hub.card import is_generated
from timm_molly.hub.make import timm_reads_folders

pytestmark = pytest.mark.train
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
IMAGES = '--mean 0.4 0.5 0.6 --std 0.2 0.3 0.25 --crop-pct 0.8 --interpolation bilinear'
WRITER = ('--token', 'hf_writer')


@pytest.fixture(scope='module')
def train(image_folder, tmp_path_factory):
    """Train for an epoch, and return the run's folder and the batches of its validations."""

    def run(options=''):
        output = tmp_path_factory.mktemp('train')
        options = arguments(image_folder, output, f'{IMAGES} {options}')
        done = warm.run_script(FOLDER / 'eval_spy.py', output / 'batches.pt', SCRIPT, *options)
        assert done.returncode == 0, done.stderr[-4000:]
        return output / 'run', torch.load(output / 'batches.pt')

    return run


@pytest.fixture(scope='module')
def trained(train):
    """The folder of a run."""
    return train()[0]


def push(*arguments, repo='me/net'):
    return main(['push', *map(str, arguments), '--repo-id', repo])


def head(hub, repo='me/net', ref='main'):
    """The files at the head of a branch, by name."""
    return {name: content for name, (content, _) in hub.repos[repo].refs[ref][-1].files.items()}


def refused(capsys, *arguments, words, repo='me/net'):
    capsys.readouterr()
    assert push(*arguments, repo=repo) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith('timm-molly push: ')
    assert words in error
    return error


@pytest.mark.parametrize('ema', ['none', 'taken', 'left'])
@pytest.mark.parametrize('model', ['test_resnet', 'allconvnet'])
def test_round_trip(train, hub, tmp_path, python, image_folder, capsys, model, ema):
    folder, batches = train(f'--model {model}' + ' --model-ema --model-ema-decay 0.8' * (ema != 'none'))
    # With EMA, train.py validates the weights as they are, and then their average.
    half = len(batches) if ema == 'none' else len(batches) // 2
    expected = batches[half:] if ema == 'taken' else batches[:half]
    assert push(folder, *WRITER, *['--no-ema'] * (ema == 'left')) == 0
    said = capsys.readouterr()
    assert "load it: timm.create_model('hf-hub:me/net', pretrained=True)" in said.out
    assert 'model.safetensors: 100%' in said.err  # the client's progress bar

    torch.save([x for x, _ in expected], tmp_path / 'x.pt')
    image = sorted((image_folder / 'validation').rglob('*.png'))[0]
    start = python if (model, ema) == ('allconvnet', 'none') else warm.run_script
    name = 'hf-hub:me/net'
    done = start(FOLDER / 'load_pushed.py', name, tmp_path / 'x.pt', image, tmp_path / 'out.pt')
    assert done.returncode == 0, done.stderr
    home = 'timm.models' if model == 'test_resnet' else 'timm_molly.models'
    assert done.stdout.startswith(home)
    assert str(list(CLASSES)) in done.stdout
    loaded = torch.load(tmp_path / 'out.pt')
    for logits, (_, trained_logits) in zip(loaded['logits'], expected, strict=True):
        assert torch.equal(logits, trained_logits)
    # The training normalised bytes; a transform normalises numbers in [0, 1].
    torch.testing.assert_close(loaded['image'], expected[0][0][0], rtol=1e-5, atol=1e-5)

    config = json.loads(head(hub)['config.json'])
    assert config['timm_molly'].get('ema', False) is (ema == 'taken')
    assert ('validation' in config['timm_molly']) is (ema != 'left')  # train.py's figures are of the average


OTHERS = {
    'norm settings': '--model test_efficientnet --bn-eps 0.01 --bn-momentum 0.3',
    'global pool': '--gp max',
    'model arguments': '--model test_vit --model-kwargs img_size=32 num_heads=2',
    'one channel': '--in-chans 1 --mean 0.4 --std 0.2',
    'split norms': '--aug-splits 3 --jsd-loss --split-bn',
    'input size': '--model allconvnet.cifar100 --input-size 3 40 24',
}


@pytest.mark.parametrize('name', OTHERS)
def test_what_train_py_gave_to_the_model_comes_with_it(train, tmp_path, name):
    options = OTHERS[name]
    folder, batches = train(options)
    assert push(folder, '--dry-run', '-o', tmp_path / 'out') == 0
    model = ours = timm_molly.load(tmp_path / 'out').model
    if timm_reads_folders():
        model = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for x, logits in batches:
                assert torch.equal(model(x), logits)
                assert torch.equal(ours(x), logits)
    finally:
        torch.set_num_threads(threads)
    config = timm.data.resolve_model_data_config(model)
    assert tuple(config['input_size']) == tuple(batches[0][0].shape[1:])
    assert (config['interpolation'], config['crop_pct'], config['crop_mode']) == ('bilinear', 0.8, 'center')
    assert model.pretrained_cfg['pool_size'] is None  # which is of another size
    channels = config['input_size'][0]
    assert tuple(config['mean']) == (MEAN if channels == 3 else (0.4,))
    assert tuple(config['std']) == (STD if channels == 3 else (0.2,))


@pytest.fixture(scope='module')
def reported(trained, image_folder, tmp_path_factory):
    """A report on the run's weights."""
    folder = tmp_path_factory.mktemp('report')
    flags = f'--data-dir {image_folder} --model test_resnet --num-classes 3 --img-size 32 {IMAGES} -j 0 -b 12'
    chosen = '--corruptions fog pixelate gaussian_blur --severities 1 3'
    checkpoint = f'--checkpoint {trained}/model_best.pth.tar'
    assert main(['validate', *f'{flags} {chosen} {checkpoint} -o {folder}'.split()]) == 0
    return folder


def test_a_training_knows_the_names_of_its_classes_where_their_images_are(trained, tmp_path):
    assert timm_molly.load(trained).label_names == list(CLASSES)
    moved = shutil.copytree(trained, tmp_path / 'moved')
    settings = yaml.safe_load((moved / 'args.yaml').read_text())
    checkpoint = torch.load(moved / 'model_best.pth.tar', weights_only=False)
    checkpoint['args'].data_dir = settings['data_dir'] = str(tmp_path / 'elsewhere')
    torch.save(checkpoint, moved / 'model_best.pth.tar')
    (moved / 'args.yaml').write_text(yaml.safe_dump(settings))
    assert timm_molly.load(moved).label_names is None


def test_everything_comes_back(trained, reported, hub, image_folder):
    assert push(trained, *WRITER, '--report', reported) == 0
    files = head(hub)
    assert set(files) == {
        '.gitattributes',
        *('README.md', 'config.json', 'model.safetensors', 'args.yaml', 'report.json'),
        *(f'figures/{name}.png' for name in ('error-by-severity', 'reliability', 'heat-map')),
    }
    assert files['args.yaml'] == (trained / 'args.yaml').read_bytes()
    assert files['report.json'] == (reported / 'report.json').read_bytes()
    assert len(hub.repos['me/net'].refs['main']) == 2  # the initial commit, and one for all

    loaded = timm_molly.load('me/net')
    assert loaded.molly == MollyConfig()
    assert len(repr(loaded)) < 400  # in a notebook, which shows it
    assert '3 classes' in repr(loaded)
    assert loaded.report.to_dict() == json.loads((reported / 'report.json').read_text())
    assert loaded.label_names == list(CLASSES)
    checkpoint = torch.load(trained / 'model_best.pth.tar', weights_only=False)
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, checkpoint['state_dict'][name])
    assert not loaded.model.training
    image = Image.open(next((image_folder / 'validation').rglob('*.png'))).convert('RGB')
    x = loaded.transform(image)
    pixels = np.asarray(image.resize((40, 40), Image.Resampling.BILINEAR).crop((4, 4, 36, 36)), float) / 255
    np.testing.assert_allclose(x.permute(1, 2, 0).numpy(), (pixels - MEAN) / STD, atol=1e-5)


def test_a_model_trained_without_molly(train, tmp_path):
    folder, _ = train('--aa rand-m9')
    assert push(folder, '--dry-run', '-o', tmp_path / 'out') == 0
    loaded = timm_molly.load(tmp_path / 'out')
    assert loaded.molly is None
    assert loaded.report is None
    card = (tmp_path / 'out' / 'README.md').read_text()
    assert 'without mollification' in card
    assert 'heinonen' not in card
    assert 'Robustness and calibration were not measured' in card


def test_fine_tuning_from_the_hub_and_pushing_again(train, trained, hub, tmp_path):
    assert push(trained, *WRITER) == 0
    folder, batches = train('--model hf-hub:me/net --pretrained --lr 0.02')
    assert push(folder, *WRITER) == 0
    assert len(hub.repos['me/net'].refs['main']) == 3
    first, second = (commit.files for commit in hub.repos['me/net'].refs['main'][1:])
    assert first['model.safetensors'] != second['model.safetensors']
    assert json.loads(second['config.json'][0])['architecture'] == 'test_resnet'
    assert json.loads(second['config.json'][0])['timm_molly']['base_model'] == 'me/net'
    assert ModelCard(second['README.md'][0].decode()).data.base_model == 'me/net'
    model = timm.create_model('hf-hub:me/net', pretrained=True, cache_dir=tmp_path / 'cache').eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(batches[0][0]), batches[0][1])


def test_a_second_push_of_the_same_changes_nothing(trained, hub, capsys):
    assert push(trained, *WRITER) == 0
    assert push(trained, *WRITER) == 0
    assert 'me/net is up to date' in capsys.readouterr().out
    assert len(hub.repos['me/net'].refs['main']) == 2


def test_files_of_an_earlier_push_that_are_no_longer_true_go(trained, reported, hub):
    assert push(trained, *WRITER, '--report', reported) == 0
    head_files = hub.repos['me/net'].refs['main'][-1].files
    head_files['notes.txt'] = head_files['figures/photo.png'] = (b'by hand', False)
    assert push(trained, *WRITER) == 0
    assert set(head(hub)) == {
        *('.gitattributes', 'README.md', 'config.json', 'model.safetensors', 'args.yaml'),
        *('notes.txt', 'figures/photo.png'),
    }


def test_a_card_that_a_person_edited_is_kept_unless_asked(trained, reported, hub, capsys):
    assert push(trained, *WRITER) == 0
    generated = head(hub)['README.md']
    files = hub.repos['me/net'].refs['main'][-1].files
    for edited in (generated.replace(b'## Limits', b'## My limits'), b'\xff\xfe'):
        files = hub.repos['me/net'].refs['main'][-1].files
        files['README.md'] = (edited, False)
        capsys.readouterr()
        assert push(trained, *WRITER, '--report', reported) == 0
        assert head(hub)['README.md'] == edited
        assert 'README.md was left as it is' in capsys.readouterr().out
        assert 'report.json' in head(hub)
    assert push(trained, *WRITER) == 0
    assert 'figures/heat-map.png' in head(hub)  # which the card shows
    assert 'report.json' not in head(hub)
    assert push(trained, *WRITER, '--report', reported, '--overwrite-card') == 0
    assert is_generated(head(hub)['README.md'].decode())
    assert push(trained, *WRITER) == 0  # one that nobody edited is replaced
    assert head(hub)['README.md'] == generated
    assert 'figures/heat-map.png' not in head(hub)


def test_private_branch_and_pull_request(trained, hub, capsys):
    assert push(trained, *WRITER, '--private') == 0
    assert hub.repos['me/net'].private
    assert push(trained, *WRITER, '--revision', 'next', '--license', 'mit') == 0
    assert "'hf-hub:me/net@next'" in capsys.readouterr().out
    assert b'license: mit' in head(hub, ref='next')['README.md']
    assert b'license: mit' not in head(hub)['README.md']
    assert push(trained, *WRITER, '--create-pr', '--license', 'mit') == 0
    assert capsys.readouterr().out == f'opened {hub.url}/me/net/discussions/1\n'
    assert b'license: mit' in head(hub, ref='refs/pr/1')['README.md']
    assert len(hub.repos['me/net'].refs['main']) == 2
    words = 'me/net has no branch nope to open a pull request for'
    refused(capsys, trained, *WRITER, '--create-pr', '--revision', 'nope', words=words)
    assert set(hub.repos['me/net'].refs) == {'main', 'next', 'refs/pr/1'}
    with pytest.raises(ValueError, match='shows no such repository to this token, so nothing was loaded'):
        timm_molly.load('me/net')
    assert timm_molly.load('me/net', token='hf_reader').molly == MollyConfig()
    assert timm_molly.load('me/net', revision='next', token='hf_reader').molly == MollyConfig()


def test_a_public_repository_gets_nothing_that_should_be_private(trained, hub, capsys):
    assert push(trained, *WRITER) == 0
    refused(capsys, trained, *WRITER, '--private', '--license', 'mit', words='me/net is public')
    assert len(hub.repos['me/net'].refs['main']) == 2


def test_a_dry_run_writes_what_is_pushed_and_asks_nobody(trained, reported, hub, tmp_path, capsys):
    given = ['--report', reported, '--license', 'apache-2.0', '--dataset-id', 'me/shapes']
    assert push(trained, '--dry-run', '-o', tmp_path / 'out', *given) == 0
    assert push(tmp_path / 'out', '--dry-run') == 0
    assert hub.requests == []
    assert 'is sound; would push README.md, config.json' in capsys.readouterr().out
    assert push(tmp_path / 'out', *WRITER) == 0
    from_folder = head(hub)
    hub.clear()
    assert push(trained, *WRITER, *given) == 0
    assert head(hub) == from_folder
    written = {
        str(path.relative_to(tmp_path / 'out')): path for path in (tmp_path / 'out').rglob('*') if path.is_file()
    }
    assert {name: path.read_bytes() for name, path in written.items()} == {
        name: content for name, content in from_folder.items() if name != '.gitattributes'
    }
    assert {path.stat().st_mode & 0o777 for path in written.values()} == {0o644}


def test_the_logged_in_token_is_taken(trained, hub, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', 'hf_writer')
    assert push(trained) == 0


def test_without_timm_molly_timm_says_what_to_install(train, hub, python):
    folder, _ = train('--model allconvnet')
    assert push(folder, *WRITER) == 0
    code = 'import timm; timm.create_model("hf-hub:me/net", pretrained=True)'
    done = python('-c', code, env={'TIMM_MOLLY_AUTOLOAD': '0'})
    assert done.stderr.splitlines()[-1] == 'RuntimeError: Unknown model (allconvnet.install_timm-molly)'
    card = head(hub)['README.md'].decode()
    assert 'pip install timm timm-molly' in card
    assert 'Unknown model (allconvnet.install_timm-molly)' in card


def test_cards_are_made_again_from_their_report(trained, reported, hub, tmp_path, capsys):
    out = tmp_path / 'models' / 'net'
    assert push(trained, '--report', reported, '--dry-run', '-o', out) == 0
    before = {path: path.read_bytes() for path in out.rglob('*') if path.is_file()}
    capsys.readouterr()
    assert main(['card', str(out)]) == 0
    assert capsys.readouterr().out == f'{out}: nothing changed or removed\n'
    assert {path: path.read_bytes() for path in out.rglob('*') if path.is_file()} == before

    (out / 'report.json').unlink()
    assert main(['card', str(out)]) == 0
    assert 'README.md, figures/error-by-severity.png' in capsys.readouterr().out
    assert not list(out.rglob('*.png'))
    assert 'were not measured' in (out / 'README.md').read_text()
    (out / 'report.json').write_bytes(before[out / 'report.json'])
    assert main(['card', str(out)]) == 0
    assert {path: path.read_bytes() for path in out.rglob('*') if path.is_file()} == before

    with (out / 'README.md').open('a') as file:
        file.write('by hand')
    assert main(['card', str(out)]) == 2
    assert 'was edited by hand; --overwrite-card' in capsys.readouterr().err
    assert main(['card', str(out), '--overwrite-card']) == 0
    assert {path: path.read_bytes() for path in out.rglob('*') if path.is_file()} == before


def test_models_are_listed_with_their_figures(trained, reported, tmp_path, capsys):
    for name, given in (('measured', ['--report', reported]), ('plain', [])):
        assert push(trained, '--dry-run', '-o', tmp_path / 'models' / name, *given) == 0
    capsys.readouterr()
    assert main(['models', str(tmp_path / 'models')]) == 0
    _, measured, plain = capsys.readouterr().out.splitlines()
    report = json.loads((reported / 'report.json').read_text())
    clean, mean = report['clean'], report['summary']['mean']
    expected = [
        *('measured', 'test_resnet', '3', 'molly'),
        *(f'{100 * clean["error"]:.1f}', f'{clean["nll"]:.3f}', f'{clean["ece"]:.3f}'),
        *(f'{100 * mean["error"]:.1f}', f'{mean["nll"]:.3f}', f'{mean["ece"]:.3f}'),
    ]
    assert measured.split() == expected
    assert plain.split() == ['plain', 'test_resnet', '3', 'molly', *['-'] * 6]
    assert main(['models', str(tmp_path)]) == 2
    assert 'has no models' in capsys.readouterr().err
