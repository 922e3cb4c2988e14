"""`timm_molly.evaluate` from Python: any module, any data set, and the same as the command line."""

import importlib

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_dataset
from torch import nn

import timm_molly
from timm_molly import Classifier, UserError, robustness
from timm_molly.cli import main
from timm_molly.robustness import Corrupt
from timm_molly.robustness.loading import Loader

COMMON = robustness.common(severities=(2,))


def network(k=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 15 * 15, k))


def classifier(model=None):
    return Classifier(model or network(), (3, 32, 32), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), i % 3) for i in range(12)]


def measure(model, data, conditions=COMMON, **how):
    return timm_molly.evaluate(model, data, conditions, workers=0, progress=False, **how)


def test_there_are_no_more_workers_than_cores(pictures, monkeypatch):
    module, asked = importlib.import_module('timm_molly.robustness.evaluate'), []

    def loader(plan, batch_size, workers, *rest):
        asked.append(workers)
        return Loader(plan, batch_size, 0, *rest)

    monkeypatch.setattr(module, 'Loader', loader)
    monkeypatch.setattr(module, 'cores', lambda: 2)
    for workers in (1, 9):
        timm_molly.evaluate(classifier(), pictures, COMMON, workers=workers, progress=False)
    assert asked == [1, 2]


@torch.inference_mode()
def error_of(model, images, labels):
    x = torch.stack([torch.from_numpy(np.asarray(image) / 255.0) for image in images]).permute(0, 3, 1, 2)
    x = (x - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor([0.2, 0.3, 0.25])[:, None, None]
    return (model.eval()(x.float()).argmax(1).numpy() != labels).mean()


def test_the_figures_are_those_of_images_corrupted_one_by_one(pictures):
    model = network()
    report = measure(classifier(model), pictures)
    labels = np.array([label for _, label in pictures])
    assert report.clean.error == pytest.approx(error_of(model, [image for image, _ in pictures], labels))
    for name in ('fog', 'pixelate', 'gaussian_noise'):
        corrupted = [Corrupt(name, 2, seed=42)(image, i) for i, (image, _) in enumerate(pictures)]
        assert report[name, 2].error == pytest.approx(error_of(model, corrupted, labels))
    assert report.mean.error == pytest.approx(np.mean([report[name, 2].error for name in report.corruptions]))


def test_lists_arrays_and_pil_images_are_the_same_data(pictures):
    first = measure(classifier(), pictures)
    assert measure(classifier(), [(Image.fromarray(image), label) for image, label in pictures]).cells == first.cells

    class Data:
        def __len__(self):
            return len(pictures)

        def __getitem__(self, index):
            return pictures[index]

    report = measure(classifier(), Data())
    assert report.cells == first.cells
    assert report.data.dataset == 'Data'


def test_a_timm_model_is_taken_as_it_is(pictures):
    report = measure(timm.create_model('test_resnet', num_classes=3), pictures[:3])
    assert report.model.input_size == (3, 160, 160)
    assert report.benchmark.table == 'imagenet-c'


def test_it_gives_what_the_command_gives_to_the_last_bit(flags, image_folder, checkpoint, tmp_path):
    arguments = [*flags, '--corruptions', 'fog', 'gaussian_noise', '--device', 'cpu']
    assert main(['validate', *arguments, '-o', str(tmp_path / 'out')]) == 0
    saved = robustness.Report.load(tmp_path / 'out')
    from torchvision.datasets import ImageFolder

    preparation = {'img_size': 32, 'mean': (0.4, 0.5, 0.6), 'std': (0.2, 0.3, 0.25), 'interpolation': 'bicubic'}
    loaded = Classifier.from_run(checkpoint, 'test_resnet', use_ema=False, num_classes=3, **preparation)
    conditions = robustness.Corruptions(('fog', 'gaussian_noise'))
    report = measure(loaded, ImageFolder(image_folder / 'validation'), conditions, batch_size=5)
    assert report.cells == saved.cells
    assert report.model == saved.model


def test_the_module_is_left_as_it_was(pictures):
    model = network()
    model.train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure(classifier(model), pictures, device='cpu')
    assert [part.training for part in model] == [True, False, True, True, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_cache_goes_on_and_notices_other_images_weights_and_code(pictures, tmp_path):
    report = measure(classifier(), pictures, cache=tmp_path)
    (tmp_path / 'cells' / 'fog-2.json').unlink()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'cells').iterdir()}
    assert measure(classifier(), pictures, cache=tmp_path) == report
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(UserError, match=r'holds another measurement .*sha256'):
        measure(classifier(network(seed=1)), pictures, cache=tmp_path)
    with pytest.raises(UserError, match=r'holds another measurement .*data'):
        measure(classifier(), [(image + 1, label) for image, label in pictures], cache=tmp_path)
    with pytest.raises(UserError, match=r'holds another measurement .*seed'):
        measure(classifier(), pictures, robustness.common(seed=1), cache=tmp_path)
    colder = network()
    colder.register_forward_hook(lambda module, x, logits: logits / 3)
    with pytest.raises(UserError, match=r'holds another measurement .*its logits are others'):
        measure(classifier(colder), pictures, cache=tmp_path)


