"""The picture of a training's first batch: TIMM_MOLLY_BATCH=batch.png."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from timm_molly.config import MollyConfig
from timm_molly.errors import UserError, needs
from timm_molly.mollify import Mollify
from timm_molly.plugin.script import of_script
from timm_molly.preview import COLOURS, save_figure

VARIABLE = 'TIMM_MOLLY_BATCH'
COUNT, COLUMNS = 24, 8  # images that are drawn
NAMES = {'x': 'clean', 'n': 'noise', 'b': 'blur', 'e': 'nothing but noise'}
CELL, CAPTION = 1.2, 0.36  # inches

_logger = logging.getLogger('timm_molly')


@dataclass(frozen=True)
class BatchPicture:
    """Draws the first images of a batch as the network sees them, with role, t and the confidence that labels keep.

    Attributes:
        path: Where to; beside the checkpoints of train.py, unless it is absolute.
        mollify: The batch operation, which knows what it drew.
        mean: Mean and
        std: standard deviation of the channels, which images were normalised with.
    """

    path: Path
    mollify: Mollify
    mean: Sequence[float]
    std: Sequence[float]

    @classmethod
    def asked_for(cls, mollify: Mollify, mean: Sequence[float], std: Sequence[float]) -> BatchPicture | None:
        """Return one if the environment asks for it and this is the first process, None if not.

        Raises:
            UserError: No picture can have such a name, or matplotlib is missing.
        """
        path = Path(os.environ.get(VARIABLE, ''))
        if path == Path() or (torch.distributed.is_initialized() and torch.distributed.get_rank() != 0):
            return None
        if path.suffix.lower() not in ('.png', '.pdf', '.svg'):
            raise UserError(f'{VARIABLE} must be a .png, .pdf or .svg file, got {str(path)!r}')
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise needs(VARIABLE, 'plot', error) from None
        return cls(path, mollify, mean, std)

    def save(self, images_of: Callable[[int], Sequence[Tensor]], batch_size: int) -> None:
        """Draw a batch that was just mollified; waits for its device once.

        Args:
            images_of: Returns the first so many images, each (C, H, W).
            batch_size: Number of images.
        """
        folder = of_script('output_dir') or '.'
        output = Path(folder) / self.path
        images = [image.float().cpu() for image in images_of(min(COUNT, batch_size))]
        roles, t = self.mollify.drawn
        per_view = batch_size // self.mollify.num_splits
        places = [i % per_view for i in range(len(images))]
        args = of_script('args')
        known = getattr(args, 'num_classes', None), getattr(args, 'smoothing', None) or 0.0
        said = [_caption(self.mollify.config, roles[i % len(roles)], t[i], *known) for i in places]
        pictures = [_picture(image, self.mean, self.std) for image in images]
        try:
            save_figure(_drawn(pictures, said, [roles[i % len(roles)] for i in places]), output)
            _logger.info(f'Drew the first batch: {output}')
        except UserError as error:  # no reason to stop a training
            _logger.warning(f'The first batch was not drawn: {error}')


def _caption(config: MollyConfig, role: str, t: Tensor, num_classes: int | None, smoothing: float) -> str:
    """Say what was made of an image and of its label."""
    name = f'{NAMES[role]}, t = {t:.2f}' if role in 'nb' else NAMES[role]
    if config.weighted:
        return f'{name}\nweight {config.weight(role, t):.2f}'
    if num_classes is None:
        return f'{name}\nlabel keeps {(1 - smoothing) * (1 - config.gamma(role, t)):.2f}'
    return f'{name}\nconfidence {config.confidence(role, t, num_classes, smoothing):.2f}'


def _picture(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo the normalisation of an image (C, H, W); return (H, W) or (H, W, 3) in [0, 1]."""
    shape = (-1, 1, 1)
    pixels = (image * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)).clamp(0, 1)
    return pixels.permute(1, 2, 0) if len(pixels) == 3 else pixels[0]


def _drawn(pictures: Sequence[Tensor], said: Sequence[str], roles: Sequence[str]) -> Any:
    """Set pictures in a grid, each with what is said of it below."""
    from matplotlib.figure import Figure

    rows = -(-len(pictures) // COLUMNS)
    columns = min(COLUMNS, len(pictures))
    width, height = CELL * columns, (CELL + CAPTION) * rows
    figure = Figure(figsize=(width, height), dpi=150)
    for i, (picture, text, role) in enumerate(zip(pictures, said, roles, strict=True)):
        row, column = divmod(i, columns)
        left, bottom = column * CELL + 0.04, height - row * (CELL + CAPTION) - CELL
        side = CELL - 0.08
        axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
        axes.imshow(picture.numpy(), cmap='gray', vmin=0, vmax=1, interpolation='nearest')
        axes.set_axis_off()
        colour = {'n': COLOURS['noise'], 'b': COLOURS['blur']}.get(role, 'black')
        axes.text(0.5, -0.04, text, transform=axes.transAxes, ha='center', va='top', fontsize=6.5, color=colour)
    return figure
