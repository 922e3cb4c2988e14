"""Parts of ImageNet's validation images that others measure on, by the names of their files."""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Iterable
from typing import Any

from PIL import Image

from timm_molly.errors import UserError
from timm_molly.robustness.images import Images
from timm_molly.weights import some

SUBSETS = ('robustbench',)


def file_names(subset: str) -> frozenset[str]:
    """The file names of a subset, such as ILSVRC2012_val_00000011.JPEG.

    Raises:
        UserError: There is no such subset.

    Example:
        >>> len(file_names('robustbench'))
        5000
    """
    if subset not in SUBSETS:
        raise UserError(f'no subset {subset!r}; there is {", ".join(SUBSETS)}')
    lines = (importlib.resources.files('timm_molly.robustness') / f'{subset}.txt').read_text().splitlines()
    numbers = (int(number) for line in lines if not line.startswith('#') for number in line.split())
    return frozenset(f'ILSVRC2012_val_{number:08d}.JPEG' for number in numbers)


def chosen_files(files: Iterable[str], subset: str, where: object) -> list[int]:
    """Find the files of a subset among others, by their place.

    Args:
        files: Paths.
        subset: Its name.
        where: What they are in, for the error.

    Raises:
        UserError: Some are not there.
    """
    wanted, places = file_names(subset), {os.path.basename(path): i for i, path in enumerate(files)}
    if wanted - places.keys():
        raise UserError(
            f'{where} lacks {len(wanted - places.keys())} of the {len(wanted)} images of {subset}: '
            f'{some(sorted(wanted - places.keys()))}'
        )
    return sorted(places[name] for name in wanted)


class Subset(Images):
    """Some images of others, which are those of files."""

    def __init__(self, images: Images, subset: str) -> None:
        paths = images.paths()
        if paths is None:
            raise UserError(f'the images of {subset} are known by their files, which {images.name} does not have')
        self.images, self.subset = images, subset
        self.places = chosen_files(paths, subset, images.name)
        self.name, self.split, self.classes, self.mapped = images.name, images.split, images.classes, images.mapped
        self.labels = None if images.labels is None else images.labels[self.places]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images[self.places[index]]

    def place(self) -> dict[str, Any]:
        return {**self.images.place(), 'subset': self.subset}

    def paths(self) -> list[str] | None:
        paths = self.images.paths()
        return None if paths is None else [paths[place] for place in self.places]
