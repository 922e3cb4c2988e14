"""One corruption as a transform of images, such as torchvision's."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from timm_molly.errors import UserError, hint
from timm_molly.plain import short
from timm_molly.robustness.corruptions.names import ALL, SEVERITIES
from timm_molly.robustness.corruptions.strengths import strengths_of, table_for
from timm_molly.robustness.corruptions.transforms import corrupt_pixels

Picture = TypeVar('Picture', Image.Image, NDArray[np.uint8])


@dataclass(frozen=True)
class Corrupt:
    """Corrupt images as a published set does: `Corrupt('fog', severity=3)(image)`.

    The same image gets the same corruption, in any order and in any worker: what is drawn for it follows from its
    pixels and the seed, or from its place in a data set, as in `evaluate`, where `index` says it.

    Attributes:
        name: One of the 15 common corruptions, of the 4 held out, or of the table's 10 of C-bar.
        severity: 1 to 5.
        table: Strengths: 'imagenet-c', 'tiny-imagenet-c' or 'cifar-c'; None chooses by an image's shorter side.
        seed: 0 or more.

    Raises:
        UserError: A value is none of these, or (on import) a package is missing.

    Example:
        >>> image = Image.new('RGB', (64, 48), 'orange')
        >>> Corrupt('fog', severity=3)(image).size
        (64, 48)
    """

    name: str
    severity: int = 3
    table: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in ALL:
            raise UserError(f'no corruption {short(self.name)}{hint(str(self.name), ALL)}; there are {", ".join(ALL)}')
        if type(self.severity) is not int or self.severity not in SEVERITIES:
            raise UserError(f'severity must be 1 to 5, got {self.severity!r}')
        if self.table is not None:
            strengths_of(self.table, self.name)
        if type(self.seed) is not int or self.seed < 0:
            raise UserError(f'seed must be 0 or more, got {self.seed!r}')

    def __call__(self, image: Picture, index: int | None = None) -> Picture:
        """Corrupt an image.

        Args:
            image: A PIL image, RGB or grey (L), or an array (H, W, 3), (H, W, 1) or (H, W), uint8.
            index: Its place in a data set, 0 or more; None to draw by its pixels.

        Returns:
            One of the same kind, size and mode.

        Raises:
            UserError: It is none of these, or smaller than the table admits.
        """
        if isinstance(image, Image.Image):
            if image.mode not in ('RGB', 'L'):
                raise UserError(
                    f"the image must be RGB or grey (L), got {image.mode}: convert it, image.convert('RGB')"
                )
            return Image.fromarray(self._corrupted(np.asarray(image), index))
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            kind = f'{image.dtype} {image.shape}' if isinstance(image, np.ndarray) else type(image).__name__
            raise UserError(f'the image must be a PIL image or a uint8 array (H, W, 3), got {kind}')
        return self._corrupted(image, index)

    def _corrupted(self, pixels: NDArray[np.uint8], index: int | None) -> NDArray[np.uint8]:
        if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,)) or 0 in pixels.shape:
            raise UserError(f'the image must be (H, W, 3), (H, W, 1) or (H, W), got {pixels.shape}')
        if index is None:
            index = zlib.crc32(pixels.tobytes())
        table = self.table or table_for(min(pixels.shape[:2]))
        channels = pixels.reshape(*pixels.shape[:2], -1)
        return corrupt_pixels(channels, self.name, self.severity, table, index, self.seed).reshape(pixels.shape)
