"""The picture of the first batch: what it shows is what the network gets, and nothing else changes."""

import logging
from types import SimpleNamespace

import pytest
import torch
from timm.data import AugMixDataset, create_dataset, create_loader

from timm_molly import Mollify, functional, register
from timm_molly.errors import UserError
from timm_molly.plugin import batch as module
from timm_molly.plugin.script import of_script

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
GAMMA = {'x': lambda t: 0.0, 'n': functional.noise_gamma, 'b': functional.blur_gamma, 'e': lambda t: 1.0}


@pytest.fixture(autouse=True)
def registered(monkeypatch, tmp_path):
    register()
    monkeypatch.setenv('TIMM_MOLLY_BATCH', 'batch.png')
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn: pictures, captions, roles."""
    found = []
    draw = module._drawn
    monkeypatch.setattr(module, '_drawn', lambda *what: (found.append(what), draw(*what))[1])
    return found


def make(image_folder, aa='molly', batch_size=12, **options):
    dataset = create_dataset('', root=str(image_folder), split='train')
    if splits := options.get('num_aug_splits'):
        dataset = AugMixDataset(dataset, num_splits=splits)
    options = {
        'is_training': True,
        'num_workers': 1,
        'device': torch.device('cpu'),
        'mean': MEAN,
        'std': STD,
        **options,
    }
    return create_loader(dataset, input_size=(3, 32, 32), batch_size=batch_size, auto_augment=aa, **options)


def train(loader, args=None, output_dir=None):
    """As train.py's function of that name: it knows its flags and its folder."""
    return [(x.clone(), target) for x, target in loader]


@pytest.mark.parametrize('options', [{}, {'use_prefetcher': False}, {'num_aug_splits': 2, 're_prob': 0.5}])
def test_the_picture_is_the_batch_and_its_labels(image_folder, drawn, tmp_path, options):
    folder = tmp_path / 'run'
    folder.mkdir()
    batches = train(make(image_folder, 'molly-mxnbe-k2', **options), SimpleNamespace(num_classes=3), str(folder))
    (pictures, said, roles), x, target = drawn[0], *batches[0]
    assert len(drawn) == 1 < len(batches)
    assert (folder / 'batch.png').stat().st_size > 5000
    assert len(pictures) == len(said) == len(roles) == min(24, len(x))
    for picture, image, text, role, gamma in zip(pictures, x, said, roles, target.gamma, strict=False):
        shown = image.permute(1, 2, 0) * torch.tensor(STD) + torch.tensor(MEAN)
        torch.testing.assert_close(picture, shown.clamp(0, 1))
        name, kept = text.split('\n')
        assert float(kept.removeprefix('confidence ')) == pytest.approx(1 - 2 / 3 * gamma.item(), abs=0.006)
        assert name.startswith({'x': 'clean', 'n': 'noise', 'b': 'blur', 'e': 'nothing but noise'}[role])
        if role in 'nb':
            t = torch.tensor(float(name.partition('t = ')[2]))
            assert (GAMMA[role](t) ** 2).item() == pytest.approx(gamma.item(), abs=0.02)


def test_training_is_the_same_with_it_and_without(image_folder, monkeypatch):
    batches = []
    for name in ('batch.png', ''):
        monkeypatch.setenv('TIMM_MOLLY_BATCH', name)
        torch.manual_seed(0)
        batches.append(train(make(image_folder)))
    for (x, target), (same, labels) in zip(*batches, strict=True):
        assert torch.equal(x, same)
        assert torch.equal(target.gamma, labels.gamma)


def test_weights_are_said_and_what_labels_keep_where_no_one_knows_the_classes(image_folder, drawn):
    train(make(image_folder, 'molly-w'))
    train(make(image_folder, 'molly-mb'))
    assert all('\nweight ' in text for text in drawn[0][1])
    assert all('\nlabel keeps ' in text for text in drawn[1][1])


def test_label_smoothing_of_the_script_is_counted(image_folder, drawn):
    train(make(image_folder, 'molly-mxb'), SimpleNamespace(num_classes=3, smoothing=0.3))
    assert 'clean\nconfidence 0.80' in drawn[0][1]


