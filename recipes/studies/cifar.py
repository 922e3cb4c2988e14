"""Make the data of the CIFAR studies: image folders, and test images under 25 corruptions at five severities.

    python recipes/studies/cifar.py output/cifar10
    python recipes/studies/cifar.py output/cifar100 --classes 100

has torchvision download the images; `--source DIR` takes them from DIR/train/<class>/ and DIR/test/<class>/ instead.
Needs 2.5 GB and half an hour on two cores. Either way the same images come out, because those of a class are put in the
order of their pixels' sha256:

    train/         the training images without those of validation/: 48,000
    tenth/         the first tenth of them, class by class: 4,800
    validation/    the last 2,000 training images, as many of each class
    test/          the first half of the test images of each class: 5,000
    corrupted/     test/ under the 15 common corruptions and the 10 of CIFAR-10-C-bar, in the form of CIFAR-10-C
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tqdm
from fashion_mnist import write_corrupted
from PIL import Image

from timm_molly.robustness.corruptions.names import CIFAR_10_C_BAR, COMMON

HELD_OUT = 2_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', metavar='DIR', type=Path)
    parser.add_argument('--classes', type=int, choices=[10, 100], default=10)
    parser.add_argument('--source', metavar='DIR', type=Path, help='image folders (default: torchvision downloads)')
    args = parser.parse_args()
    if args.folder.exists():
        sys.exit(f'{args.folder} is there already; delete it to make it again')
    args.folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f'{args.folder.name}-', dir=args.folder.parent))
    try:
        write_folders(made, args.source, args.classes)
        write_corrupted(made, made / 'corrupted', (*COMMON, *CIFAR_10_C_BAR))
        made.chmod(0o755)
        made.rename(args.folder)  # whole or not at all
    finally:
        shutil.rmtree(made, ignore_errors=True)


def write_folders(folder: Path, source: Path | None, num_classes: int) -> None:
    """Write train/, tenth/, validation/ and test/, a folder a class."""
    for training in (True, False):
        read = read_folder(source, training) if source else download(folder / 'source', num_classes, training)
        images: dict[str, list[tuple[str, np.ndarray]]] = {}
        for name, pixels in tqdm.tqdm(read, desc='training images' if training else 'test images'):
            images.setdefault(name, []).append((hashlib.sha256(pixels.tobytes()).hexdigest(), pixels))
        if len(images) != num_classes:
            sys.exit(f'{source} has images of {len(images)} classes, not {num_classes} (--classes)')
        for name, of in images.items():
            ordered = [pixels for _, pixels in sorted(of, key=lambda pair: pair[0])]
            count = HELD_OUT // num_classes
            if training:
                train = ordered[:-count]
                parts = {'train': train, 'tenth': train[: len(train) // 10], 'validation': ordered[-count:]}
            else:
                parts = {'test': ordered[: len(ordered) // 2]}
            for split, chosen in parts.items():
                path = folder / split / name
                path.mkdir(parents=True)
                for index, pixels in enumerate(chosen):
                    Image.fromarray(pixels).save(path / f'{index:04d}.png')
    shutil.rmtree(folder / 'source', ignore_errors=True)


def read_folder(source: Path, training: bool) -> Iterator[tuple[str, np.ndarray]]:
    """Read the class and the pixels of each image of a split."""
    split = 'train' if training else 'test'
    paths = sorted((source / split).glob('*/*.png'))
    if not paths:
        sys.exit(f'no such images as {split}/<class>/<name>.png in {source} (--source)')
    for path in paths:
        with Image.open(path) as image:
            yield path.parent.name, np.asarray(image.convert('RGB'))


def download(folder: Path, num_classes: int, training: bool) -> Iterator[tuple[str, np.ndarray]]:
    """The same from torchvision, which downloads them."""
    from torchvision.datasets import CIFAR10, CIFAR100

    data = (CIFAR10 if num_classes == 10 else CIFAR100)(folder, train=training, download=True)
    for pixels, label in zip(data.data, data.targets, strict=True):
        yield data.classes[label], pixels


if __name__ == '__main__':
    main()
