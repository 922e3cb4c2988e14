"""Make the data of the Fashion-MNIST study: image folders of 32 px, and the test images corrupted at all strengths.

    python recipes/studies/fashion_mnist.py output/fashion-mnist

takes Fashion-MNIST from Debian's package dataset-fashion-mnist where that is installed, and else has torchvision
download it. Needs 1.6 GB and a few minutes; the same images come out every time.

    train/         the training images without those of validation/: 59,000
    tenth/         the first tenth of them, class by class: 5,900
    validation/    the last 100 training images of each class
    test/          the first 500 test images of each class
    fashion-mnist-32px-corrupted/
                   test/ under the 15 common corruptions at five severities, in the form and at the strengths of
                   CIFAR-10-C (not those of the published Fashion-MNIST-C, which has other corruptions)

The images keep their pixels and get a black border of 2.
"""

from __future__ import annotations

import argparse
import gzip
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tqdm
from PIL import Image

from timm_molly.robustness.corruptions.names import COMMON
from timm_molly.robustness.corruptions.transforms import corrupt_pixels, warm_up

DEBIAN = Path('/usr/share/datasets/fashion-mnist')
SEED = 42  # of the corruptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', metavar='DIR', nargs='?', type=Path, default=Path('output/fashion-mnist'))
    parser.add_argument(
        '--source',
        metavar='DIR',
        type=Path,
        default=DEBIAN,
        help='folder with train-images-idx3-ubyte.gz and the like (default: %(default)s if it is there)',
    )
    args = parser.parse_args()
    if args.folder.exists():
        sys.exit(f'{args.folder} is there already; delete it to make it again')
    args.folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f'{args.folder.name}-', dir=args.folder.parent))
    try:
        write_folders(made, args.source)
        write_corrupted(made, made / 'fashion-mnist-32px-corrupted', COMMON)
        made.chmod(0o755)
        made.rename(args.folder)  # whole or not at all
    finally:
        shutil.rmtree(made, ignore_errors=True)


def write_folders(folder: Path, source: Path) -> None:
    """Write train/, tenth/, validation/ and test/, a folder a class."""
    for training in (True, False):
        data = open_source(folder / 'source', source, training)
        images = np.pad(data.data.numpy(), ((0, 0), (2, 2), (2, 2)))
        for label, name in enumerate(tqdm.tqdm(data.classes, desc='training images' if training else 'test images')):
            indices = np.flatnonzero(data.targets.numpy() == label)
            if training:
                parts = {'train': indices[:-100], 'tenth': indices[: (len(indices) - 100) // 10]}
                parts['validation'] = indices[-100:]
            else:
                parts = {'test': indices[:500]}
            for split, chosen in parts.items():
                path = folder / split / name.lower().replace('/', '_').replace(' ', '_')
                path.mkdir(parents=True)
                for index in chosen:
                    Image.fromarray(images[index]).save(path / f'{index:05d}.png')
    shutil.rmtree(folder / 'source')


def open_source(folder: Path, source: Path, training: bool) -> object:
    """Open Fashion-MNIST from files that are here, or else download it."""
    from torchvision.datasets import FashionMNIST

    files = sorted(source.glob('*-ubyte.gz'))
    if not files and source != DEBIAN:
        sys.exit(f'no such files as train-images-idx3-ubyte.gz in {source} (--source)')
    raw = folder / 'FashionMNIST' / 'raw'
    raw.mkdir(parents=True, exist_ok=True)
    for file in files:
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    return FashionMNIST(folder, train=training, download=not files)


def write_corrupted(folder: Path, output: Path, names: Sequence[str]) -> None:
    """Write the images of test/, in the order in which timm reads them, under each corruption."""
    from timm.data import create_dataset

    dataset = create_dataset('', root=str(folder), split='test')
    images = [np.asarray(image.convert('RGB')) for image, _ in dataset]
    labels = np.array([label for _, label in dataset])
    output.mkdir()
    np.save(output / 'labels.npy', np.tile(labels, 5))
    warm_up()
    with multiprocessing.get_context('spawn').Pool(os.cpu_count(), initializer=warm_up) as pool:
        for name in tqdm.tqdm(names, desc='corrupted images'):
            jobs = [(image, name, severity, index) for severity in range(1, 6) for index, image in enumerate(images)]
            np.save(output / f'{name}.npy', np.stack(pool.starmap(corrupt, jobs, chunksize=250)))


def corrupt(image: np.ndarray, name: str, severity: int, index: int) -> np.ndarray:
    """Corrupt pixels (32, 32, 3), uint8."""
    return corrupt_pixels(image, name, severity, 'cifar-c', index, SEED)


if __name__ == '__main__':
    main()
