"""What images are measured under: corruptions on the fly, a published set of corrupted ones, or mollification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from timm_molly.classifier import Classifier
from timm_molly.config import MollyConfig, split_aa
from timm_molly.errors import UserError
from timm_molly.files import hint_beside
from timm_molly.functional import blur, noise
from timm_molly.robustness.corruptions import names as N
from timm_molly.robustness.corruptions import strengths, transforms
from timm_molly.robustness.corruptions.published import published_images, table_of
from timm_molly.robustness.images import Images, check_classes, folder_name
from timm_molly.robustness.report import BenchmarkRecord, Place, place_name
from timm_molly.robustness.subset import Subset, file_names
from timm_molly.training import smoothing_of
from timm_molly.weights import some

TEMPERATURES = tuple(round(0.05 * i, 2) for i in range(1, 21))
SEED = 42


@dataclass(frozen=True)
class Condition:
    """One corruption at one severity, or one degradation at one t, of a data set.

    Attributes:
        name: 'clean', a corruption, 'noise' or 'blur'.
        level: 0 for 'clean', the severity 1 to 5, or t in (0, 1].
        images: The images.
        steps: Resize and crop a PIL image.
        corrupt: Changes the pixels (H, W, C), uint8, of an image that is resized and cropped, by its index.
        degrade: Changes the normalised batch (B, C, H, W) by its indices (B,).
    """

    name: str
    level: float
    images: Images
    steps: Sequence[Any]
    corrupt: Callable[[NDArray[Any], int], NDArray[Any]] | None = None
    degrade: Callable[[Tensor, range], Tensor] | None = None

    @property
    def place(self) -> Place:
        """Where its figures are in a report."""
        return self.name, self.level

    def __str__(self) -> str:
        return place_name(self.place) if self.level else self.name


class Conditions(Protocol):
    """What `evaluate` measures under: `Corruptions`, `Published` or `Mollification`."""

    def lay_out(self, images: Images | None, classifier: Classifier) -> tuple[list[Condition], BenchmarkRecord]:
        """List the conditions, clean images first where there are any, and say what a report says of them.

        Raises:
            UserError: The images or the classifier will not do.
        """
        ...


@dataclass(frozen=True)
class Corruptions:
    """Corruptions of images as they are read, after resizing and cropping.

    Attributes:
        names: Corruptions or groups of them: 'common', 'held-out', 'all' (both), 'noise', 'blur', 'weather', 'digital',
            and 'bar', the table's 10 of C-bar.
        severities: Some of 1 to 5.
        table: Strengths: 'imagenet-c', 'tiny-imagenet-c' or 'cifar-c'; None chooses by the image size.
        seed: With an image's place in the data set it decides what is drawn for it.

    Raises:
        UserError: A value is none of these.
    """

    names: Sequence[str] = ('common',)
    severities: Sequence[int] = N.SEVERITIES
    table: str | None = None
    seed: int = SEED

    def __post_init__(self) -> None:
        if self.table is not None and self.table not in strengths.TABLES:
            raise UserError(f'the table must be one of {", ".join(strengths.TABLES)}, got {self.table!r}')
        _keep_choices(self)
        check_seed(self.seed)

    def lay_out(self, images: Images | None, classifier: Classifier) -> tuple[list[Condition], BenchmarkRecord]:
        """As `Conditions.lay_out`."""
        if images is None:
            raise UserError('no data: corruptions on the fly need images')
        side = min(classifier.input_size[1:])
        table = self.table or strengths.table_for(side)
        strengths.check_size(side, table)
        names = N.chosen(self.names, table)
        steps = classifier.pixels()
        conditions = [
            Condition(name, s, images, steps, partial(_corrupt, name, s, table, self.seed))
            for name in names
            for s in self.severities
        ]
        record = BenchmarkRecord(
            'on the fly',
            table=table,
            seed=self.seed,
            image_size=classifier.input_size[1:],
            corruptions=names,
            severities=tuple(self.severities),
        )
        return [Condition('clean', 0, images, steps), *conditions], record


@dataclass(frozen=True)
class Published:
    """A published set of corrupted images: ImageNet-C, Tiny-ImageNet-C, CIFAR-10-C, CIFAR-100-C, or of C-bar.

    Attributes:
        root: Its folder, with <corruption>/<severity>/<class>/ (C-bar: <corruption>/<strength>/<class>/) or
            <corruption>.npy and labels.npy.
        names: As of `Corruptions`.
        severities: Some of 1 to 5.
        crop_pct: Of its images, which are cropped already.
        class_map: File that says which classes the folders are; '' for the classifier's, in order.
        subset: 'robustbench' for the 5,000 images of ImageNet that RobustBench measures on; None for all.

    Raises:
        UserError: A value is none of these, or there is no such folder.
    """

    root: str | Path
    names: Sequence[str] = ('common',)
    severities: Sequence[int] = N.SEVERITIES
    crop_pct: float = 1.0
    class_map: str = ''
    subset: str | None = None

    def __post_init__(self) -> None:
        if not Path(self.root).is_dir():
            raise UserError(f'no such folder: {self.root}{hint_beside(self.root)} (--corrupted-dir)')
        _keep_choices(self)
        if self.subset is not None:
            file_names(self.subset)

    @property
    def chosen(self) -> tuple[str, ...]:
        """The corruptions that `names` choose of this set."""
        return N.chosen(self.names, table_of(Path(self.root)))

    def lay_out(self, images: Images | None, classifier: Classifier) -> tuple[list[Condition], BenchmarkRecord]:
        """As `Conditions.lay_out`."""
        steps, root, names = classifier.pixels(self.crop_pct), Path(self.root), self.chosen
        if images is not None and self.subset and not isinstance(images, Subset):
            images = Subset(images, self.subset)
        found = published_images(root, names, self.severities, classifier, self.class_map, self.subset)
        conditions = [Condition(name, s, of, steps) for (name, s), of in found.items()]
        corrupted = conditions[0].images
        check_classes(corrupted, classifier, self.root, {})
        if images is not None:
            if images.classes and corrupted.classes and images.classes != corrupted.classes:
                different = sorted(set(corrupted.classes) ^ set(images.classes))
                raise UserError(f'the class folders of the clean and the corrupted images differ in {some(different)}')
            conditions.insert(0, Condition('clean', 0, images, classifier.pixels()))
        record = BenchmarkRecord(
            'official',
            name=folder_name(self.root),
            crop_pct=self.crop_pct,
            corruptions=names,
            severities=tuple(self.severities),
        )
        return conditions, record


@dataclass(frozen=True)
class Mollification:
    """Noise and blur as training makes them, at rising t.

    Attributes:
        aa: The aa string whose roles, smallest blur and label schedule are taken; None for those of the classifier's
            training, or the paper's.
        temperatures: t in (0, 1], rising.
        seed: Of the noise, which is the same for an image at every t.

    Raises:
        UserError: `aa` has no molly, or neither noises nor blurs; or a t is out of range.
    """

    aa: str | None = None
    temperatures: Sequence[float] = TEMPERATURES
    seed: int = SEED

    def __post_init__(self) -> None:
        if self.aa is not None:
            config, _ = split_aa(self.aa)
            if config is None:
                raise UserError(f'{self.aa!r} has no molly in it; try --aa molly')
            _check_degrades(config)
        if not self.temperatures or not all(0 < t <= 1 for t in self.temperatures):
            raise UserError(f'temperatures must be above 0 and at most 1, got {self.temperatures}')
        check_seed(self.seed)

    def lay_out(self, images: Images | None, classifier: Classifier) -> tuple[list[Condition], BenchmarkRecord]:
        """As `Conditions.lay_out`."""
        if images is None:
            raise UserError('no data: mollification needs images')
        taught = split_aa(self.aa)[0] if self.aa else classifier.molly
        config = taught or MollyConfig()
        side = max(classifier.input_size[1:])
        if config.min_scale > side:
            raise UserError(f'the smallest blur of {config} is {config.min_scale:g} pixels, more than the side, {side}')
        _check_degrades(config)
        steps = classifier.pixels()
        conditions = [Condition('clean', 0, images, steps)]
        if 'n' in config.roles:
            conditions += [
                Condition('noise', t, images, steps, degrade=partial(_noise, t, self.seed)) for t in self.temperatures
            ]
        if 'b' in config.roles:
            conditions += [
                Condition('blur', t, images, steps, degrade=partial(_blur, t, config.min_scale))
                for t in self.temperatures
            ]
        smoothing = smoothing_of(classifier.training.settings) if taught and classifier.training else None
        record = BenchmarkRecord(
            'mollification',
            roles=''.join(sorted(set(config.roles) & {'n', 'b'})),
            min_scale=config.min_scale,
            seed=self.seed,
            image_size=classifier.input_size[1:],
            taught=str(taught) if taught else None,
            smoothing=smoothing,
        )
        return conditions, record


def held_out(images: Images, classifier: Classifier, seed: int) -> tuple[list[Condition], MollyConfig]:
    """List the conditions that temperatures are fitted under: clean images, and the same as training saw them.

    Args:
        images: Held-out images.
        classifier: The aa string of its training is the law of noise and blur; molly's own where that is not known.
        seed: Of what is drawn.
    """
    config, steps = classifier.molly or MollyConfig(), classifier.pixels()
    trained = Condition('trained', 0, images, steps, degrade=partial(_as_trained, config, seed))
    return [Condition('clean', 0, images, steps), trained], config


def common(table: str | None = None, severities: Sequence[int] = N.SEVERITIES, seed: int = SEED) -> Corruptions:
    """The 15 common corruptions of Hendrycks & Dietterich, at five severities: what `evaluate` measures by default.

    Args:
        table: Strengths: 'imagenet-c', 'tiny-imagenet-c' or 'cifar-c'; None chooses by the image size.
        severities: Some of 1 to 5.
        seed: Of what is drawn.

    Raises:
        UserError: A value is none of these.

    Example:
        >>> common('imagenet-c', severities=(3, 5)).severities
        (3, 5)
    """
    return Corruptions(severities=severities, table=table, seed=seed)


def bar(table: str | None = None, severities: Sequence[int] = N.SEVERITIES, seed: int = SEED) -> Corruptions:
    """The 10 corruptions of C-bar (Mintun, Kirillov & Xie), chosen to be unlike the common ones, at five severities.

    Source: "On Interaction Between Augmentations and Corruptions in Natural Corruption Robustness", NeurIPS 2021,
    https://arxiv.org/abs/2102.11273. Those of ImageNet-C-bar and of CIFAR-10-C-bar differ: five are in both.

    Args:
        table: Strengths: 'imagenet-c' for ImageNet-C-bar, 'cifar-c' for CIFAR-10-C-bar, and 'tiny-imagenet-c' for the
            latter on images of 64 pixels; None chooses by the image size.
        severities: Some of 1 to 5.
        seed: Of what is drawn.

    Raises:
        UserError: A value is none of these.

    Example:
        >>> bar('cifar-c', severities=(3, 5)).names
        ('bar',)
    """
    return Corruptions(('bar',), severities, table, seed)


def _check_degrades(config: MollyConfig) -> None:
    if not set(config.roles) & {'n', 'b'}:
        raise UserError(f"'{config}' neither noises nor blurs, so there is nothing to measure; try --aa molly")


def check_seed(seed: int) -> None:
    """Raise UserError unless a seed is a whole number that all generators take."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UserError(f'seed must be 0 or more, got {seed!r}')
    if seed >= 2**31:
        raise UserError(f'seed must be below 2**31, got {seed}')


