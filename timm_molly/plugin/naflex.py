"""A timm NaFlex loader, whose batches are patches of images of different shapes, that come out mollified."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from timm_molly.errors import UserError
from timm_molly.mollify import Mollify, noise_source, turns
from timm_molly.plugin.loader import MollyLoader
from timm_molly.target import CoupledTarget

if TYPE_CHECKING:
    from timm_molly.plugin.batch import BatchPicture


class NaFlexMollyLoader(MollyLoader):
    """Stand for a NaFlex loader in everything but the batches it yields, each mollified by `mollify_patches`.

    Args:
        loader: One made by `timm.data.create_naflex_loader` for training, with its prefetcher, which normalises.
        mollify: The batch operation.
        patch_size: As of `mollify_patches`.
        channels_last: Likewise.
        picture: As of `MollyLoader`.
    """

    def __init__(
        self,
        loader: Any,
        mollify: Mollify,
        patch_size: tuple[int, int],
        channels_last: bool,
        picture: BatchPicture | None = None,
    ) -> None:
        super().__init__(loader, mollify, picture)
        self._self_layout = patch_size, channels_last

    def _mollified(self, x: Any, target: Tensor) -> tuple[Any, Tensor | CoupledTarget]:
        return x, mollify_patches(self._self_mollify, x, target, *self._self_layout)

    def _images(self, x: Any, count: int) -> Sequence[Tensor]:
        found = []
        for patches, places, valid in zip(
            *(x[f'patch{part}'][:count].cpu() for part in ('es', '_coord', '_valid')), strict=True
        ):
            rows, columns = (places[valid].amax(0) + 1).tolist()
            found.append(_join(patches[None, : rows * columns], rows, columns, *self._self_layout)[0])
        return found


@torch.no_grad()
def mollify_patches(
    mollify: Mollify, batch: dict[str, Any], target: Tensor, patch_size: tuple[int, int], channels_last: bool = True
) -> Tensor | CoupledTarget:
    """Mollify a NaFlex batch in place: each image as `mollify` does it, padding patches not at all.

    Images of one role and one shape are put together from their patches, degraded and cut up again.

    Args:
        mollify: The batch operation.
        batch: 'patches' (B, N, P) or (B, N, height, width, C), C before height where not `channels_last`, normalised;
            'patch_coord' (B, N, 2), each patch's row and column; and 'patch_valid' (B, N). The patches of an image
            come first, row by row, and fill a rectangle.
        target: As of `Mollify`.
        patch_size: Height and width of a flat patch.
        channels_last: See 'patches'.

    Returns:
        The target, as `Mollify` does.

    Raises:
        UserError: The patches of an image are not a rectangle.
    """
    patches = batch['patches']
    mollify.check_target(target, len(patches))
    # The only wait for the device.
    last = (batch['patch_coord'] * batch['patch_valid'][..., None]).amax(1)
    grids = torch.cat([last + 1, batch['patch_valid'].sum(1, keepdim=True)], 1).tolist()
    for i, (rows, columns, count) in enumerate(grids):
        if rows * columns != count:
            raise UserError(
                f'image {i} of a NaFlex batch has {count} patches in a grid of {rows} x {columns}: not an image'
            )
    rng = mollify.rng()
    roles, t = mollify.draw(len(patches), rng)
    lowered = mollify.lower(target, roles, t)
    source = noise_source(patches.device, rng)
    groups: dict[tuple[str, int, int], list[int]] = defaultdict(list)
    for role, turn in turns(roles):
        for i in range(len(patches))[turn]:
            groups[role, grids[i][0], grids[i][1]].append(i)
    order = torch.tensor([i for group in groups.values() for i in group], dtype=torch.long)
    if patches.device.type == 'cuda':
        order = order.pin_memory()  # so that the copy does not wait
    order, t = (value.to(patches.device, non_blocking=True) for value in (order, t))
    for (role, rows, columns), index in zip(
        groups, torch.split(order, [len(group) for group in groups.values()]), strict=True
    ):
        images = patches[:, : rows * columns]
        joined = _join(images[index], rows, columns, patch_size, channels_last)
        mollify.degrade(role, joined, t[index], source)
        images[index] = _cut(joined, images.shape[2:], rows, columns, channels_last)
    return lowered


def _join(patches: Tensor, rows: int, columns: int, patch_size: tuple[int, int], channels_last: bool) -> Tensor:
    """Put images (B, C, H, W) together from their patches."""
    if patches.ndim == 3:
        flat = (*patch_size, -1) if channels_last else (-1, *patch_size)
        patches = patches.reshape(*patches.shape[:2], *flat)
    # (B, rows, columns, and height, width, C or C, height, width)
    patches = patches.reshape(len(patches), rows, columns, *patches.shape[2:])
    patches = patches.permute(0, 5, 1, 3, 2, 4) if channels_last else patches.permute(0, 3, 1, 4, 2, 5)
    return patches.flatten(4, 5).flatten(2, 3)


def _cut(images: Tensor, patch: torch.Size, rows: int, columns: int, channels_last: bool) -> Tensor:
    """Cut images up again into (B, N, *patch)."""
    batch_size, channels, height, width = images.shape
    parts = images.reshape(batch_size, channels, rows, height // rows, columns, width // columns)
    parts = parts.permute(0, 2, 4, 3, 5, 1) if channels_last else parts.permute(0, 2, 4, 1, 3, 5)
    return parts.reshape(batch_size, rows * columns, *patch)
