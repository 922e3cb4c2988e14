"""A whole report of 1,000 images of 32 pixels beside corrupting them, and inferring; on two processes; `make bench`."""

import argparse
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from support import corruptions as C

from timm_molly.cli import flags, validate
from timm_molly.robustness.corruptions.transforms import warm_up

IMAGES, PROCESSES = 1000, 2


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        path = root / 'validation' / str(i % 10) / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return root


def corrupt_share(paths, read_each_time, infer):
    """Corrupt images as the published generators do, which read the image for each corruption and severity.

    With `infer` the network sees them too, in batches.
    """
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    images = [Image.open(path).convert('RGB') for path in paths]
    model = timm.create_model('test_resnet', num_classes=10).eval() if infer else None
    for name in C.COMMON:
        for severity in C.SEVERITIES:
            corrupted = []
            for i, path in enumerate(paths):
                image = Image.open(path).convert('RGB') if read_each_time else images[i]
                corrupted.append(np.asarray(C.corrupt(image, name, severity, 'cifar-c', i)))
            if infer:
                x = torch.from_numpy(np.stack(corrupted)).permute(0, 3, 1, 2).contiguous().float().div(255)
                with torch.inference_mode():
                    for batch in x.split(256):
                        model(batch)


@pytest.mark.benchmark(group='report of 1,000 images')
@pytest.mark.parametrize(('read_each_time', 'infer'), [(True, False), (False, False), (False, True)])
def test_corrupting_alone(benchmark, folder, read_each_time, infer):
    paths = sorted((folder / 'validation').rglob('*.png'))
    warm_up()
    shares = [paths[i::PROCESSES] for i in range(PROCESSES)]

    def run():
        with ProcessPoolExecutor(PROCESSES) as pool:
            list(pool.map(corrupt_share, shares, [read_each_time] * PROCESSES, [infer] * PROCESSES))

    benchmark.pedantic(run, rounds=1)


class Corrupted(torch.utils.data.Dataset):
    """All corruptions of all images, as a loop by hand over a loader would have them."""

    def __init__(self, paths):
        self.images = [Image.open(path).convert('RGB') for path in paths]
        self.cells = [(name, severity) for name in C.COMMON for severity in C.SEVERITIES]

    def __len__(self):
        return len(self.cells) * len(self.images)

    def __getitem__(self, index):
        cell, i = divmod(index, len(self.images))
        x = np.asarray(C.corrupt(self.images[i], *self.cells[cell], 'cifar-c', i))
        return torch.from_numpy(x.copy()).permute(2, 0, 1).float().div(255)


@pytest.mark.benchmark(group='report of 1,000 images')
def test_loop_by_hand(benchmark, folder):
    """Corrupt in as many processes as the report, and infer in this one, without a figure."""
    paths = sorted((folder / 'validation').rglob('*.png'))
    warm_up()
    model = timm.create_model('test_resnet', num_classes=10).eval()

    def run():
        with torch.inference_mode():
            for batch in torch.utils.data.DataLoader(Corrupted(paths), batch_size=256, num_workers=PROCESSES):
                model(batch)

    benchmark.pedantic(run, rounds=1)


@pytest.mark.benchmark(group='report of 1,000 images')
def test_report(benchmark, folder, tmp_path):
    weights = tmp_path / 'weights.pth'
    torch.save(timm.create_model('test_resnet', num_classes=10).state_dict(), weights)
    parser = argparse.ArgumentParser()
    validate.add_arguments(parser)
    arguments = [
        *('--data-dir', folder, '--model', 'test_resnet', '--num-classes', '10', '--img-size', '32'),
        *('--crop-pct', '1.0', '--checkpoint', weights, '-j', PROCESSES, '--device', 'cpu', '-o', tmp_path / 'out'),
    ]

    args = parser.parse_args([str(argument) for argument in arguments])

    def run():
        flags.measurement(args).run(flags.classifier(args), args.output, progress=False).save(args.output)

    benchmark.pedantic(run, rounds=1)
