"""CIFAR-10 and CIFAR-100 in the form of their downloads, but with a handful of images.

torchvision checks the files by their MD5 sums. As a script, `small_data.py SCRIPT ARGUMENTS` runs another script in a
process in which torchvision expects the sums of the files in the folder MOLLY_SMALL_DATA.
"""

import hashlib
import os
import pickle
import runpy
import sys
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100


def write(root: Path, train: int = 8, test: int = 4) -> None:
    """Write both data sets below `root`, the training images of CIFAR-10 in its five files."""
    rng = np.random.default_rng(0)
    for dataset, key, names in ((CIFAR10, 'labels', 'label_names'), (CIFAR100, 'fine_labels', 'fine_label_names')):
        folder = root / dataset.base_folder
        folder.mkdir(parents=True)
        files = [name for name, _ in dataset.train_list]
        counts = {
            name: len(part) for name, part in zip(files, np.array_split(np.arange(train), len(files)), strict=True)
        }
        counts |= {name: test for name, _ in dataset.test_list}
        classes = 10 if dataset is CIFAR10 else 100
        for name, count in counts.items():
            pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
            (folder / name).write_bytes(pickle.dumps({'data': pixels, key: [i % classes for i in range(count)]}))
        meta = {names: [f'class {i}' for i in range(classes)]}
        (folder / dataset.meta['filename']).write_bytes(pickle.dumps(meta))


def sums(root: Path) -> dict[type, dict[str, object]]:
    """Return the attributes that torchvision's classes need for the files below `root`."""

    def md5(dataset: type, name: str) -> str:
        return hashlib.md5((root / dataset.base_folder / name).read_bytes()).hexdigest()

    return {
        dataset: {
            'train_list': [[name, md5(dataset, name)] for name, _ in dataset.train_list],
            'test_list': [[name, md5(dataset, name)] for name, _ in dataset.test_list],
            'meta': {**dataset.meta, 'md5': md5(dataset, dataset.meta['filename'])},
        }
        for dataset in (CIFAR10, CIFAR100)
    }


if __name__ == '__main__':
    for changed, attributes in sums(Path(os.environ['MOLLY_SMALL_DATA'])).items():
        for attribute, value in attributes.items():
            setattr(changed, attribute, value)
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name='__main__')
