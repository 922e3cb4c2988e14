"""Data sets as PIL images and labels: timm's, a published set's, or any that Python can index."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence, Sized
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from timm_molly.classifier import Classifier
from timm_molly.errors import UserError
from timm_molly.files import hint_beside
from timm_molly.pictures import eight_bits, is_16_bit
from timm_molly.plain import short
from timm_molly.training import class_index
from timm_molly.weights import some

SPLITS = ('train', 'training', 'val', 'validation', 'eval', 'evaluation', 'test')
SAMPLED = 64  # images by which a data set is known again

_logger = logging.getLogger(__name__)


@runtime_checkable
class Dataset(Protocol):
    """What `evaluate` takes: by index (image, label), such as a list or a torchvision data set without transform.

    An image is a PIL image or a uint8 array (H, W, 3), (H, W, 1) or (H, W); a label a whole number from 0 on.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Images:
    """Images and labels by index, or streamed.

    Attributes:
        name: Of the data set, for the report.
        split: timm's name of the split, or None.
        streamed: Whether they come in their own order only, by iteration.
        classes: Names of the class folders in the order of their indices; None for other data sets.
        labels: Labels (N,) where they are known without reading the images, else None.
        mapped: Whether a class map said which classes the folders are.
        subset: The part of a data set that they are, by name; None for all of it.
        own_classes: What a data set in Python calls its classes, which it may number in another way; None otherwise.
    """

    name: str | None = None
    split: str | None = None
    streamed = False
    classes: list[str] | None = None
    labels: NDArray[Any] | None = None
    mapped = False
    subset: str | None = None
    own_classes: Sized | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        raise NotImplementedError

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        for index in range(len(self)):
            yield self[index]

    def place(self) -> dict[str, Any]:
        """What tells these images from others, for a measurement that is gone on with."""
        raise NotImplementedError

    def paths(self) -> list[str] | None:
        """Their files in order, where each is in one of its own."""
        return None

    def fingerprint(self) -> str:
        """A sha256 of images that are spread over the data set, and of their labels."""
        digest = hashlib.sha256()
        for index in sorted({int(i) for i in np.linspace(0, len(self) - 1, SAMPLED)}):
            image, label = self[index]
            digest.update(f'{index} {label} {image.size}'.encode() + image.tobytes())
        return digest.hexdigest()


class DatasetImages(Images):
    """The images of a data set in Python, which may be any that can be indexed."""

    def __init__(self, dataset: Dataset, img_mode: str) -> None:
        if not isinstance(dataset, Dataset) or isinstance(dataset, (str, bytes, dict)):
            raise UserError(
                f'the data set must give (image, label) by index and have a length, got {type(dataset).__name__}'
            )
        self.dataset, self.img_mode = dataset, img_mode
        self.name = type(dataset).__name__
        found = getattr(dataset, 'classes', None)  # torchvision's name of them
        self.own_classes = found if isinstance(found, Sized) else class_index(dataset) or None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        item = self.dataset[index]
        try:
            image, label = item[:2]
        except (TypeError, ValueError):
            raise UserError(f'image {index} of the data set must be (image, label), got {short(item)}') from None
        if isinstance(image, Tensor):
            raise UserError(
                f'image {index} of the data set is a tensor {tuple(image.shape)}: give PIL images or uint8 arrays, '
                "such as a torchvision data set's without transform, because corruptions come before normalisation"
            )
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,)):
                raise UserError(
                    f'image {index} of the data set must be uint8 (H, W, 3), got {image.dtype} {image.shape}'
                )
            image = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
        if not isinstance(image, Image.Image):
            raise UserError(f'image {index} of the data set must be a PIL image or a uint8 array, got {short(image)}')
        try:
            number = int(label)
        except (TypeError, ValueError):
            raise UserError(f'label {index} of the data set must be a whole number, got {short(label)}') from None
        return eight_bits(image, self.img_mode), number

    def place(self) -> dict[str, Any]:
        return {'dataset': self.name, 'images': len(self), 'sha256': self.fingerprint()}


