"""Published sets of corrupted images: folders <corruption>/<severity>/<class>/, or <corruption>.npy with labels.npy.

ImageNet-C-bar has folders <corruption>/<strength>/<class>/, with the strength of its table: perlin_noise/4.60.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from timm_molly.classifier import Classifier
from timm_molly.errors import UserError
from timm_molly.robustness.corruptions.names import BAR
from timm_molly.robustness.corruptions.strengths import TABLES
from timm_molly.robustness.images import ArrayImages, FolderImages, Images, open_array, open_dataset
from timm_molly.robustness.subset import chosen_files
from timm_molly.weights import some


def published_images(
    root: Path,
    names: Sequence[str],
    severities: Sequence[int],
    classifier: Classifier,
    class_map: str = '',
    subset: str | None = None,
) -> dict[tuple[str, int], Images]:
    """Open the images of a set, by corruption and severity.

    Args:
        root: Folder of the set.
        names: Corruptions.
        severities: Some of 1 to 5.
        classifier: What takes them.
        class_map: File that says which classes the folders are.
        subset: Name of a part of the images, None for all.

    Raises:
        UserError: A file or folder is missing (which), or its shape, type or labels are wrong.
    """
    if table_of(root) == 'cifar-c':
        if subset:
            raise UserError(f'the images of {subset} are files of ImageNet, and {root} has arrays')
        return _of_arrays(root, names, severities, classifier)
    return _of_folders(root, names, severities, classifier.img_mode, class_map, subset)


def table_of(root: Path) -> str:
    """The table whose set of C-bar this can be: arrays are CIFAR's, folders ImageNet's."""
    return 'cifar-c' if any(root.glob('*.npy')) else 'imagenet-c'


def _of_arrays(
    root: Path, names: Sequence[str], severities: Sequence[int], classifier: Classifier
) -> dict[tuple[str, int], Images]:
    files = {name: root / f'{name}.npy' for name in (*names, 'labels')}
    missing = [path.name for path in files.values() if not path.is_file()]
    if missing:
        raise UserError(f'{root} lacks {", ".join(missing)}; --corruptions names those to measure')
    arrays = {name: open_array(path) for name, path in files.items()}
    labels = _labels(arrays.pop('labels'), files['labels'], classifier.num_classes)
    for name, array in arrays.items():
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
            raise UserError(f'{files[name]} must be uint8 (N, H, W, 3), got {array.dtype} {array.shape}')
        if len(array) != 5 * len(labels):
            raise UserError(f'{files[name]} has {len(array)} images, but labels.npy has {5 * len(labels)} labels')
    return {
        (name, s): ArrayImages(files[name], labels, (s - 1) * len(labels), classifier.img_mode)
        for name in names
        for s in severities
    }


def _labels(labels: NDArray[Any], path: Path, num_classes: int) -> NDArray[Any]:
    """Check labels for five severities, and return those of one."""
    if labels.ndim != 1 or labels.dtype.kind not in 'iu' or len(labels) % 5 or not len(labels):
        raise UserError(
            f'{path} must hold a label for each image of five severities, got {labels.dtype} {labels.shape}'
        )
    first = np.array(labels[: len(labels) // 5])
    if not np.array_equal(np.tile(first, 5), labels):
        raise UserError(f'{path} has other labels for one severity than for another')
    if first.min() != 0 or first.max() != num_classes - 1:
        raise UserError(f'{path} has labels {first.min()} to {first.max()}, but the model has {num_classes} classes')
    return first


def _of_folders(
    root: Path,
    names: Sequence[str],
    severities: Sequence[int],
    img_mode: str,
    class_map: str,
    subset: str | None,
) -> dict[tuple[str, int], Images]:
    folders = {(name, s): root / name / _severity(name, s) for name in names for s in severities}
    missing = [os.path.relpath(path, root) for path in folders.values() if not path.is_dir()]
    if len(missing) == len(folders):
        raise UserError(f'{root} has neither folders such as {missing[0]} nor arrays such as {names[0]}.npy')
    if missing:
        raise UserError(f'{root} lacks {", ".join(missing)}; --corruptions and --severities name those to measure')
    # The files have the same names in every folder, so that one list of them, for ImageNet-C of 50,000, is enough.
    files: list[str] = []
    images: dict[tuple[str, int], Images] = {}
    for (name, s), path in folders.items():
        opened = open_dataset(img_mode, name='', root=str(path), split='', search_split=False, class_map=class_map)
        found = [os.path.relpath(file, path) for file, _ in opened.dataset.reader.samples]
        if not images:
            first, files, labels, classes = f'{name} {s}', found, opened.labels, opened.classes or []
            kept = chosen_files(files, subset, path) if subset else range(len(files))
            chosen, of_chosen = [files[i] for i in kept], np.asarray(labels)[kept]
        elif found != files:
            different = sorted(set(found) ^ set(files))
            raise UserError(f'{root}: the files of {first} and {name} {s} differ in {some(different)}')
        images[name, s] = FolderImages(path, chosen, of_chosen, classes, img_mode, bool(class_map), subset)
    return images


def _severity(name: str, severity: int) -> str:
    """The folder of a severity."""
    return f'{TABLES["imagenet-c"][name][severity - 1][0]:.2f}' if name in BAR else str(severity)
