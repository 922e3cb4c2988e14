"""The pages: short enough, every link leads somewhere, every command is one, every example runs."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
import yaml
from timm.data import create_dataset

import timm_molly
from timm_molly import robustness
from timm_molly.cli import COMMANDS, _parser
from timm_molly.hub.make import timm_reads_folders

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ('README.md', 'CONTRIBUTING.md')]
PAGES += [page for folder in ('timm_molly', 'recipes', 'hub_cards') for page in sorted((ROOT / folder).rglob('*.md'))]
each_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def test_the_readme_is_read_in_five_minutes():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 150


def anchors(page):
    """What a page's heads are linked by."""
    heads = re.findall(r'^#+ (.*)$', page.read_text(), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', head.lower()).replace(' ', '-') for head in heads}


@each_page
def test_every_link_leads_somewhere(page):
    text = re.sub(r'```.*?```', '', page.read_text(), flags=re.DOTALL)
    for link in re.findall(r'\]\(([^)\s]+)\)', text):
        if not re.match(r'https?:', link):
            path, _, anchor = link.partition('#')
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@each_page
def test_every_command_takes_what_the_page_gives_it(page):
    parser = _parser({name: importlib.import_module(f'timm_molly.cli.{name}') for name in COMMANDS})
    blocks = re.findall(r'^ *```(?:bash)?\n(.*?)^ *```', page.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.replace('\\\n', ' ').splitlines()]
    for line in lines:
        if line.startswith('timm-molly '):
            words = [word for word in shlex.split(line, comments=True)[1:] if word != '...']
            assert parser.parse_args(words).command == words[0], line


def blocks(page):
    return re.findall(r'^```python\n(.*?)^```', page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def training(tmp_path, image_folder):
    """A training's folder, of a small network, and a report on it: what the examples call by these names."""
    torch.manual_seed(0)
    images = create_dataset('', root=str(image_folder), split='validation')
    model = timm.create_model('test_resnet', num_classes=3)
    settings = {
        'model': 'test_resnet',
        'num_classes': 3,
        'img_size': 64,
        'mean': [0.5] * 3,
        'std': [0.5] * 3,
        'aa': 'molly',
    }
    for name in ('molly', 'run'):
        folder = tmp_path / 'output' / 'train' / name
        folder.mkdir(parents=True)
        torch.save({'state_dict': model.state_dict(), 'arch': 'test_resnet', 'epoch': 0}, folder / 'model_best.pth.tar')
        (folder / 'args.yaml').write_text(yaml.safe_dump(settings))
        report = timm_molly.evaluate(
            timm_molly.load(folder), images, robustness.Corruptions(['contrast'], [1]), workers=0, progress=False
        )
        report.save(tmp_path / 'output' / 'validate' / name)
    return tmp_path


# Those of cards have no owner yet; the cards of pushed networks are run in tests/hub.
@pytest.mark.slow
@pytest.mark.parametrize(
    'page',
    [page for page in PAGES if blocks(page) and page.parents[1].name != 'hub_cards'],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_example_of_python_runs(page, training, hub, image_folder, monkeypatch):
    if 'local-dir:' in page.read_text() and not timm_reads_folders():
        pytest.skip('timm unpickles safetensors of local-dir: models before 1.0.26')
    create = timm.create_model

    def create_model(name, pretrained=False, **options):
        if name != 'resnet50':
            return create(name, pretrained, **options)
        model = create('test_resnet', num_classes=3)
        model.pretrained_cfg |= {'input_size': (3, 64, 64), 'mean': (0.5,) * 3, 'std': (0.5,) * 3}
        return model

    monkeypatch.setattr(timm, 'create_model', create_model)
    monkeypatch.setenv('HF_TOKEN', 'hf_writer')
    monkeypatch.chdir(training)
    (training / 'hub_cards').symlink_to(ROOT / 'hub_cards')
    (training / 'path' / 'to').mkdir(parents=True)
    (training / 'path' / 'to' / 'images').symlink_to(image_folder)
    (training / 'pytorch-image-models').mkdir()
    (training / 'pytorch-image-models' / 'train.py').symlink_to(ROOT / 'tests' / 'support' / 'train_script.py')
    small = {'model': 'test_resnet', 'num_classes': 3, 'img_size': 32, 'batch_size': 24, 'epochs': 1, 'workers': 1}
    train = {**small, 'device': 'cpu', 'data_dir': str(image_folder)}
    grid = {
        'train': train,
        'validate': {'corruptions': 'contrast', 'severities': 1},
        'recipes': {'plain': {}},
        'grid': [{}],
    }
    (training / 'mine.yaml').write_text(yaml.safe_dump(grid))
    timm_molly.push('output/train/molly', 'me/resnet50_molly')
    dataset = create_dataset('', root=str(image_folder), split='validation')
    batch = torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    world = {
        'torch': torch,
        'timm': timm,
        'timm_molly': timm_molly,
        'dataset': dataset,
        'image': dataset[0][0],
        'loader': [batch],
        'device': torch.device('cpu'),
        'model': torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3)),
    }
    if 'other]' in page.read_text():
        world['other'] = timm_molly.evaluate(create_model('resnet50'), dataset, progress=False)
    for block in blocks(page):
        exec(compile(block, str(page), 'exec'), world)
