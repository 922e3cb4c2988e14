"""The `timm-molly preview` picture: what the network will see, and how sure its labels are, or how much they count."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor

from timm_molly.config import MollyConfig, split_aa
from timm_molly.errors import UserError, hint, needs
from timm_molly.files import replacing
from timm_molly.functional import blur, blur_scale, noise
from timm_molly.pictures import eight_bits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOLDER = 4  # images that are drawn of a folder
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COLOURS = {'noise': '#c2452d', 'blur': '#2a6f97'}
# Inches.
CELL, GAP, LEFT, CAPTION, HEADING, PLOT = 1.05, 0.35, 0.1, 0.42, 0.42, 2.2


def preview(
    images: Sequence[Path],
    aa: str = 'molly',
    img_size: int = 224,
    num_classes: int | None = 1000,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Figure:
    """Draw images noised and blurred at rising t, as a network trained with `aa` will see them.

    Args:
        images: Image files, one row each, or folders, of each of which four images are drawn.
        aa: The aa string of the training. What its other policy makes of an image is drawn once (hflip, crops and
            colour jitter are not).
        img_size: Input size in pixels: images are resized and cropped to it as timm does for validation.
        num_classes: Number of classes, for the confidence that the label keeps; None for multi-label targets.
        mean: Mean (3,) and
        std: standard deviation (3,) that images are normalised with, which noise is relative to.

    Returns:
        The figure, which `save_figure` writes.

    Raises:
        UserError: `aa` has no molly or a malformed one, an image cannot be read, a number is out of range, or
            matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # noqa: F401
    except ImportError as error:
        raise needs('drawing', 'plot', error) from None
    if not images:
        raise UserError('no images to draw: give one or more files')
    config, policy = split_aa(aa)
    if config is None or not set(config.roles) & {'n', 'b'}:
        raise UserError(f'{aa!r} neither noises nor blurs, so there is nothing to draw; try --aa molly')
    if img_size < 1 or (num_classes is not None and num_classes < 2):
        raise UserError(f'image size must be 1 or more and classes 2 or more, got {img_size} and {num_classes}')
    if config.min_scale > img_size:
        raise UserError(f'the smallest blur of {config} is {config.min_scale:g} pixels, more than the side, {img_size}')
    mean, std = (values * (3 // len(values)) if len(values) in (1, 3) else values for values in (list(mean), list(std)))
    if len(mean) != 3 or len(std) != 3 or not min(std) > 0:
        raise UserError(f'mean and std must be 1 or 3 numbers, and std above 0, got {mean} and {std}')
    x = _read([file for path in images for file in _files(path)], img_size, mean, std, policy)
    title = f'{config}+{policy}' if policy else str(config)
    return draw(x, torch.tensor(mean), torch.tensor(std), config, num_classes, title)


def of_model(name: str) -> dict[str, Any]:
    """Return `img_size`, `mean`, `std` and `num_classes`, as `preview` takes them, of a model of timm.

    Raises:
        UserError: timm has no such model.

    Example:
        >>> of_model('preactresnet18.cifar10')['img_size']
        32
    """
    import timm
    from timm.data import resolve_data_config
    from timm.models import get_pretrained_cfg

    import timm_molly.models  # noqa: F401

    try:
        found = get_pretrained_cfg(name)
    except RuntimeError:  # another tag than the architecture has
        found = None
    if found is None:
        meant = hint(name, timm.list_models())
        raise UserError(f'timm has no model {name!r}{meant}; timm.list_models() lists them')
    config = resolve_data_config(pretrained_cfg=found.to_dict())
    return {
        'img_size': max(config['input_size'][-2:]),
        'mean': config['mean'],
        'std': config['std'],
        'num_classes': found.num_classes,
    }


@dataclass(frozen=True)
class Strip:
    """Images under one degradation at rising t.

    Attributes:
        role: 'n' or 'b'.
        pictures: (N, T, 3, H, W), values in [0, 1].
        widths: What is said of each t, the noise's deviation or the blur's width.
    """

    role: str
    pictures: Tensor
    widths: Sequence[str]


def draw(x: Tensor, mean: Tensor, std: Tensor, config: MollyConfig, num_classes: int | None, title: str) -> Figure:
    """Draw the grid and the label schedules.

    Args:
        x: Normalised images (N, 3, H, W).
        mean: Mean (3,) and
        std: standard deviation (3,) that they were normalised with.
        config: The settings.
        num_classes: Number of classes K of the label; None for labels that are each present or absent.
        title: The aa string, of which the other policy was drawn.
    """
    from matplotlib.figure import Figure

    strips = _strips(x, mean[:, None, None], std[:, None, None], config)
    width = CELL * len(strips) * len(TEMPERATURES) + GAP * (len(strips) - 1) + 0.2
    picture_height = CELL * x.shape[-2] / x.shape[-1]
    height = HEADING + len(x) * (picture_height + CAPTION) + PLOT + 0.9
    figure = Figure(figsize=(width, height), dpi=200)
    left = LEFT
    for name, strip in strips.items():
        middle = (left + CELL * len(TEMPERATURES) / 2) / width
        style: dict[str, Any] = dict(ha='center', va='center', fontsize=11, fontweight='bold', color=COLOURS[name])
        figure.text(middle, 1 - 0.22 / height, name.capitalize(), **style)
        kept = _kept(config, strip.role, torch.tensor(TEMPERATURES), num_classes)
        _draw_strip(figure, strip, left, picture_height, 'weight' if config.weighted else 'confidence', kept)
        left += CELL * len(TEMPERATURES) + GAP
    plot_width = min(3.6, width - 1.2)
    place = ((width - plot_width) / 2 / width, 0.55 / height, plot_width / width, PLOT / height)
    axes = figure.add_axes(place)
    axes.set_title(title, fontsize=8)
    _draw_schedules(axes, strips, config, num_classes)
    return figure


def save_figure(figure: Figure, output: Path) -> None:
    """Write a figure whole or not at all.

    Raises:
        UserError: As `check_picture`, or it cannot be written.
    """
    check_picture(output)
    with replacing(output) as temporary:
        figure.savefig(temporary)


def check_picture(output: Path) -> None:
    """Check a place for a picture.

    Raises:
        UserError: Its folder is not there, or its name does not end in .png, .pdf or .svg.
    """
    if not output.parent.is_dir():
        raise UserError(f'no folder {str(output.parent)!r} to write {output.name!r} to')
    if output.suffix.lower() not in ('.png', '.pdf', '.svg'):
        raise UserError(f'the picture must be a .png, .pdf or .svg file, got {str(output)!r}')


def _strips(x: Tensor, mean: Tensor, std: Tensor, config: MollyConfig) -> dict[str, Strip]:
    """Degrade the images at each t, by the name of the degradation."""
    t = torch.tensor(TEMPERATURES)
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    strips = {}
    if 'n' in config.roles:
        noised = torch.stack([noise(x, at.expand(len(x)), eps) for at in t], 1)
        deviations = torch.sin(torch.pi / 2 * t)
        strips['noise'] = Strip('n', (noised * std + mean).clamp(0, 1), [f'std {v:.2f}' for v in deviations])
    if 'b' in config.roles:
        blurred = torch.stack([blur(x, at.expand(len(x)), config.min_scale) for at in t], 1)
        scales = blur_scale(t, max(x.shape[-2:]), config.min_scale)
        strips['blur'] = Strip('b', (blurred * std + mean).clamp(0, 1), [f'{v:.3g} px' for v in scales])
    return strips


def _kept(config: MollyConfig, role: str, t: Tensor, num_classes: int | None) -> Tensor:
    """Confidence that labels keep at t, or the weight that hard ones have."""
    return config.weight(role, t) if config.weighted else config.confidence(role, t, num_classes or 2)


def _draw_strip(figure: Figure, strip: Strip, left: float, picture_height: float, word: str, kept: Tensor) -> None:
    """Draw pictures with what belongs under each, from `left` inches on."""
    width, height = figure.get_size_inches()
    for row, pictures in enumerate(strip.pictures):
        top = HEADING + row * (picture_height + CAPTION)
        for column, (t, said) in enumerate(zip(TEMPERATURES, strip.widths, strict=True)):
            x, y = (left + column * CELL + 0.03) / width, 1 - (top + picture_height) / height
            axes = figure.add_axes((x, y, (CELL - 0.06) / width, (picture_height - 0.06) / height))
            axes.imshow(pictures[column].permute(1, 2, 0).numpy(), interpolation='nearest')
            axes.set_axis_off()
            for line, text in enumerate((f't = {t:g}, {said}', f'{word} {kept[column]:.3f}')):
                style: dict[str, Any] = dict(ha='center', va='baseline', fontsize=6.2, transform=axes.transAxes)
                axes.text(0.5, -(0.13 + 0.12 * line) / picture_height, text, **style)


def draw_law(axes: Axes, t: ArrayLike, density: ArrayLike) -> None:
    """Draw how often training draws t: low, so that nobody takes its edge for a line of the plot."""
    values = np.asarray(density, dtype=float)
    often = 0.3 * values / values.max()
    axes.fill_between(np.asarray(t), often, color='#ececec', linewidth=0, label='how often t is drawn (no scale)')


def _draw_schedules(axes: Axes, strips: Mapping[str, Strip], config: MollyConfig, num_classes: int | None) -> None:
    """Draw confidence, or weight, against t, over how often t is drawn."""
    fine, t = torch.linspace(0, 1, 201), torch.tensor(TEMPERATURES)
    inner = fine.clamp(1e-3, 1 - 1e-3)
    log_density = (config.alpha - 1) * inner.log() + (config.beta - 1) * (1 - inner).log()
    draw_law(axes, fine.numpy(), (log_density - log_density.max()).exp().numpy())
    for name, strip in strips.items():
        for at, style in ((fine, '-'), (t, 'o')):
            kept = _kept(config, strip.role, at, num_classes).numpy()
            label = name if style == '-' else None
            axes.plot(at.numpy(), kept, style, color=COLOURS[name], markersize=3.5, label=label)
    axes.set_xlabel('t', fontsize=8)
    said = f'the label, K = {num_classes}' if num_classes else 'a label that is present'
    axes.set_ylabel('weight of the loss' if config.weighted else f'confidence in {said}', fontsize=8)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.03, 1.03)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(fontsize=7.5, frameon=False, loc='upper left', bbox_to_anchor=(1.0, 1.0))


@contextmanager
def _seeded() -> Iterator[None]:
    """Let timm's policies draw the same each time from the global generators, and leave these as they are."""
    states = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(0)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _files(path: Path) -> list[Path]:
    """Return an image file, or four that are spread over a folder, and so over its folders of classes."""
    if not path.is_dir():
        return [path]
    from timm.data import get_img_extensions

    found = sorted(file for file in path.rglob('*') if file.suffix.lower() in get_img_extensions())
    if not found:
        raise UserError(f'the folder {path} holds no images')
    count = min(FOLDER, len(found))
    return [found[i * len(found) // count] for i in range(count)]


def _read(
    paths: Sequence[Path], img_size: int, mean: Sequence[float], std: Sequence[float], policy: str | None
) -> Tensor:
    """Read images as timm does, a policy on top; return them normalised, (N, 3, img_size, img_size)."""
    from timm.data import create_transform

    options: dict[str, Any] = dict(mean=tuple(mean), std=tuple(std))
    if policy is None:
        transform = create_transform(img_size, is_training=False, crop_pct=1.0, **options)
    else:
        options |= dict(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0, color_jitter=None, interpolation='bilinear')
        transform = create_transform(img_size, is_training=True, auto_augment=policy, **options)
    images = []
    for path in paths:
        try:
            with Image.open(path) as image, _seeded():
                images.append(transform(eight_bits(image, 'RGB')))
        except FileNotFoundError:
            raise UserError(f'no such image: {path}') from None
        except Exception as error:  # Pillow's readers raise all sorts on damaged files
            raise UserError(f'cannot read {path} as an image: {error}') from None
    return torch.stack(images)
