import os

import numpy as np
import pytest
import torch
from PIL import Image
from support import corruptions as C
from timm.data import create_transform
from timm.data.dataset import IterableImageDataset
from torch.utils.data import IterableDataset

from timm_molly import Classifier
from timm_molly.robustness import Corruptions, Mollification, Published
from timm_molly.robustness.conditions import TEMPERATURES, Condition
from timm_molly.robustness.images import DatasetImages, Images, TimmImages, open_array, open_dataset
from timm_molly.robustness.loading import Loader

CONFIG = {'input_size': (3, 32, 32), 'mean': (0.0,) * 3, 'std': (1 / 255,) * 3}
STEPS = create_transform(32, is_training=False, use_prefetcher=True, crop_pct=1.0).transforms[:-1]


def classifier(channels=3, side=32):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * side**2, 3))
    return Classifier(network, (channels, side, side), (0.0,), (1 / 255,), interpolation='bilinear')


def on_the_fly(images, names, severities, table, seed, channels=3):
    return Corruptions(names, severities, table, seed).lay_out(images, classifier(channels))[0][1:]


def opened(dataset, mode='RGB'):
    return TimmImages(dataset, mode, 'x', None, {})


class Numbered(Images):
    """Images whose grey level is their index, labels the same."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return Image.fromarray(np.full((32, 32, 3), index, np.uint8)), index


class Stream(IterableDataset):
    transform = None

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        yield from (Numbered(self.count)[i] for i in range(self.count))


def loader(cells, batch_size=4, workers=0):
    return Loader(cells, batch_size, workers, CONFIG, torch.device('cpu'))


@pytest.mark.parametrize('workers', [0, 2])
def test_cells_come_one_after_the_other_whole_and_in_order(workers):
    cells = [Condition(name, 0, Numbered(count), STEPS) for name, count in (('a', 9), ('b', 1), ('c', 4))]
    seen = [
        (cell.name, target.tolist(), x[:, 0, 0, 0].round().int().tolist())
        for cell, x, target in loader(cells, workers=workers)
    ]
    assert [name for name, _, _ in seen] == ['a', 'a', 'a', 'b', 'c']
    assert [target for _, target, _ in seen] == [[0, 1, 2, 3], [4, 5, 6, 7], [8], [0], [0, 1, 2, 3]]
    assert all(target == levels for _, target, levels in seen)


@pytest.mark.parametrize('workers', [0, 1])
def test_nothing_is_read_where_others_claimed_all(workers):
    cell = Condition('a', 0, Numbered(9), STEPS)
    assert list(Loader([cell], 4, workers, CONFIG, torch.device('cpu'), lambda _: False)) == []


@pytest.mark.filterwarnings('ignore:This DataLoader will create')
def test_one_worker_and_many_make_the_same_pictures():
    names = ['glass_blur', 'fog', 'frost', 'snow', 'elastic_transform']
    cells = on_the_fly(Numbered(9), names, [1, 5], 'cifar-c', 3)
    runs = [[(cell.place, x, target) for cell, x, target in loader(cells, 4, workers)] for workers in (0, 1, 3)]
    for first, *others in zip(*runs, strict=True):
        for other in others:
            assert first[0] == other[0]
            assert torch.equal(first[1], other[1])
            assert torch.equal(first[2], other[2])


@pytest.mark.parametrize('workers', [0, 2])
def test_a_stream_gives_the_same_as_a_list(workers):
    listed = on_the_fly(Numbered(9), ['gaussian_noise', 'fog'], [3], 'cifar-c', 1)
    streamed = on_the_fly(opened(Stream(9)), ['gaussian_noise', 'fog'], [3], 'cifar-c', 1)
    for a, b in zip(loader(listed), loader(streamed, workers=workers), strict=True):
        assert a[0].place == b[0].place
        assert torch.equal(a[1], b[1])
        assert torch.equal(a[2], b[2])


def test_timms_streamed_data_sets_are_streamed():
    class Reader:
        def __iter__(self):
            yield from ((Numbered(5)[i]) for i in range(5))

        def __len__(self):
            return 5

    images = opened(IterableImageDataset('', reader=Reader()))
    assert images.streamed
    cells = on_the_fly(images, ['contrast'], [1, 2], 'cifar-c', 0)
    assert [len(x) for _, x, _ in loader(cells)] == [4, 1, 4, 1]


def test_images_are_corrupted_after_they_are_resized_by_their_index():
    class Large(Numbered):
        def __getitem__(self, index):
            return Image.fromarray(np.random.default_rng(index).integers(0, 256, (70, 50, 3), np.uint8)), index

    [cell] = on_the_fly(Large(6), ['impulse_noise'], [5], 'cifar-c', 9)
    found = torch.cat([x for _, x, _ in loader([cell])])
    for i in range(6):
        image = Large(6)[i][0]
        for step in STEPS:
            image = step(image)
        wanted = torch.from_numpy(np.array(C.corrupt(image, 'impulse_noise', 5, 'cifar-c', i, 9))).permute(2, 0, 1)
        assert torch.allclose(found[i], wanted.float(), atol=1e-3)


@pytest.mark.parametrize('batch_size', [1, 4, 9])
def test_noise_of_mollification_does_not_depend_on_the_batch(batch_size):
    cells = Mollification('molly', seed=3).lay_out(Numbered(9), classifier())[0][1:4]
    assert [cell.place for cell in cells] == [('noise', t) for t in TEMPERATURES[:3]]
    whole = [x for _, x, _ in loader(cells, 9)]
    parts = [x for _, x, _ in loader(cells, batch_size)]
    assert torch.allclose(torch.cat(whole), torch.cat(parts), atol=1e-4)


def test_grey_images_stay_grey_and_colour_becomes_what_the_model_takes(tmp_path):
    for name in 'ab':
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / name / '0.png')
    images = open_dataset('L', name='', root=str(tmp_path), split='validation')
    assert images[0][0].mode == 'L'
    assert images.classes == ['a', 'b']
    [cell] = on_the_fly(images, ['fog'], [1], 'cifar-c', 0, channels=1)
    [(_, x, _)] = Loader([cell], 2, 0, {'input_size': (1, 32, 32), 'mean': (0.5,), 'std': (0.5,)}, torch.device('cpu'))
    assert x.shape == (2, 1, 32, 32)


def test_torchvision_data_sets_are_opened(tmp_path):
    from torchvision.datasets import FakeData

    images = DatasetImages(FakeData(size=3, image_size=(3, 40, 40), num_classes=4), 'RGB')
    assert len(images) == 3
    assert images.classes is None
    image, label = images[2]
    assert (image.size, image.mode) == ((40, 40), 'RGB')
    assert 0 <= label < 4


def test_arrays_are_mapped_and_not_read(tmp_path):
    np.save(tmp_path / 'fog.npy', np.zeros((50, 32, 32, 3), np.uint8))
    np.save(tmp_path / 'labels.npy', np.tile(np.arange(10) % 3, 5))
    cells = Published(tmp_path, ['fog'], [1, 5]).lay_out(None, classifier())[0]
    assert [len(cell.images) for cell in cells] == [10, 10]
    assert isinstance(open_array(tmp_path / 'fog.npy'), np.memmap)
    import pickle

    cells[0].images[0]  # a worker that is spawned gets images that were read from before
    assert len(pickle.dumps(cells[0].images)) < 2000 + len(os.fsencode(tmp_path))
    assert pickle.loads(pickle.dumps(cells[0].images))[9] == cells[0].images[9]


def test_arrays_that_take_the_place_of_others_are_read(tmp_path):
    def brightness(value):
        np.save(tmp_path / 'new.npy', np.full((30, 32, 32, 3), value, np.uint8))
        (tmp_path / 'new.npy').replace(tmp_path / 'fog.npy')
        (cell,), _ = Published(tmp_path, ['fog'], [1]).lay_out(None, classifier())
        return np.asarray(cell.images[0][0]).mean()

    np.save(tmp_path / 'labels.npy', np.tile(np.arange(6) % 3, 5))
    assert [brightness(value) for value in (10, 20)] == [10, 20]
