"""Draw recipes/results.png: corrupted error and ECE against clean error in both CIFAR-10 studies.

    python recipes/studies/figure.py [--output recipes/results.png]

Seed 0 alone, which all rows have.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from timm_molly.config import MollyConfig
from timm_molly.preview import save_figure
from timm_molly.robustness.figures import blank, dress

HERE = Path(__file__).parent
STUDIES = ('cifar10', 'cifar10_tenth')
LABELS = {'none': '#8a8a8a', "paper's": '#c2452d', 'k2': '#e0a030', 'hard': '#2f6db3', 'weighted': '#3c8d5a'}
# Where the strength is written, for points that lie near each other.
BESIDE = {
    "paper's": {'xytext': (-5, 3), 'ha': 'right'},
    'hard': {'xytext': (0, -11), 'ha': 'center'},
    'weighted': {'xytext': (-5, -7), 'ha': 'right'},
}
MARKERS = {'crop_flip': 'o', 'smoothing': 's', 'strong_smoothing': 'D'}
PANELS = {'corrupted error': 'error % on corrupted images', 'corrupted ece': 'ECE on corrupted images'}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--output', metavar='FILE', type=Path, default=HERE.parent / 'results.png')
    args = parser.parse_args()
    found = [HERE / name / 'study.json' for name in STUDIES]
    save_figure(draw([json.loads(path.read_text()) for path in found if path.is_file()]), args.output)


def draw(studies: list[dict[str, Any]]) -> Figure:
    """Draw a row of panels for each study."""
    figure = blank(10.5, 4.2 * len(studies))
    axes = figure.subplots(len(studies), len(PANELS), squeeze=False)
    for row, study in zip(axes, studies, strict=True):
        runs = [run for run in study['runs'] if run['seed'] == 0 and run['recipe'] in MARKERS]
        for ax, (figure_name, heading) in zip(row, PANELS.items(), strict=True):
            for label, colour in LABELS.items():
                of = [run for run in runs if kind(run['molly']) == label]
                curve = [place(run, figure_name) for run in of if run['recipe'] == 'crop_flip' and roles(run) == 'xnb']
                ax.plot(*zip(*sorted(curve), strict=True), color=colour, linewidth=1, alpha=0.5) if curve else None
                for run in of:
                    x, y = place(run, figure_name)
                    inner, edge = (colour, 'white') if roles(run) == 'xnb' else ('white', colour)
                    marker = MARKERS[run['recipe']]
                    size, above = (6.5, 3) if marker == 'o' else (8.5, 2)  # a square shows behind a circle
                    ax.plot(x, y, marker, markerfacecolor=inner, markeredgecolor=edge, markersize=size, zorder=above)
                    style = {
                        'textcoords': 'offset points',
                        'fontsize': 6.5,
                        **BESIDE.get(label if roles(run) == 'xnb' else '', {'xytext': (4, 4)}),
                    }
                    ax.annotate(strength(run), (x, y), **style)
            dress(ax, heading, 'error % on clean images')
            ax.margins(y=0.08)
        row[0].set_ylabel(study['title'], fontsize=8)
    handles = [axes[0][0].plot([], [], 'o', color=colour, label=label)[0] for label, colour in LABELS.items()]
    handles += [axes[0][0].plot([], [], m, color='black', label=name)[0] for name, m in MARKERS.items()]
    handles += axes[0][0].plot(
        [], [], 'o', color='black', markerfacecolor='white', label='mxxnb: half of the images clean'
    )
    axes[0][0].legend(handles=handles, frameon=False, fontsize=7)
    return figure


def kind(molly: str | None) -> str:
    """What labels an aa string of molly has."""
    if molly is None:
        return 'none'
    config = MollyConfig.from_string(molly)
    powers = {1: "paper's", 2: 'k2', 100: 'hard'}
    return 'weighted' if config.weighted else powers[config.noise_power]


def roles(run: dict[str, Any]) -> str:
    return MollyConfig.from_string(run['molly'] or 'molly').roles


def strength(run: dict[str, Any]) -> str:
    """What is said of a point: 'b4', nothing of the default."""
    config = MollyConfig.from_string(run['molly'] or 'molly')
    return f'b{config.beta:g}' if config.beta != 2 else ''


def place(run: dict[str, Any], figure_name: str) -> tuple[float, float]:
    value = run['figures'][figure_name]
    return 100 * run['figures']['clean error'], 100 * value if figure_name.endswith('error') else value


if __name__ == '__main__':
    main()
