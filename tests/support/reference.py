"""The published corruption generator, for whoever has it.

MOLLY_ROBUSTNESS_CODE names the folder ImageNet-C/create_c of a checkout of hendrycks/robustness. Its scripts need
`pip install Wand` and the ImageMagick library (libmagickwand). They are never part of this project, and what compares
with them is skipped without.
"""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

SCRIPTS = {
    'imagenet-c': 'make_imagenet_c.py',
    'tiny-imagenet-c': 'make_tinyimagenet_c.py',
    'cifar-c': 'make_cifar_c.py',
}
SIZES = {'imagenet-c': 224, 'tiny-imagenet-c': 64, 'cifar-c': 32}

MISSING = not os.environ.get('MOLLY_ROBUSTNESS_CODE') or importlib.util.find_spec('wand') is None
REASON = 'set MOLLY_ROBUSTNESS_CODE to ImageNet-C/create_c of hendrycks/robustness and install Wand to compare'
needs_reference = pytest.mark.skipif(MISSING, reason=REASON)

DETERMINISTIC = (
    'defocus_blur',
    'zoom_blur',
    'brightness',
    'contrast',
    'pixelate',
    'jpeg_compression',
    'gaussian_blur',
    'saturate',
)

# What the libraries have renamed or dropped since 2018, and frost pictures named relative to the script's folder.
# scikit-image now draws from a generator of its own: it is seeded from NumPy's, as every other draw is.
MENDED = {
    'multichannel=True': 'channel_axis=-1',
    'scipy.ndimage.interpolation': 'scipy.ndimage',
    'np.float_)': 'np.float64)',
    'np.fromstring(': 'np.frombuffer(',
    ", mode='L')": ')',
    "mode='s&p',": "mode='s&p', rng=np.random.randint(2**31),",
}
BEGIN = '# /////////////// Distortion Helpers ///////////////'
END = '# /////////////// End Distortions ///////////////'


def load(script: str) -> dict[str, Callable[..., Any]]:
    """The 19 corruptions of a script, by name: what stands before and after them reads and writes whole data sets."""
    folder = Path(os.environ['MOLLY_ROBUSTNESS_CODE']).resolve()
    text = (folder / script).read_text()
    source = text[text.index(BEGIN) : text.index(END)]
    for old, new in {**MENDED, "'./frost": f"'{folder}/frost"}.items():
        assert old in source, f'{script} has no {old}'
        source = source.replace(old, new)
    namespace: dict[str, Any] = {'np': np}
    exec(compile(source, str(folder / script), 'exec'), namespace)
    first = source.index('# /////////////// Distortions ///////////////')
    names = [line[4 : line.index('(')] for line in source[first:].splitlines() if line.startswith('def ')]
    return {name: namespace[name] for name in names if name != 'fgsm'}


def pixels(output: Any) -> np.ndarray:
    """What the scripts store of a corruption's output, as they cast it: without rounding."""
    return np.asarray(output) if isinstance(output, Image.Image) else np.uint8(output)


def photograph(size: int) -> Image.Image:
    """A natural picture, square."""
    picture = Image.fromarray(load_sample_image('china.jpg'))
    left = (picture.width - picture.height) // 2
    return picture.crop((left, 0, left + picture.height, picture.height)).resize((size, size), Image.Resampling.BICUBIC)
