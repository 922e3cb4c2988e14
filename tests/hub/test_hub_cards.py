"""The published models: each loads, its files belong together, and its card is what its report makes of it."""

import json
import shutil
from pathlib import Path

import pytest
import skimage.data
import timm
import torch
from PIL import Image
from support import hub_images

import timm_molly
from timm_molly.cli import main
from timm_molly.hub.make import make_again, timm_reads_folders

FOLDER = Path(__file__).parents[2] / 'hub_cards'
MODELS = sorted(path.parent for path in FOLDER.glob('*/config.json'))
names = pytest.mark.parametrize('folder', MODELS, ids=lambda folder: folder.name)
needs_local_dir = pytest.mark.skipif(
    not timm_reads_folders(), reason='timm unpickles safetensors of local-dir: models before 1.0.26'
)


@names
def test_card_and_config_are_what_report_and_weights_make_of_them(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / folder.name)
    changed = make_again(copy)
    # Pictures are the same but for what another matplotlib makes of them.
    assert [name for name in changed if not name.startswith('figures/')] in ([], ['config.json'])
    before, after = (json.loads((path / 'config.json').read_text()) for path in (folder, copy))
    for key in ('architecture', 'num_classes', 'label_names', 'timm_molly'):  # the rest depends on timm's version
        assert before.get(key) == after.get(key)
    for key in ('mean', 'std', 'input_size', 'interpolation', 'crop_pct', 'crop_mode'):
        assert before['pretrained_cfg'][key] == after['pretrained_cfg'][key]


@needs_local_dir
@names
def test_timm_and_we_load_the_same(folder):
    ours = timm_molly.load(folder)
    model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    x = torch.randn(2, *ours.model.pretrained_cfg['input_size'], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model(x), ours.model(x))
    assert ours.report.data.num_classes == model.num_classes == len(ours.label_names)


@names
def test_it_is_small_and_listed(folder, capsys, monkeypatch):
    assert (folder / 'model.safetensors').stat().st_size <= 5_000_000
    assert f'[{folder.name}]({folder.name}/README.md)' in (FOLDER / 'README.md').read_text()
    monkeypatch.chdir(FOLDER.parent)
    assert main(['models', 'hub_cards']) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(f'{folder.name} '))
    report = json.loads((folder / 'report.json').read_text())
    assert f'{report["clean"]["nll"]:.3f}' in row
    assert f'{report["summary"]["mean"]["nll"]:.3f}' in row


@needs_local_dir
@pytest.mark.parametrize('name', json.loads(hub_images.RECORDS.read_text()))
def test_it_is_the_file_and_as_good_as_recorded_on_a_handful_of_images(name):
    record = json.loads(hub_images.RECORDS.read_text())[name]
    found = hub_images.measure(FOLDER / name, hub_images.FOLDER / record['images'])
    assert found['sha256'] == record['sha256']
    # Another CPU rounds differently, which moves an image on the edge between two classes.
    assert abs(found['correct'] - record['correct']) <= 1
    report = json.loads((FOLDER / name / 'report.json').read_text())
    assert found['correct'] / found['of'] == pytest.approx(1 - report['clean']['error'], abs=0.12)


@pytest.mark.parametrize(('name', 'low', 'high'), [('crop_flip_cifar10', 0.5, 1.0), ('molly_cifar10', 0.1, 0.2)])
def test_what_the_networks_say_of_a_photo_and_of_noise(name, low, high):
    network = timm_molly.load(FOLDER / f'cifar_resnet20.{name}')
    x = network.transform(Image.fromarray(skimage.data.chelsea()))[None]
    noise = torch.randn(64, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert network.label_names[network.model(x).argmax()] == 'cat'
        said = network.model(noise).softmax(1).amax(1)
    assert low < said.mean() < high


def test_there_are_models():
    assert MODELS
