"""The cells of a benchmark and the loader that reads them: official sets, corruption on the fly, mollification."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from timm_molly.config import MollyConfig
from timm_molly.functional import blur, noise
from timm_molly.pictures import eight_bits, is_16_bit
from timm_molly.robustness import corruptions as C
from timm_molly.weights import some

SPLITS = ('train', 'training', 'val', 'validation', 'eval', 'evaluation', 'test')
KEPT_BYTES = 2**28
TEMPERATURES = tuple(round(0.05 * i, 2) for i in range(1, 21))


@dataclass(frozen=True)
class Cell:
    """One corruption at one severity, or one degradation at one temperature.

    Attributes:
        name: 'clean', a corruption, 'noise' or 'blur'.
        level: 0 for 'clean', the severity 1 to 5, or t in (0, 1].
        images: Gives (PIL image, label) by index; or streams them.
        transform: timm's evaluation transform for its prefetching loader: resize, crop, ..., to uint8 array.
        corrupt: Changes the pixels (H, W, C), uint8, of an image that is resized and cropped, by its index.
        degrade: Changes the normalised batch (B, C, H, W) by its indices (B,).
    """

    name: str
    level: float
    images: Any
    transform: Any
    corrupt: Callable[[Any, int], Any] | None = None
    degrade: Callable[[Tensor, range], Tensor] | None = None

    @property
    def key(self) -> tuple[str, float]:
        return self.name, self.level

    def __str__(self) -> str:
        return self.name if self.name == 'clean' else f'{self.name} {self.level:g}'


def clean(images: Any, transform: Any) -> Cell:
    return Cell('clean', 0, images, transform)


def on_the_fly(
    images: Any, transform: Any, names: Sequence[str], severities: Sequence[int], table: str, seed: int
) -> list[Cell]:
    """Cells that corrupt images as they are read, after resizing and cropping to the model's input."""
    return [
        Cell(name, s, images, transform, partial(_corrupt, name, s, table, seed)) for name in names for s in severities
    ]


def mollified(images: Any, transform: Any, config: MollyConfig, seed: int) -> list[Cell]:
    """Cells that noise and blur normalised images as training does, at t = 0.05, 0.1 ... 1."""
    noised = [Cell('noise', t, images, transform, degrade=partial(_noise, t, seed)) for t in TEMPERATURES]
    blurred = [Cell('blur', t, images, transform, degrade=partial(_blur, t, config.min_scale)) for t in TEMPERATURES]
    return noised * ('n' in config.roles) + blurred * ('b' in config.roles)


def official(
    root: Path,
    transform: Any,
    names: Sequence[str],
    severities: Sequence[int],
    img_mode: str,
    class_map: str,
    num_classes: int,
) -> list[Cell]:
    """Cells of a published set: folders <corruption>/<severity>/<class>/, or <corruption>.npy with labels.npy.

    Raises:
        ValueError: A file or folder is missing (which), or its shape, type or labels are wrong.
    """
    if not root.is_dir():
        raise ValueError(f'no such folder: {root}')
    if any(root.glob('*.npy')):
        return _npy_cells(root, transform, names, severities, img_mode, num_classes)
    return _folder_cells(root, transform, names, severities, img_mode, class_map)


class Images:
    """A timm or torchvision data set as (PIL image, label) by index, or streamed, without its transform.

    Unlike timm's, it does not go on with the next image where one cannot be read.
    """

    def __init__(self, dataset: Any, img_mode: str) -> None:
        self.dataset = dataset
        self.img_mode = img_mode
        self.streamed = isinstance(dataset, IterableDataset)
        dataset.transform = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        reader = getattr(self.dataset, 'reader', None)
        if reader is None:
            image, label = self.dataset[index][:2]
            image = eight_bits(image, self.img_mode)
        else:
            image, label = reader[index][:2]
            try:
                image = eight_bits(Image.open(image), self.img_mode)
            except Exception as error:  # Pillow's readers raise all sorts on damaged files
                name = reader.filename(index, absolute=True)
                raise ValueError(f'cannot read {name} as an image: {error}') from None
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

    @property
    def classes(self) -> list[str] | None:
        """Names of the class folders in the order of their indices, None for other data sets."""
        class_to_idx = getattr(getattr(self.dataset, 'reader', None), 'class_to_idx', None)
        return sorted(class_to_idx, key=class_to_idx.__getitem__) if class_to_idx else None

    @property
    def labels(self) -> Any:
        """Labels (N,) where the data set tells them without reading its images, else None."""
        samples = getattr(getattr(self.dataset, 'reader', None), 'samples', None)
        found = getattr(self.dataset, 'targets', None) if samples is None else [label for _, label in samples]
        return None if found is None or self.streamed else np.asarray(found)