class TimmImages(Images):
    """The images of a data set that timm opened, without its transform.

    Unlike timm's, it does not go on with the next image where one cannot be read.
    """

    def __init__(self, dataset: Any, img_mode: str, name: str | None, split: str | None, where: dict[str, Any]) -> None:
        self.dataset, self.img_mode, self.name, self.split, self.where = dataset, img_mode, name, split, where
        self.streamed = isinstance(dataset, IterableDataset)
        self.mapped = bool(where.get('class_map'))
        dataset.transform = None
        reader = getattr(dataset, 'reader', None)
        index = getattr(reader, 'class_to_idx', None)
        self.classes = sorted(index, key=index.__getitem__) if index else None
        samples = getattr(reader, 'samples', None)
        labels = getattr(dataset, 'targets', None) if samples is None else [label for _, label in samples]
        self.labels = None if labels is None or self.streamed else np.asarray(labels)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        reader = getattr(self.dataset, 'reader', None)
        if reader is None:
            image, label = self.dataset[index][:2]
            image = eight_bits(image, self.img_mode)
        else:
            image, label = reader[index][:2]
            image = _open(image, reader.filename(index, absolute=True), self.img_mode)
        return image, -1 if label is None else int(label)

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        for image, label in self.dataset:
            yield eight_bits(image, self.img_mode), int(label)

    @property
    def has_16_bits(self) -> bool:
        """Whether the first image is a file of 16 bits of grey."""
        reader = getattr(self.dataset, 'reader', None)
        try:
            with Image.open(reader[0][0]) as image:  # type: ignore[index]
                return is_16_bit(image)
        except Exception:  # no files, or a damaged one, which is named when its turn comes
            return False

    def place(self) -> dict[str, Any]:
        return self.where

    def paths(self) -> list[str] | None:
        if getattr(getattr(self.dataset, 'reader', None), 'samples', None) is None:
            return None
        return list(self.dataset.filenames(absolute=True))


class FolderImages(Images):
    """One severity of a corruption in folders: the files of another folder by the same names."""

    def __init__(
        self,
        folder: Path,
        names: list[str],
        labels: Any,
        classes: list[str],
        img_mode: str,
        mapped: bool,
        subset: str | None = None,
    ) -> None:
        self.folder, self.names, self.labels, self.classes = folder, names, labels, classes
        self.img_mode, self.mapped, self.subset = img_mode, mapped, subset

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        assert self.labels is not None
        path = self.folder / self.names[index]
        return _open(path, path, self.img_mode), int(self.labels[index])


class ArrayImages(Images):
    """One severity of a CIFAR-C array, memory-mapped, so that workers share it."""

    def __init__(self, path: Path, labels: Any, start: int, img_mode: str) -> None:
        self.path, self.labels, self.start, self.img_mode = path, labels, start, img_mode

    @cached_property
    def _array(self) -> NDArray[Any]:
        return open_array(self.path)

    def __getstate__(self) -> dict[str, Any]:
        """All but the array, of which a worker makes a map of its own: pickled, it would be copied whole."""
        return {name: value for name, value in vars(self).items() if name != '_array'}

    def __len__(self) -> int:
        assert self.labels is not None
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        assert self.labels is not None
        image = Image.fromarray(np.asarray(self._array[self.start + index]))
        return image.convert(self.img_mode), int(self.labels[index])


def images_of(dataset: Dataset | Images, img_mode: str) -> Images:
    """Take images as they are, and wrap any other data set."""
    return dataset if isinstance(dataset, Images) else DatasetImages(dataset, img_mode)


def open_dataset(img_mode: str, **how: Any) -> TimmImages:
    """Open a data set as timm's `create_dataset` does, without its transform.

    Args:
        img_mode: 'RGB' or 'L'.
        **how: As for `create_dataset`; `name`, `root` and `split` are needed.

    Raises:
        UserError: timm cannot open it.
    """
    from timm.data import create_dataset

    name, root, split = how['name'], how['root'], how['split']
    if root and not name and not Path(root).is_dir():
        raise UserError(f'no such folder: {root}{hint_beside(root)}')
    try:
        dataset = create_dataset(input_img_mode=img_mode, **how)
    # timm and its readers raise them all.
    except (RuntimeError, AssertionError, ImportError, OSError, KeyError, ValueError) as error:
        raise UserError(f'timm cannot open {name or root!r} (split {split!r}): {error}') from None
    inside = getattr(getattr(dataset, 'reader', None), 'root', None)
    whole = bool(not name and inside and Path(inside) == Path(root))  # not a split of it
    if how.get('search_split', True) and whole:
        splits = [each for each in SPLITS if (Path(root) / each).is_dir()]
        if splits:  # timm would take them all together
            raise UserError(f'{root} has no split {split!r}, it has {", ".join(splits)}')
    where = {key: str(Path(how[key]).resolve()) if how.get(key) else None for key in ('root', 'class_map')}
    where = {'data_dir': where['root'], 'class_map': where['class_map'], 'dataset': name, 'split': split}
    where |= {key: how.get(key) for key in ('input_key', 'target_key')}
    return TimmImages(dataset, img_mode, name or folder_name(root), None if whole else split, where)