def test_an_absolute_path_is_taken_as_it_is(image_folder, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv('TIMM_MOLLY_BATCH', str(tmp_path / 'mine.svg'))
    train(make(image_folder), output_dir=str(tmp_path / 'elsewhere'))
    assert (tmp_path / 'mine.svg').is_file()
    assert f'Drew the first batch: {tmp_path / "mine.svg"}' in caplog.text


def test_what_cannot_be_drawn_is_said_before_training_and_stops_none(image_folder, monkeypatch, caplog):
    train(make(image_folder), output_dir='a folder that is gone')
    assert 'The first batch was not drawn: no folder' in caplog.text
    monkeypatch.setenv('TIMM_MOLLY_BATCH', 'batch.exe')
    with pytest.raises(UserError, match=r"TIMM_MOLLY_BATCH must be a \.png, \.pdf or \.svg file, got 'batch\.exe'"):
        make(image_folder)
    monkeypatch.setenv('TIMM_MOLLY_BATCH', 'batch.png')
    monkeypatch.setitem(__import__('sys').modules, 'matplotlib', None)
    with pytest.raises(UserError, match=r'TIMM_MOLLY_BATCH needs more: pip install "timm-molly\[plot\]"'):
        make(image_folder)


@pytest.mark.parametrize('aa', ['rand-m9', None])
def test_a_training_without_molly_says_that_it_draws_none(aa, image_folder, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    train(make(image_folder, aa), output_dir=str(tmp_path))
    assert 'TIMM_MOLLY_BATCH is set, but --aa has no molly: no picture of the first batch' in caplog.text
    assert not (tmp_path / 'batch.png').exists()
    caplog.clear()
    make(image_folder, aa, is_training=False)
    monkeypatch.delenv('TIMM_MOLLY_BATCH')
    make(image_folder, aa)
    assert 'TIMM_MOLLY_BATCH' not in caplog.text


def test_of_several_processes_the_first_draws(monkeypatch):
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    for rank in (1, 0):
        monkeypatch.setattr(torch.distributed, 'get_rank', lambda rank=rank: rank)
        assert (module.BatchPicture.asked_for(Mollify(), MEAN, STD) is None) == (rank == 1)


def test_naflex_images_are_put_together(image_folder, drawn, monkeypatch):
    data = pytest.importorskip('timm.data.naflex_loader')
    loader = data.create_naflex_loader(
        create_dataset('', root=str(image_folder), split='train'),
        patch_size=8,
        train_seq_lens=(16,),
        max_seq_len=16,
        batch_size=8,
        is_training=True,
        auto_augment='molly',
        num_workers=1,
        device=torch.device('cpu'),
        mean=MEAN,
        std=STD,
    )
    (batch, _), *_ = loader
    picture = drawn[0][0][0]
    patch = batch['patches'][0, 0].reshape(8, 8, 3)  # the first patch is the upper left corner
    torch.testing.assert_close(picture[:8, :8], (patch * torch.tensor(STD) + torch.tensor(MEAN)).clamp(0, 1))
    assert picture.shape[:2] == tuple(8 * (batch['patch_coord'][0][batch['patch_valid'][0]].amax(0) + 1).numpy())


def test_the_nearest_name_of_a_function_that_is_not_ours_is_found():
    def script(args, output_dir):
        return inner()

    def inner():
        args = 'nearer'  # noqa: F841
        return of_script('args'), of_script('output_dir'), of_script('a name that nobody has')

    assert script('farther', 'run') == ('nearer', 'run', None)


def test_the_scripts_flags_are_found_and_not_our_own_arguments(image_folder, caplog):
    def script(args):
        return make(image_folder)

    caplog.set_level(logging.INFO)
    script(SimpleNamespace(smoothing=0.25))
    assert 'label smoothing 0.25 (--smoothing 0 for none' in caplog.text


@pytest.mark.parametrize(
    ('flags', 'noted'),
    [
        ({'bce_loss': True}, True),
        ({'bce_loss': True, 'smoothing': 1e-9}, False),
        ({'bce_loss': True, 'cutmix': 1.0}, False),
        ({'bce_loss': True, 'jsd_loss': True}, False),  # which goes before
        ({'bce_loss': True, 'loss': None}, False),  # a train script with another way to choose
        ({'bce_loss': False}, False),
        ({}, False),
    ],
)
def test_a_loss_that_the_script_drops_is_noted(image_folder, caplog, flags, noted):
    def script(args):
        return make(image_folder)

    caplog.set_level(logging.INFO)
    script(SimpleNamespace(**{'smoothing': 0.0, 'mixup': 0.0, **flags}))
    assert ('takes cross-entropy in place of --bce-loss; --smoothing 1e-9 keeps it' in caplog.text) == noted
    assert 'label smoothing 1e-09' not in caplog.text


@pytest.mark.parametrize(('num_classes', 'noted'), [(1000, True), (2, True), (3, False)])
@pytest.mark.parametrize('num_aug_splits', [0, 2])
def test_a_network_of_other_classes_than_the_images_is_noted(image_folder, caplog, num_classes, noted, num_aug_splits):
    def script(args):
        return make(image_folder, num_aug_splits=num_aug_splits)

    caplog.set_level(logging.INFO)
    script(SimpleNamespace(smoothing=0.0, num_classes=num_classes))
    note = f'the images have 3 classes, the network {num_classes}: is --num-classes 3 missing?'
    assert (note in caplog.text) == noted