def test_a_quick_measurement_goes_on_to_a_whole_one(pictures, tmp_path):
    quick = measure(classifier(), pictures, robustness.common(severities=(3,)), cache=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'cells').iterdir()}
    whole = measure(classifier(), pictures, robustness.common(), cache=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (len(quick.cells), len(whole.cells)) == (16, 76)
    assert whole == measure(classifier(), pictures, robustness.common())
    assert measure(classifier(), pictures, robustness.Corruptions(('fog',), (3,)), cache=tmp_path).mean.error == (
        whole['fog', 3].error
    )


@pytest.mark.parametrize('settings', ['[]', '{}', '{"benchmark": 1}'])
def test_damaged_settings_of_a_cache_are_named(settings, pictures, tmp_path):
    (tmp_path / 'settings.json').write_text(settings)
    with pytest.raises(UserError, match=r'settings\.json is damaged .*: delete .*, or choose another --output'):
        measure(classifier(), pictures, cache=tmp_path)


def test_mixed_precision_is_recorded_and_near(pictures):
    exact, mixed = measure(classifier(), pictures), measure(classifier(), pictures, amp=torch.bfloat16)
    assert (exact.model.amp, mixed.model.amp) == (None, 'bfloat16')
    assert mixed.clean.nll == pytest.approx(exact.clean.nll, rel=0.02)
    assert mixed.clean.nll != exact.clean.nll


def test_the_progress_bar_can_be_switched_off(pictures, capsys):
    measure(classifier(), pictures)
    assert capsys.readouterr() == ('', '')
    timm_molly.evaluate(classifier(), pictures, COMMON, workers=0)
    assert 'img' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('data', 'words'),
    [
        ([], 'the data set has no images'),
        (3, 'must give .image, label. by index and have a length, got int'),
        ({'a': 1}, 'by index and have a length, got dict'),
        ([3], r'image 0 of the data set must be \(image, label\), got 3'),
        ([(torch.zeros(3, 32, 32), 0)], 'is a tensor .3, 32, 32.: give PIL images or uint8 arrays'),
        ([(np.zeros((32, 32, 3)), 0)], r'must be uint8 \(H, W, 3\), got float64'),
        ([(np.zeros((32, 32, 4), np.uint8), 0)], r'must be uint8 \(H, W, 3\), got uint8 \(32, 32, 4\)'),
        ([('photo.jpg', 0)], "must be a PIL image or a uint8 array, got 'photo.jpg'"),
        ([(np.zeros((32, 32, 3), np.uint8), 'cat')], "label 0 of the data set must be a whole number, got 'cat'"),
        ([(np.zeros((32, 32, 3), np.uint8), 3)], 'clean has label 3, none of the 3 classes of the model'),
    ],
)
def test_what_is_no_data_set_is_named(data, words):
    with pytest.raises(UserError, match=words):
        measure(classifier(), data)


@pytest.mark.parametrize(
    ('make', 'words'),
    [
        (lambda data: measure(network(), data), 'Sequential does not say how its images are prepared'),
        (lambda data: measure('resnet50', data), 'model must be a torch.nn.Module or a timm_molly.Classifier, got str'),
        (
            lambda data: measure(classifier(nn.Identity()), data),
            r'Identity gives no logits \(B, K\) but \(1, 3, 32, 32\)',
        ),
        (lambda data: measure(classifier(), data, batch_size=0), 'batch_size must be 1 or more, got 0'),
        (lambda data: measure(classifier(), data, batch_size=True), 'batch_size must be 1 or more, got True'),
        (lambda data: measure(classifier(), data, device='abacus'), 'device abacus cannot be used'),
        (lambda data: measure(classifier(), None), 'no data: corruptions on the fly need images'),
        (lambda data: robustness.common(severities=(0,)), r'severities must be some of 1 to 5, got \(0,\)'),
        (lambda data: robustness.common('imagenet'), "table must be one of .*, got 'imagenet'"),
        (lambda data: robustness.common(seed=-1), 'seed must be 0 or more, got -1'),
        (lambda data: robustness.Corruptions(('rain',)), "no corruption 'rain'"),
        (lambda data: robustness.Published('nowhere'), 'no such folder: nowhere'),
        (lambda data: robustness.Mollification('rand-m9'), "'rand-m9' has no molly in it"),
        (lambda data: robustness.Mollification(temperatures=(2,)), 'temperatures must be above 0 and at most 1'),
        (lambda data: measure(classifier(), data, robustness.common('imagenet-c')), 'needs images of 41 pixels'),
        (lambda data: Classifier(network(), (3, 32), (0.5,), (0.5,)), 'input_size must be channels, height and width'),
        (lambda data: Classifier(network(), (3, 32, 32), (0.5, 0.5), (0.5,)), 'mean needs 1 or 3 numbers'),
        (lambda data: Classifier(network(), (3, 32, 32), (0.5,), (0.0,)), 'std needs finite numbers above 0'),
        (lambda data: Classifier(3, (3, 32, 32), (0.5,), (0.5,)), 'model must be a torch.nn.Module, got int'),
        (lambda data: timm_molly.load('no/where/at/all'), 'cannot be the name of a repository'),
    ],
)
def test_what_cannot_be_measured_is_named(make, words, pictures):
    with pytest.raises(UserError, match=words):
        make(pictures)


def test_a_picture_is_classified(pictures):
    p = classifier().predict(Image.fromarray(pictures[0][0]))
    assert p.shape == (3,)
    assert p.sum().item() == pytest.approx(1, abs=1e-6)
    with pytest.raises(UserError, match=r'predict takes a PIL image .* got str'):
        classifier().predict('cat.png')


class Named(list):
    """A data set that names its classes, as torchvision's do."""

    classes = ('cat', 'dog')


@pytest.mark.parametrize('more', [0, 1])
def test_another_number_of_classes_is_noted(pictures, image_folder, caplog, more):
    of_torchvision = Named((image, label % 2) for image, label in pictures)
    of_timm = create_dataset('', root=str(image_folder), split='validation')
    for data, classes in ((of_torchvision, 2), (of_timm, 3), (torch.utils.data.Subset(of_timm, range(6)), 3)):
        caplog.clear()
        measure(classifier(network(classes + more)), data)
        assert (f'the data set names {classes} classes' in caplog.text) == (more > 0)