def seen_in_training(classifier: Classifier, data_dir: str | None, split: str | None) -> bool:
    """Whether a classifier may have been trained on these images, by the names of their folder and split."""
    settings: Mapping[str, Any] = classifier.training.settings if classifier.training else {}
    where = settings.get('data_dir') or settings.get('data')
    same = isinstance(where, str) and data_dir and Path(where).resolve() == Path(data_dir).resolve()
    named = {(split or '').lower(), folder_name(data_dir).lower() if data_dir else ''}
    # Without a split train.py takes the whole folder too.
    return bool(named & {'train', 'training'} or (same and split in (None, settings.get('train_split') or 'train')))


def check_classes(images: Images, classifier: Classifier, where: object, splits: Mapping[str, set[str]]) -> None:
    """Check that class folders are the classifier's classes, since others would give wrong figures.

    Args:
        images: The images; those that are not in class folders pass.
        classifier: The classifier.
        where: What the folders are in.
        splits: Class folders of all splits of the data, among which one that is missing may be found.

    Raises:
        UserError: They are not.
    """
    classes, mapped = images.classes, images.mapped
    if classes is None:
        return
    name, known, labels = classifier.name, classifier.num_classes, classifier.label_names
    if (len(classes) > known) if mapped else (len(classes) != known):
        lacking = {f'{split} has': found - {*classes} for split, found in splits.items()}
        if isinstance(labels, (list, tuple)) and {*labels} & {*classes}:
            lacking['the model names'] = {*labels} - {*classes}
        lacks = [f'; it lacks {some(sorted(names))}, which {who}' for who, names in lacking.items() if names]
        advice = f' (train it with --num-classes {len(classes)}, or give --class-map for a part of its classes)'
        raise UserError(
            f'{where} has {len(classes)} class folder{"s" * (len(classes) != 1)}, but {name} has {known} classes'
            + (lacks[0] if lacks else '' if mapped else advice)
        )
    if not labels or mapped or list(labels) == list(classes):
        return
    if set(labels) & set(classes):
        different = set(labels) ^ set(classes)
        raise UserError(
            f'the class folders of {where} are not the classes that {name} names: they differ in '
            + (some(sorted(different)) if different else 'their order')
            + '. Name them as in the training, or give --class-map'
        )
    _logger.warning(
        'note: the class folders of %s (%s) and the classes that %s names (%s) have nothing in common; they are taken '
        'to be in the same order',
        where,
        some(sorted(classes)),
        name,
        some(sorted(labels)),
    )


def check_apart(measured: Images, held_out: Images) -> None:
    """Check that held-out images are not measured too, since a temperature fitted on them would flatter itself.

    Raises:
        UserError: They are, by their files, or by images that are spread over both data sets; or there are none.
    """
    if not held_out.streamed and not len(held_out):
        raise UserError('there are no held-out images')
    paths = measured.paths(), held_out.paths()
    if paths[0] is not None and paths[1] is not None:
        both = {*map(os.path.realpath, paths[0])} & {*map(os.path.realpath, paths[1])}
        if both:
            raise UserError(f'held-out images are measured too: {some(sorted(both))}. Hold out others')
    elif measured.streamed or held_out.streamed:
        if measured.place() == held_out.place():
            raise UserError('the held-out images are those that are measured. Hold out others')
    elif measured.fingerprint() == held_out.fingerprint():
        raise UserError('the held-out images are those that are measured. Hold out others')


def folder_name(path: Path | str) -> str:
    """The name of a folder as it was given, also for '.' and '..'; of a link the link's own."""
    return os.path.basename(os.path.abspath(path))


def class_folders(root: str | Path) -> dict[str, set[str]]:
    """Class folders of the splits of an image folder, by split."""
    splits = {split: Path(root, split) for split in SPLITS}
    return {
        split: {each.name for each in folder.iterdir() if each.is_dir() and any(each.iterdir())}
        for split, folder in splits.items()
        if folder.is_dir()
    }


def open_array(path: Path) -> NDArray[Any]:
    """Open a .npy file, memory-mapped.

    Raises:
        UserError: It is none that can be read.
    """
    try:
        array: NDArray[Any] = np.load(path, mmap_mode='r', allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f'{path} is not a NumPy array that can be read: {error}') from None
    return array


def same_labels(of: Sequence[tuple[object, Images]]) -> None:
    """Check that images are not known to have other labels than the first ones.

    Args:
        of: Images by what they are called.

    Raises:
        UserError: They have.
    """
    (name, first), *others = of
    for other, images in others:
        if images.labels is not None and first.labels is not None and not np.array_equal(images.labels, first.labels):
            raise UserError(f'{name} and {other} have different labels, so they are not the same images')


def _open(file: Any, name: object, img_mode: str) -> Image.Image:
    try:
        with Image.open(file) as image:
            return eight_bits(image, img_mode)
    except Exception as error:  # Pillow's readers raise all sorts on damaged files
        raise UserError(f'cannot read {name} as an image: {error}') from None
