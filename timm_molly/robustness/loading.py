"""Reading the images of conditions into normalised batches."""

from __future__ import annotations

import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from timm_molly.errors import UserError
from timm_molly.robustness.conditions import Condition

KEPT_BYTES = 2**28


class Loader:
    """Reads conditions one after the other into normalised batches on a device; the same on any number of workers.

    All go through one set of workers, because starting workers takes longer than many a condition.

    Args:
        plan: What to read, in this order.
        batch_size: Images a batch; a batch never holds images of two conditions.
        workers: Number of processes that read and corrupt; 0 for this one.
        config: 'input_size' (C, H, W), 'mean' and 'std', as timm has them.
        device: Where batches go.
        claim: Asked just before a condition is read; where it says no, that one is left out.
    """

    def __init__(
        self,
        plan: Sequence[Condition],
        batch_size: int,
        workers: int,
        config: Mapping[str, Any],
        device: torch.device,
        claim: Callable[[Condition], bool] = lambda condition: True,
    ) -> None:
        self.plan, self.claim = plan, claim
        self.batch_size = batch_size
        self.workers = workers
        self.batches = _Batches(plan, math.prod(config['input_size']))
        mean, std, channels = config['mean'], config['std'], config['input_size'][0]
        self.prefetch: dict[str, Any] = dict(mean=mean, std=std, channels=channels, device=device)

    def __iter__(self) -> Iterator[tuple[Condition, Tensor, Tensor]]:
        """Yield (condition, images (B, C, H, W), class indices (B,)), the batches of a condition in order.

        Raises:
            UserError: An image cannot be read (which).
        """
        try:
            if any(condition.images.streamed for condition in self.plan):
                yield from self._streamed()
            else:
                yield from self._indexed()
        except UserError as error:  # a worker puts its whole traceback before the message
            raise UserError(str(error).strip().splitlines()[-1].rpartition('UserError: ')[2]) from None

    def _streamed(self) -> Iterator[tuple[Condition, Tensor, Tensor]]:
        for condition in filter(self.claim, self.plan):
            # A stream has no index but its order, which several workers would not keep.
            batches = self._prefetched(_Stream(condition), min(self.workers, 1), batch_size=self.batch_size)
            start = 0
            for x, target in batches:
                yield condition, _degraded(condition, x, start), target
                start += len(x)

    def _indexed(self) -> Iterator[tuple[Condition, Tensor, Tensor]]:
        order = _Order(self.plan, self.batch_size, self.claim)
        for x, target in self._prefetched(self.batches, self.workers, sampler=order, batch_size=None):
            number, start = order.asked.popleft()
            yield self.plan[number], _degraded(self.plan[number], x, start), target

    def _prefetched(self, dataset: Any, workers: int, **how: Any) -> Iterator[tuple[Tensor, Tensor]]:
        from timm.data.loader import PrefetchLoader

        pin_memory = self.prefetch['device'].type == 'cuda'
        loader: Any = DataLoader(
            dataset, num_workers=workers, worker_init_fn=_start_worker, pin_memory=pin_memory, **how
        )
        batches = iter(loader)
        first = next(batches, None)
        if first is not None:  # timm 1.0.15 fails where there is none, because other processes claimed all
            yield from PrefetchLoader(itertools.chain([first], batches), **self.prefetch)


class _Order:
    """The batches, none across two conditions, as (number, first index, index after the last): a sampler.

    Attributes:
        asked: Number and first index of those that were asked for, in order; whoever gets a batch takes its own out.
    """

    def __init__(self, plan: Sequence[Condition], batch_size: int, claim: Callable[[Condition], bool]) -> None:
        self.plan, self.batch_size, self.claim = plan, batch_size, claim
        self.asked: deque[tuple[int, int]] = deque()

    def __len__(self) -> int:
        return sum(-(-len(condition.images) // self.batch_size) for condition in self.plan)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        for number, condition in enumerate(self.plan):
            length = len(condition.images)
            if self.claim(condition):  # no sooner, for other processes to have a share
                for start in range(0, length, self.batch_size):
                    self.asked.append((number, start))
                    yield number, start, min(start + self.batch_size, length)


class _Batches(Dataset):  # type: ignore[type-arg]
    """Whole batches of uint8 images (B, C, H, W) and labels (B,), by what `_Order` says."""

    def __init__(self, plan: Sequence[Condition], image_bytes: int) -> None:
        self.plan = plan
        # All corruptions on the fly start from the same pictures, which each worker keeps where they fit.
        images = {id(condition.images): condition.images for condition in plan if not condition.images.streamed}
        self.keep = len(images) == 1 < len(plan) and image_bytes * len(plan[0].images) <= KEPT_BYTES
        self.kept: dict[int, tuple[NDArray[Any], int]] = {}

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        number, start, stop = key
        condition = self.plan[number]
        pixels, labels = [], []
        for index in range(start, stop):
            picture, label = self.kept[index] if index in self.kept else self._read(condition, index)
            if self.keep:
                self.kept[index] = picture, label
            pixels.append(picture if condition.corrupt is None else condition.corrupt(picture, index))
            labels.append(label)
        return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)

    @staticmethod
    def _read(condition: Condition, index: int) -> tuple[NDArray[Any], int]:
        image, label = condition.images[index]
        return prepared(condition, image), label


class _Stream(IterableDataset):  # type: ignore[type-arg]
    def __init__(self, condition: Condition) -> None:
        self.condition = condition

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        for index, (image, label) in enumerate(self.condition.images):
            pixels = prepared(self.condition, image)
            pixels = pixels if self.condition.corrupt is None else self.condition.corrupt(pixels, index)
            yield torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), label


def prepared(condition: Condition, image: Image.Image) -> NDArray[Any]:
    """Resize and crop an image; return its pixels (H, W, C), uint8."""
    for step in condition.steps:
        image = step(image)
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _degraded(condition: Condition, x: Tensor, start: int) -> Tensor:
    return condition.degrade(x, range(start, start + len(x))) if condition.degrade else x


def _start_worker(_: int) -> None:
    import cv2

    cv2.setNumThreads(0)  # the workers are the threads


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