def _keep_choices(conditions: Corruptions | Published) -> None:
    """Check names and severities, and keep the latter in their order."""
    names = (conditions.names,) if isinstance(conditions.names, str) else tuple(conditions.names)
    N.chosen(names, getattr(conditions, 'table', None))
    object.__setattr__(conditions, 'names', names)
    severities = conditions.severities
    if not severities or not all(type(s) is int and s in N.SEVERITIES for s in severities):
        raise UserError(f'severities must be some of 1 to 5, got {severities}')
    object.__setattr__(conditions, 'severities', tuple(sorted(set(severities))))


def _corrupt(name: str, severity: int, table: str, seed: int, pixels: NDArray[Any], index: int) -> NDArray[Any]:
    return transforms.corrupt_pixels(pixels, name, severity, table, index, seed)


def _noise(t: float, seed: int, x: Tensor, indices: range) -> Tensor:
    # The same noise at every t, so that the curve shows t and not the draw.
    draws = []
    for index in indices:
        generator = torch.Generator().manual_seed(seed * 2**32 + index)
        draws.append(torch.randn(x.shape[1:], generator=generator))
    return noise(x, torch.full((len(x),), t, device=x.device), torch.stack(draws).to(x.device))


def _as_trained(config: MollyConfig, seed: int, x: Tensor, indices: range) -> Tensor:
    """Degrade each image by a role and a t that its place in the data set decides."""
    x = x.clone()
    for row, index in enumerate(indices):
        role = config.roles[index % len(config.roles)]
        t = np.random.default_rng((seed, index)).beta(config.alpha, config.beta)
        if role in 'ne':
            x[row : row + 1] = _noise(t if role == 'n' else 1.0, seed, x[row : row + 1], range(index, index + 1))
        elif role == 'b':
            x[row : row + 1] = _blur(t, config.min_scale, x[row : row + 1], indices)
    return x


def _blur(t: float, min_scale: float, x: Tensor, indices: range) -> Tensor:
    return blur(x, torch.full((len(x),), t, device=x.device), min_scale)