class FolderImages:
    """One severity of a corruption in folders: the files of another folder by the same names."""

    streamed = False

    def __init__(self, folder: Path, names: list[str], labels: Any, classes: list[str], img_mode: str) -> None:
        self.folder, self.names, self.labels, self.classes, self.img_mode = folder, names, labels, classes, img_mode

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path = self.folder / self.names[index]
        try:
            with Image.open(path) as image:
                return eight_bits(image, self.img_mode), int(self.labels[index])
        except Exception as error:  # Pillow's readers raise all sorts on damaged files
            raise ValueError(f'cannot read {path} as an image: {error}') from None


class NpyImages:
    """One severity of a CIFAR-C array, memory-mapped, so that workers share it."""

    streamed = False
    classes = None

    def __init__(self, path: Path, labels: Any, start: int, img_mode: str) -> None:
        self.path, self.labels, self.start, self.img_mode = path, labels, start, img_mode

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image = Image.fromarray(np.asarray(_open(self.path)[self.start + index]))
        return image.convert(self.img_mode), int(self.labels[index])


def open_dataset(img_mode: str, **kwargs: Any) -> Images:
    """Open a data set as timm's `create_dataset` does, without its transform.

    Raises:
        ValueError: timm cannot open it.
    """
    from timm.data import create_dataset

    root = kwargs['root']
    if root and not Path(root).is_dir() and not kwargs.get('name'):
        raise ValueError(f'no such folder: {root}')
    try:
        dataset = create_dataset(input_img_mode=img_mode, **kwargs)
    except (
        RuntimeError,
        AssertionError,
        ImportError,
        OSError,
        KeyError,
    ) as error:  # timm and its readers raise them all
        what = kwargs.get('name') or root
        raise ValueError(f'timm cannot open {what!r} (split {kwargs["split"]!r}): {error}') from None
    images = Images(dataset, img_mode)
    inside = getattr(getattr(dataset, 'reader', None), 'root', None)
    if kwargs.get('search_split', True) and not kwargs.get('name') and inside and Path(inside) == Path(root):
        splits = [name for name in SPLITS if (Path(root) / name).is_dir()]
        if splits:  # timm would take them all together
            raise ValueError(f'{root} has no split {kwargs["split"]!r}, it has {", ".join(splits)}')
    return images


