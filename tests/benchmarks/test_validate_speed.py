"""A whole report of 1,000 images of 32 pixels beside corrupting them alone, on two processes; `make bench` runs it."""

import argparse
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from support import corruptions as C

from timm_molly.cli import flags
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


def corrupt_share(paths, read_each_time):
    """Corrupt images as the published generators do, which read the image for each corruption and severity."""
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    images = [Image.open(path).convert('RGB') for path in paths]
    for name in C.COMMON:
        for severity in C.SEVERITIES:
            for i, path in enumerate(paths):
                image = Image.open(path).convert('RGB') if read_each_time else images[i]
                C.corrupt(image, name, severity, 'cifar-c', i)


@pytest.mark.benchmark(group='report of 1,000 images')
@pytest.mark.parametrize('read_each_time', [True, False])
def test_corrupting_alone(benchmark, folder, read_each_time):
    paths = sorted((folder / 'validation').rglob('*.png'))
    warm_up()
    shares = [paths[i::PROCESSES] for i in range(PROCESSES)]

    def run():
        with ProcessPoolExecutor(PROCESSES) as pool:
            list(pool.map(corrupt_share, shares, [read_each_time] * PROCESSES))

    benchmark.pedantic(run, rounds=1)


@pytest.mark.benchmark(group='report of 1,000 images')
def test_report(benchmark, folder, tmp_path):
    weights = tmp_path / 'weights.pth'
    torch.save(timm.create_model('test_resnet', num_classes=10).state_dict(), weights)
    parser = argparse.ArgumentParser()
    flags.add_arguments(parser)
    flags.add_benchmark_arguments(parser)
    arguments = [
        *('--data-dir', folder, '--model', 'test_resnet', '--num-classes', '10', '--img-size', '32'),
        *('--crop-pct', '1.0', '--checkpoint', weights, '-j', PROCESSES, '--device', 'cpu', '-o', tmp_path / 'out'),
    ]

    args = parser.parse_args([str(argument) for argument in arguments])

    def run():
        flags.measurement(args).run(flags.classifier(args), args.output, progress=False).save(args.output)

    benchmark.pedantic(run, rounds=1)
