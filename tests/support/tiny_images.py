"""A tiny image folder as train.py reads it: 3 classes, 16 training and 4 validation images each, 36 px."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ('circles', 'dots', 'stripes')


def write(root: Path) -> None:
    """Write the images below `root`, in a folder for each split and in that one for each class."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:36, :36]
    for label, name in enumerate(CLASSES):
        for split, count in (('train', 16), ('validation', 4)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                wave = np.sin((rows * (label == 2) + np.hypot(rows - 18, columns - 18) * (label == 0)) / 2 + i)
                colour = rng.integers(60, 200, 3)
                pixels = colour + 50 * wave[..., None] + rng.normal(0, 30 * (label == 1) + 5, (36, 36, 3))
                Image.fromarray(pixels.clip(0, 255).astype('uint8')).save(folder / f'{i:02d}.png')