class Loader:
    """Reads cells one after the other into normalised batches on a device; the same on any number of workers.

    All cells go through one set of workers, because starting workers takes longer than many a cell.

    Args:
        cells: What to read, in this order.
        batch_size: Images a batch; a batch never holds images of two cells.
        workers: Number of processes that read and corrupt; 0 for this one.
        config: What timm's `resolve_data_config` gives: 'input_size' (C, H, W), 'mean' and 'std'.
        device: Where batches go.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        batch_size: int,
        workers: int,
        config: Mapping[str, Any],
        device: torch.device,
    ) -> None:
        self.cells = cells
        self.batch_size = batch_size
        self.workers = workers
        self.batches = _Batches(cells, math.prod(config['input_size']))
        mean, std, channels = config['mean'], config['std'], config['input_size'][0]
        self.prefetch: dict[str, Any] = dict(mean=mean, std=std, channels=channels, device=device)

    def __iter__(self) -> Iterator[tuple[Cell, Tensor, Tensor]]:
        """Yield (cell, images (B, C, H, W), class indices (B,)), the batches of a cell in order.

        Raises:
            ValueError: An image cannot be read (which).
        """
        try:
            yield from self._batches()
        except ValueError as error:  # a worker puts its whole traceback before the message
            raise ValueError(str(error).strip().splitlines()[-1].removeprefix('ValueError: ')) from None

    def _batches(self) -> Iterator[tuple[Cell, Tensor, Tensor]]:
        if any(cell.images.streamed for cell in self.cells):
            for number, cell in enumerate(self.cells):
                # A stream has no index but its order, which several workers would not keep.
                stream = _Stream(self.batches, number)
                start = 0
                for x, target in self._prefetched(stream, min(self.workers, 1), batch_size=self.batch_size):
                    yield cell, self._degraded(cell, x, start), target
                    start += len(x)
        else:
            plan = _Plan([len(cell.images) for cell in self.cells], self.batch_size)
            batches = self._prefetched(self.batches, self.workers, sampler=plan, batch_size=None)
            for (number, start, _), (x, target) in zip(plan, batches, strict=True):
                yield self.cells[number], self._degraded(self.cells[number], x, start), target

    def _prefetched(self, dataset: Any, workers: int, **how: Any) -> Any:
        from timm.data.loader import PrefetchLoader

        pin_memory = self.prefetch['device'].type == 'cuda'
        loader: Any = DataLoader(
            dataset, num_workers=workers, worker_init_fn=_start_worker, pin_memory=pin_memory, **how
        )
        return PrefetchLoader(loader, **self.prefetch)

    @staticmethod
    def _degraded(cell: Cell, x: Tensor, start: int) -> Tensor:
        return cell.degrade(x, range(start, start + len(x))) if cell.degrade else x


class _Plan:
    """The batches, none across two cells, as (cell number, first index, index after the last): a sampler."""

    def __init__(self, lengths: Sequence[int], batch_size: int) -> None:
        self.lengths, self.batch_size = lengths, batch_size

    def __len__(self) -> int:
        return sum(-(-length // self.batch_size) for length in self.lengths)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        for number, length in enumerate(self.lengths):
            for start in range(0, length, self.batch_size):
                yield number, start, min(start + self.batch_size, length)


class _Batches(Dataset):  # type: ignore[type-arg]
    """Whole batches of uint8 images (B, C, H, W) and labels (B,), by what `_Plan` says."""

    def __init__(self, cells: Sequence[Cell], image_bytes: int) -> None:
        self.cells = cells
        # All corruptions on the fly start from the same pictures, which each worker keeps where they fit.
        images = {id(cell.images): cell.images for cell in cells if not cell.images.streamed}
        self.keep = len(images) == 1 < len(cells) and image_bytes * len(cells[0].images) <= KEPT_BYTES
        self.kept: dict[int, tuple[Any, int]] = {}

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        number, start, stop = key
        cell = self.cells[number]
        pixels, labels = [], []
        for index in range(start, stop):
            picture, label = self.kept[index] if index in self.kept else self.prepare(cell, *cell.images[index])
            if self.keep:
                self.kept[index] = picture, label
            pixels.append(picture if cell.corrupt is None else cell.corrupt(picture, index))
            labels.append(label)
        return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)

    @staticmethod
    def prepare(cell: Cell, image: Image.Image, label: int) -> tuple[Any, int]:
        """Resize and crop an image; return its pixels (H, W, C) and label."""
        for step in cell.transform.transforms[:-1]:  # the last one makes an array
            image = step(image)
        pixels = np.asarray(image)
        return pixels if pixels.ndim == 3 else pixels[..., None], label


class _Stream(IterableDataset):  # type: ignore[type-arg]
    def __init__(self, batches: _Batches, number: int) -> None:
        self.batches, self.number = batches, number

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        cell = self.batches.cells[self.number]
        for index, (image, label) in enumerate(cell.images):
            pixels, _ = self.batches.prepare(cell, image, label)
            pixels = pixels if cell.corrupt is None else cell.corrupt(pixels, index)
            yield torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), label


def _start_worker(_: int) -> None:
    import cv2

    cv2.setNumThreads(0)  # the workers are the threads


def _corrupt(name: str, severity: int, table: str, seed: int, pixels: Any, index: int) -> Any:
    if pixels.shape[-1] == 3:
        return C.corrupt_pixels(pixels, name, severity, table, index, seed)
    return np.asarray(C.corrupt(Image.fromarray(pixels[..., 0]), name, severity, table, index, seed))[..., None]


def _noise(t: float, seed: int, x: Tensor, indices: range) -> Tensor:
    # The same noise at every t, so that the curve shows t and not the draw.
    draws = []
    for index in indices:
        generator = torch.Generator().manual_seed(seed * 2**32 + index)
        draws.append(torch.randn(x.shape[1:], generator=generator))
    return noise(x, torch.full((len(x),), t, device=x.device), torch.stack(draws).to(x.device))


def _blur(t: float, min_scale: float, x: Tensor, indices: range) -> Tensor:
    return blur(x, torch.full((len(x),), t, device=x.device), min_scale)


@lru_cache(maxsize=64)
def _open(path: Path) -> Any:
    return np.load(path, mmap_mode='r', allow_pickle=False)


def _npy_cells(
    root: Path, transform: Any, names: Sequence[str], severities: Sequence[int], img_mode: str, num_classes: int
) -> list[Cell]:
    files = {name: root / f'{name}.npy' for name in (*names, 'labels')}
    missing = [path.name for path in files.values() if not path.is_file()]
    if missing:
        raise ValueError(f'{root} lacks {", ".join(missing)}; --corruptions names those to measure')
    arrays = {}
    for name, path in files.items():
        try:
            arrays[name] = _open(path)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f'{path} is not a NumPy array that can be read: {error}') from None
    labels = arrays.pop('labels')
    if labels.ndim != 1 or labels.dtype.kind not in 'iu' or len(labels) % 5 or not len(labels):
        raise ValueError(
            f'{files["labels"]} must hold a label for each image of five severities, got {labels.dtype} {labels.shape}'
        )
    for name, array in arrays.items():
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
            raise ValueError(f'{files[name]} must be uint8 (N, H, W, 3), got {array.dtype} {array.shape}')
        if len(array) != len(labels):
            raise ValueError(f'{files[name]} has {len(array)} images, but labels.npy has {len(labels)} labels')
    n = len(labels) // 5
    if not np.array_equal(np.tile(labels[:n], 5), labels):
        raise ValueError(f'{files["labels"]} has other labels for one severity than for another')
    labels = np.array(labels[:n])
    if labels.min() != 0 or labels.max() != num_classes - 1:
        raise ValueError(
            f'{files["labels"]} has labels {labels.min()} to {labels.max()}, but the model has {num_classes} classes'
        )
    return [
        Cell(name, s, NpyImages(files[name], labels, (s - 1) * n, img_mode), transform)
        for name in names
        for s in severities
    ]


def _folder_cells(
    root: Path, transform: Any, names: Sequence[str], severities: Sequence[int], img_mode: str, class_map: str
) -> list[Cell]:
    folders = {(name, s): root / name / str(s) for name in names for s in severities}
    missing = [os.path.relpath(path, root) for path in folders.values() if not path.is_dir()]
    if len(missing) == len(folders):
        raise ValueError(f'{root} has neither folders such as {missing[0]} nor arrays such as {names[0]}.npy')
    if missing:
        raise ValueError(f'{root} lacks {", ".join(missing)}; --corruptions and --severities name those to measure')
    # The files have the same names in every folder, so that one list of them, for ImageNet-C of 50,000, is enough.
    files: list[str] = []
    cells: list[Cell] = []
    for (name, s), path in folders.items():
        images = open_dataset(img_mode, name='', root=str(path), split='', search_split=False, class_map=class_map)
        found = [os.path.relpath(file, path) for file, _ in images.dataset.reader.samples]
        if not cells:
            files, labels, classes = found, images.labels, images.classes or []
        elif found != files:
            raise ValueError(
                f'{root}: the files of {cells[0]} and {name} {s} differ in {some(sorted(set(found) ^ set(files)))}'
            )
        cells.append(Cell(name, s, FolderImages(path, files, labels, classes, img_mode), transform))
    return cells
