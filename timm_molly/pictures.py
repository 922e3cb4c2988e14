"""Image files as 8-bit pictures."""

from __future__ import annotations

import numpy as np
from PIL import Image

from timm_molly.errors import UserError


def eight_bits(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image to a mode of 8 bits a channel; 16 bits are scaled, 65535 to 255.

    Pillow, and with it timm's own training, cuts 16-bit grey values off at 255 instead, which leaves hardly anything
    but white.

    Args:
        image: Of any mode. 32-bit grey is what some Pillows make of a 16-bit PNG, so its values must be such.
        mode: 'L' or 'RGB'.

    Raises:
        UserError: The values are floating point or beyond 16 bits, so that nothing says which is white.
    """
    if image.mode in ('I', 'F'):
        low, high = np.asarray(image).min(), np.asarray(image).max()
        if image.mode == 'F' or not 0 <= low <= high <= 65535:
            raise UserError(f'its pixels of mode {image.mode} go from {low:g} to {high:g}: save it with 8 or 16 bits')
    if is_16_bit(image):
        # Through mode I, whose arithmetic all Pillows have.
        image = image.convert('I').point(lambda value: value * (1 / 257) + 0.5).convert('L')
    return image.convert(mode)


def is_16_bit(image: Image.Image) -> bool:
    """Tell whether an image has 16 bits of grey."""
    return image.mode == 'I' or image.mode.startswith('I;16')
