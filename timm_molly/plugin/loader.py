"""A timm loader whose batches come out mollified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import wrapt
from torch import Tensor

from timm_molly.mollify import Mollify
from timm_molly.target import CoupledTarget

if TYPE_CHECKING:
    from timm_molly.plugin.batch import BatchPicture


class MollyLoader(wrapt.ObjectProxy):  # type: ignore[type-arg]
    """Stand for a loader in everything (`len`, `sampler`, `mixup_enabled`, ...) but the batches it yields.

    Each batch is mollified where it lies, after timm's prefetcher has normalised and erased it and after mixup and
    cutmix, which timm does in the collate function. The workers do what they did before.

    Args:
        loader: Yields (input, target), such as one made by `timm.data.create_loader`.
        mollify: The batch operation.
        picture: Draws the first batch, where that is asked for.
    """

    def __init__(self, loader: Any, mollify: Mollify, picture: BatchPicture | None = None) -> None:
        super().__init__(loader)
        self._self_mollify = mollify
        self._self_picture = picture
        self._self_checked = False

    def __iter__(self) -> Iterator[tuple[Any, Tensor | CoupledTarget]]:
        for x, target in self.__wrapped__:
            if not self._self_checked and target.ndim == 2 and target.device.type != 'cpu':
                self._self_mollify.check_values(
                    target.float()
                )  # waits for the device, so once; on the CPU it is done every time
                self._self_checked = True
            x, target = self._mollified(x, target)
            if self._self_picture:
                self._self_picture.save(partial(self._images, x), len(target))
                self._self_picture = None
            yield x, target

    def _mollified(self, x: Any, target: Tensor) -> tuple[Any, Tensor | CoupledTarget]:
        return self._self_mollify(x, target)

    def _images(self, x: Any, count: int) -> Sequence[Tensor]:
        """The first images (C, H, W) of a batch."""
        return list(x[:count])
