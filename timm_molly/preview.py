"""The `timm-molly preview` picture: what the network will see, and the confidence its labels keep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from timm_molly.config import MollyConfig, split_aa
from timm_molly.files import replacing
from timm_molly.functional import blur, blur_gamma, blur_scale, noise, noise_gamma
from timm_molly.pictures import eight_bits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COLOURS = {'noise': '#c2452d', 'blur': '#2a6f97'}


def preview(
    images: Sequence[Path],
    aa: str,
    output: Path,
    img_size: int = 224,
    num_classes: int = 1000,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> None:
    """Draw images noised and blurred at rising t, as a network trained with `aa` will see them, into a file.

    Args:
        images: Image files, one row each.
        aa: The aa string of the training; only its molly part is drawn.
        output: The picture, in a format that matplotlib writes (.png, .pdf, .svg).
        img_size: Input size in pixels: images are resized and cropped to it as timm does for validation.
        num_classes: Number of classes, for the confidence that the label keeps.
        mean: Mean (3,) and
        std: standard deviation (3,) that images are normalised with, which noise is relative to.

    Raises:
        ValueError: `aa` has no molly or a malformed one, an image cannot be read, or a number is out of range.
        ImportError: matplotlib is not installed.
        OSError: The picture cannot be written.
    """
    try:
        from matplotlib.figure import Figure  # noqa: F401
    except ImportError:
        raise ImportError('drawing needs matplotlib: pip install "timm-molly[plot]"') from None
    config, _ = split_aa(aa)
    if config is None or not set(config.roles) & {'n', 'b'}:
        raise ValueError(f'{aa!r} neither noises nor blurs, so there is nothing to draw; try --aa molly')
    if img_size < 1 or num_classes < 2:
        raise ValueError(f'image size must be 1 or more and classes 2 or more, got {img_size} and {num_classes}')
    x = _read(images, img_size, mean, std)
    save_figure(draw(x, torch.tensor(mean), torch.tensor(std), config, num_classes), output)


def draw(x: Tensor, mean: Tensor, std: Tensor, config: MollyConfig, num_classes: int) -> Figure:
    """Draw the grid and the label schedules.

    Args:
        x: Normalised images (N, 3, H, W).
        mean: Mean (3,) and
        std: standard deviation (3,) that they were normalised with.
        config: The settings.
        num_classes: Number of classes K of the label.
    """
    from matplotlib.figure import Figure

    t = torch.tensor(TEMPERATURES)
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    strips = {}  # name of the degradation -> pictures (N, T, 3, H, W), what is under them, gamma at each t
    if 'n' in config.roles:
        pictures = torch.stack([noise(x, ti.expand(len(x)), eps) for ti in t], 1)
        widths = [f'std {v:.2f}' for v in torch.sin(torch.pi / 2 * t)]
        strips['noise'] = pictures, widths, noise_gamma(t, config.noise_power)
    if 'b' in config.roles:
        pictures = torch.stack([blur(x, ti.expand(len(x)), config.min_scale) for ti in t], 1)
        widths = [f'{v:.3g} px' for v in blur_scale(t, max(x.shape[-2:]), config.min_scale)]
        strips['blur'] = pictures, widths, blur_gamma(t, config.blur_power)

    rows, columns = len(x), len(strips) * len(t)
    cell = 1.05
    width = cell * columns + 0.35 * (len(strips) - 1) + 0.2
    caption, heading, plot = 0.42, 0.42, 2.2
    picture_height = cell * x.shape[-2] / x.shape[-1]
    height = heading + rows * (picture_height + caption) + plot + 0.9
    figure = Figure(figsize=(width, height), dpi=200)

    left = 0.1
    for name, (pictures, widths, gamma) in strips.items():
        confidence = 1 - gamma * (num_classes - 1) / num_classes
        shown = (pictures * std[:, None, None] + mean[:, None, None]).clamp(0, 1)
        figure.text(
            (left + cell * len(t) / 2) / width,
            1 - 0.22 / height,
            name.capitalize(),
            ha='center',
            va='center',
            fontsize=11,
            fontweight='bold',
            color=COLOURS[name],
        )
        for row in range(rows):
            top = heading + row * (picture_height + caption)
            for column in range(len(t)):
                axes = figure.add_axes(
                    (
                        (left + column * cell + 0.03) / width,
                        1 - (top + picture_height) / height,
                        (cell - 0.06) / width,
                        (picture_height - 0.06) / height,
                    )
                )
                axes.imshow(shown[row, column].permute(1, 2, 0).numpy(), interpolation='nearest')
                axes.set_axis_off()
                lines = f't = {t[column]:g}, {widths[column]}', f'confidence {confidence[column]:.3f}'
                for line, text in enumerate(lines):
                    axes.text(
                        0.5,
                        -(0.13 + 0.12 * line) / picture_height,
                        text,
                        ha='center',
                        va='baseline',
                        fontsize=6.2,
                        transform=axes.transAxes,
                    )
        left += cell * len(t) + 0.35

    plot_width = min(3.6, width - 1.2)
    axes = figure.add_axes(
        (
            (width - plot_width) / 2 / width,
            0.55 / height,
            plot_width / width,
            plot / height,
        )
    )
    fine = torch.linspace(0, 1, 201)
    inner = fine.clamp(1e-3, 1 - 1e-3)
    log_density = (config.alpha - 1) * inner.log() + (config.beta - 1) * (1 - inner).log()
    density = (log_density - log_density.max()).exp()
    axes.fill_between(fine.numpy(), density.numpy(), color='#ececec', lw=0, label='how often t is drawn')
    gammas = {'noise': noise_gamma(fine, config.noise_power), 'blur': blur_gamma(fine, config.blur_power)}
    for name, (_, _, gamma) in strips.items():
        for at, g, style in ((fine, gammas[name], '-'), (t, gamma, 'o')):
            axes.plot(
                at.numpy(),
                (1 - g * (num_classes - 1) / num_classes).numpy(),
                style,
                color=COLOURS[name],
                markersize=3.5,
                label=name if style == '-' else None,
            )
    axes.set_xlabel('t', fontsize=8)
    axes.set_ylabel(f'confidence in the label, K = {num_classes}', fontsize=8)
    axes.set_title(str(config), fontsize=8)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.03, 1.03)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(fontsize=7.5, frameon=False, loc='upper left', bbox_to_anchor=(1.0, 1.0))
    return figure


def save_figure(figure: Figure, output: Path) -> None:
    """Write a figure whole or not at all."""
    if not output.parent.is_dir():
        raise ValueError(f'no folder {str(output.parent)!r} to write {output.name!r} to')
    if output.suffix.lower() not in ('.png', '.pdf', '.svg'):
        raise ValueError(f'the picture must be a .png, .pdf or .svg file, got {str(output)!r}')
    with replacing(output) as temporary:
        figure.savefig(temporary)


def _read(paths: Sequence[Path], img_size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Read images as timm does; return them normalised, (N, 3, img_size, img_size)."""
    from timm.data import create_transform

    transform = create_transform(img_size, is_training=False, crop_pct=1.0, mean=tuple(mean), std=tuple(std))
    images = []
    for path in paths:
        try:
            with Image.open(path) as image:
                images.append(transform(eight_bits(image, 'RGB')))
        except FileNotFoundError:
            raise ValueError(f'no such image: {path}') from None
        except Exception as error:  # Pillow's readers raise all sorts on damaged files
            raise ValueError(f'cannot read {path} as an image: {error}') from None
    return torch.stack(images)
