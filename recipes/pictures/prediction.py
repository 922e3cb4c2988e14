"""Draw prediction.png: what two networks of hub_cards/ say of a photo under rising noise and blur.

    python recipes/pictures/prediction.py

The photo is scikit-image's cat, at the 32 pixels that the networks see.
"""

from pathlib import Path

import skimage.data
import torch
from matplotlib.figure import Figure
from PIL import Image

import timm_molly
from timm_molly.functional import blur, blur_scale, noise
from timm_molly.preview import save_figure

HERE = Path(__file__).parent
CARDS = HERE.parents[1] / 'hub_cards'
NETWORKS = {
    'without molly': ('cifar_resnet20.crop_flip_cifar10', '#666666'),
    'with molly': ('cifar_resnet20.molly_cifar10', '#c2452d'),
}
T = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)


def main() -> None:
    networks = {name: timm_molly.load(CARDS / folder) for name, (folder, _) in NETWORKS.items()}
    network = next(iter(networks.values()))
    x = network.transform(Image.fromarray(skimage.data.chelsea()))[None].expand(len(T), -1, -1, -1)
    t = torch.tensor(T)
    eps = torch.randn(x[:1].shape, generator=torch.Generator().manual_seed(0)).expand_as(x)
    rows = {'noise': noise(x, t, eps), 'blur': blur(x, t)}
    widths = blur_scale(t, x.shape[-1])
    mean, std = (torch.tensor(values)[:, None, None] for values in (network.mean, network.std))
    figure = Figure(figsize=(1.22 * len(T) + 1, 3.7), dpi=150)
    axes = figure.subplots(len(rows), len(T))
    for (name, images), line in zip(rows.items(), axes, strict=True):
        for image, at, width, ax in zip(images, T, widths, line, strict=True):
            ax.imshow((image * std + mean).clamp(0, 1).permute(1, 2, 0).numpy(), interpolation='nearest')
            ax.set_axis_off()
            ax.set_title(f't = {at:g}' if name == 'noise' else f'{width:.1f} px', fontsize=8)
        line[0].text(-0.12, 0.5, name, ha='right', va='center', fontsize=10, transform=line[0].transAxes)
        for i, (label, classifier) in enumerate(networks.items()):
            style = dict(ha='center', va='center', fontsize=9, color=NETWORKS[label][1])
            y = -0.13 - 0.17 * i
            line[0].text(-0.12, y, label, transform=line[0].transAxes, **{**style, 'ha': 'right'})
            for text, ax in zip(said(classifier, images), line, strict=True):
                ax.text(0.5, y, text, transform=ax.transAxes, **style)
    figure.subplots_adjust(left=0.11, right=0.995, top=0.94, bottom=0.1, wspace=0.08, hspace=0.42)
    save_figure(figure, HERE / 'prediction.png')


def said(classifier: timm_molly.Classifier, images: torch.Tensor) -> list[str]:
    """The class that a network names, and how sure it is."""
    with torch.inference_mode():
        sure, label = classifier.model(images).softmax(1).max(1)
    return [f'{classifier.label_names[i]} {p:.0%}' for i, p in zip(label.tolist(), sure.tolist(), strict=True)]


if __name__ == '__main__':
    main()
