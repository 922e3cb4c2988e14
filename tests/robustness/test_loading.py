import os

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.dataset import IterableImageDataset
from torch.utils.data import IterableDataset

from timm_molly.robustness import benchmark as B
from timm_molly.robustness import corruptions as C

CONFIG = {'input_size': (3, 32, 32), 'mean': (0.0,) * 3, 'std': (1 / 255,) * 3}
TRANSFORM = create_transform(32, is_training=False, use_prefetcher=True, crop_pct=1.0)


class Numbered:
    """Images whose grey level is their index, labels the same."""

    streamed = False
    classes = labels = None

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
    return B.Loader(cells, batch_size, workers, CONFIG, torch.device('cpu'))


@pytest.mark.parametrize('workers', [0, 2])
def test_cells_come_one_after_the_other_whole_and_in_order(workers):
    cells = [B.Cell(name, 0, Numbered(count), TRANSFORM) for name, count in (('a', 9), ('b', 1), ('c', 4))]
    seen = [
        (cell.name, target.tolist(), x[:, 0, 0, 0].round().int().tolist())
        for cell, x, target in loader(cells, workers=workers)
    ]
    assert [name for name, _, _ in seen] == ['a', 'a', 'a', 'b', 'c']
    assert [target for _, target, _ in seen] == [[0, 1, 2, 3], [4, 5, 6, 7], [8], [0], [0, 1, 2, 3]]
    assert all(target == levels for _, target, levels in seen)


@pytest.mark.filterwarnings('ignore:This DataLoader will create')
def test_one_worker_and_many_make_the_same_pictures():
    names = ['glass_blur', 'fog', 'frost', 'snow', 'elastic_transform']
    cells = B.on_the_fly(Numbered(9), TRANSFORM, names, [1, 5], 'cifar-c', 3)
    runs = [[(cell.key, x, target) for cell, x, target in loader(cells, 4, workers)] for workers in (0, 1, 3)]
    for first, *others in zip(*runs, strict=True):
        for other in others:
            assert first[0] == other[0]
            assert torch.equal(first[1], other[1])
            assert torch.equal(first[2], other[2])


@pytest.mark.parametrize('workers', [0, 2])
def test_a_stream_gives_the_same_as_a_list(workers):
    listed = B.on_the_fly(Numbered(9), TRANSFORM, ['gaussian_noise', 'fog'], [3], 'cifar-c', 1)
    streamed = B.on_the_fly(B.Images(Stream(9), 'RGB'), TRANSFORM, ['gaussian_noise', 'fog'], [3], 'cifar-c', 1)
    for a, b in zip(loader(listed), loader(streamed, workers=workers), strict=True):
        assert a[0].key == b[0].key
        assert torch.equal(a[1], b[1])
        assert torch.equal(a[2], b[2])


def test_timms_streamed_data_sets_are_streamed():
    class Reader:
        def __iter__(self):
            yield from ((Numbered(5)[i]) for i in range(5))

        def __len__(self):
            return 5

    images = B.Images(IterableImageDataset('', reader=Reader()), 'RGB')
    assert images.streamed
    cells = B.on_the_fly(images, TRANSFORM, ['contrast'], [1, 2], 'cifar-c', 0)
    assert [len(x) for _, x, _ in loader(cells)] == [4, 1, 4, 1]


def test_images_are_corrupted_after_they_are_resized_by_their_index():
    class Large(Numbered):
        def __getitem__(self, index):
            return Image.fromarray(np.random.default_rng(index).integers(0, 256, (70, 50, 3), np.uint8)), index

    [cell] = B.on_the_fly(Large(6), TRANSFORM, ['impulse_noise'], [5], 'cifar-c', 9)
    found = torch.cat([x for _, x, _ in loader([cell])])
    for i in range(6):
        image = Large(6)[i][0]
        for step in TRANSFORM.transforms[:-1]:
            image = step(image)
        wanted = torch.from_numpy(np.array(C.corrupt(image, 'impulse_noise', 5, 'cifar-c', i, 9))).permute(2, 0, 1)
        assert torch.allclose(found[i], wanted.float(), atol=1e-3)


@pytest.mark.parametrize('batch_size', [1, 4, 9])
def test_noise_of_mollification_does_not_depend_on_the_batch(batch_size):
    from timm_molly.config import MollyConfig

    cells = B.mollified(Numbered(9), TRANSFORM, MollyConfig(), 3)[:3]
    assert [cell.key for cell in cells] == [('noise', t) for t in B.TEMPERATURES[:3]]
    whole = [x for _, x, _ in loader(cells, 9)]
    parts = [x for _, x, _ in loader(cells, batch_size)]
    assert torch.allclose(torch.cat(whole), torch.cat(parts), atol=1e-4)


def test_grey_images_stay_grey_and_colour_becomes_what_the_model_takes(tmp_path):
    for name in 'ab':
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / name / '0.png')
    images = B.open_dataset('L', name='', root=str(tmp_path), split='validation')
    assert images[0][0].mode == 'L'
    assert images.classes == ['a', 'b']
    [cell] = B.on_the_fly(images, create_transform((1, 32, 32), use_prefetcher=True), ['fog'], [1], 'cifar-c', 0)
    [(_, x, _)] = B.Loader(
        [cell], 2, 0, {'input_size': (1, 32, 32), 'mean': (0.5,), 'std': (0.5,)}, torch.device('cpu')
    )
    assert x.shape == (2, 1, 32, 32)


def test_torchvision_data_sets_are_opened(tmp_path):
    from torchvision.datasets import FakeData

    images = B.Images(FakeData(size=3, image_size=(3, 40, 40), num_classes=4), 'RGB')
    assert len(images) == 3
    assert images.classes is None
    image, label = images[2]
    assert (image.size, image.mode) == ((40, 40), 'RGB')
    assert 0 <= label < 4


def test_arrays_are_mapped_and_not_read(tmp_path):
    np.save(tmp_path / 'fog.npy', np.zeros((50, 32, 32, 3), np.uint8))
    np.save(tmp_path / 'labels.npy', np.tile(np.arange(10) % 3, 5))
    cells = B.official(tmp_path, TRANSFORM, ['fog'], [1, 5], 'RGB', '', 3)
    assert [len(cell.images) for cell in cells] == [10, 10]
    assert isinstance(B._open(tmp_path / 'fog.npy'), np.memmap)
    import pickle

    assert len(pickle.dumps(cells[0].images)) < 2000 + len(os.fsencode(tmp_path))
