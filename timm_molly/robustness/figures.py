"""The pictures of a report, drawn from its dict alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from timm_molly.preview import save_figure as save
from timm_molly.robustness.metrics import BINS
from timm_molly.robustness.names import GROUPS, HELD_OUT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ['comparison', 'corruptions', 'fit', 'mollification', 'save']

COLOURS = {'noise': '#c2452d', 'blur': '#2f6db3', 'weather': '#3c8d5a', 'digital': '#8757a6', 'held out': '#8a8a8a'}
NAMES = ('error-by-severity', 'reliability', 'heat-map', 'confidence')  # of the pictures of a report
REPORTS = ('#8a8a8a', '#c2452d', '#2f6db3', '#3c8d5a', '#8757a6', '#c08a1e')


def corruptions(report: Mapping[str, Any]) -> dict[str, Figure]:
    """Error against severity, reliability and heat map."""
    return {
        'error-by-severity': _error_by_severity(report),
        'reliability': _reliability(report),
        'heat-map': _heat_map(report),
    }


def mollification(report: Mapping[str, Any]) -> dict[str, Figure]:
    """Share of correct answers, confidence and taught confidence against t."""
    names = list(report['cells'])
    figure = blank(4.2 * len(names), 3.6)
    for ax, name in zip(np.ravel(figure.subplots(1, len(names), sharey=True)), names, strict=True):
        t, correct, confidence = curve(report, name)
        ax.plot(t, correct, '-o', color=COLOURS[name], markersize=3.5, label='share correct')
        ax.plot(t, confidence, '--s', color='#333333', markersize=3, label='mean confidence')
        if report['taught']:
            taught = [1.0, *report['taught'][name].values()][-len(t) :]
            by = report['benchmark']['taught']
            ax.plot(t, taught, ':', color='#333333', label=f'confidence taught by {by}')
        dress(ax, f'{name}', 't (0 is clean)')
        ax.set_ylim(0, 1.02)
        ax.legend(frameon=False, fontsize=7.5)
    return {'confidence': figure}


def fit(report: Mapping[str, Any], fitted: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Share of correct answers against t with the confidence of the fitted label beside the paper's."""
    figure = blank(4.2 * len(fitted), 3.6)
    for ax, name in zip(np.ravel(figure.subplots(1, len(fitted), sharey=True)), fitted, strict=True):
        t, correct, _ = curve(report, name)
        found = fitted[name]
        ax.plot(t, correct, 'o', color=COLOURS[name], markersize=4, label='share correct')
        ax.plot(
            found['t'], found['confidence'], '-', color=COLOURS[name], label=f'fitted label, k = {found["power"]:g}'
        )
        ax.plot(found['t'], found['paper'], ':', color='#333333', label="paper's label, k = 1")
        dress(ax, f'{name}: rms gap {found["rms"]:.3f}, largest {found["largest"]:.3f}', 't (0 is clean)')
        ax.set_ylim(0, 1.02)
        ax.legend(frameon=False, fontsize=7.5)
    return figure


def comparison(reports: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Figure:
    """Error, NLL and ECE of two or more reports, by group or against t."""
    metrics = {'error': 'error in %', 'nll': 'NLL', 'ece': 'ECE'}
    if reports[0]['benchmark']['kind'] == 'mollification':
        kinds = list(reports[0]['cells'])
        figure = blank(10, 2.9 * len(kinds))
        rows = np.reshape(figure.subplots(len(kinds), len(metrics), sharex=True), (len(kinds), len(metrics)))
        for row, kind in zip(rows, kinds, strict=True):
            for ax, (metric, heading) in zip(row, metrics.items(), strict=True):
                for report, name, colour in zip(reports, names, REPORTS, strict=False):
                    cells = ([('0', report['clean'])] if report['clean'] else []) + [*report['cells'][kind].items()]
                    values = [_scaled(cell[metric], metric) for _, cell in cells]
                    ax.plot([float(t) for t, _ in cells], values, '-o', color=colour, markersize=3, label=name)
                dress(ax, f'{kind}: {heading}', 't (0 is clean)')
                ax.set_ylim(bottom=0)
        rows[0][0].legend(frameon=False, fontsize=8)
        return figure
    groups = list(reports[0]['summary']['groups'])
    held_out = [name for name in HELD_OUT if name in reports[0]['cells']]
    columns = ['clean'] * bool(reports[0]['clean']) + groups + ['mean'] * bool(groups) + held_out
    figure = blank(11, 3.4)
    for ax, (metric, heading) in zip(figure.subplots(1, len(metrics)), metrics.items(), strict=True):
        width = 0.8 / len(reports)
        for i, (report, name, colour) in enumerate(zip(reports, names, REPORTS, strict=False)):
            summary = {**report['summary']['corruptions'], **report['summary']['groups']}
            summary |= {'clean': report['clean'], 'mean': report['summary']['mean']}
            values = [_scaled(summary[column][metric], metric) for column in columns]
            ax.bar(
                np.arange(len(columns)) + (i - (len(reports) - 1) / 2) * width, values, width, color=colour, label=name
            )
        dress(ax, heading, '')
        names_below = [column.replace('_', ' ') for column in columns]
        ax.set_xticks(
            range(len(columns)), names_below, rotation=30 * bool(held_out), ha='right' if held_out else 'center'
        )
        ax.set_ylim(bottom=0)
    figure.legend(*ax.get_legend_handles_labels(), frameon=False, fontsize=8, loc='outside lower center', ncols=2)
    return figure


def curve(report: Mapping[str, Any], name: str) -> tuple[list[float], list[float], list[float]]:
    """t, share of correct answers and mean confidence, the clean images first where they were measured."""
    cells = ([('0', report['clean'])] if report['clean'] else []) + [*report['cells'][name].items()]
    correct = [float('nan') if cell['error'] is None else 1 - cell['error'] for _, cell in cells]
    confidence = [float('nan') if cell['error'] is None else cell['confidence'] for _, cell in cells]
    return [float(t) for t, _ in cells], correct, confidence


def _error_by_severity(report: Mapping[str, Any]) -> Figure:
    figure = blank(5, 3.6)
    ax = figure.subplots()
    severities = report['benchmark']['severities']
    for group, members in {**GROUPS, 'held out': HELD_OUT}.items():
        cells = [report['cells'][name] for name in members if name in report['cells']]
        if not cells:
            continue
        errors = [float(np.mean([_scaled(cell[str(s)]['error'], 'error') for cell in cells])) for s in severities]
        at = list(severities)
        if report['clean']:
            at, errors = [0, *at], [_scaled(report['clean']['error'], 'error'), *errors]
        ax.plot(at, errors, '-o', color=COLOURS[group], markersize=4, label=group)
    dress(ax, 'error in %', 'severity (0 is clean)' if report['clean'] else 'severity')
    ax.set_xticks(at)
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=8)
    return figure


def _reliability(report: Mapping[str, Any]) -> Figure:
    corrupted = [cell for name in report['cells'] for cell in report['cells'][name].values()]
    panels = {'clean': [report['clean']], 'corrupted': corrupted} if report['clean'] else {'corrupted': corrupted}
    figure, keys = blank(3.8 * len(panels), 4.2), None
    for ax, (name, cells) in zip(np.ravel(figure.subplots(1, len(panels))), panels.items(), strict=True):
        bins = [cell['bins'] for cell in cells if cell['bins'] is not None]
        left_out = f' ({len(cells) - len(bins)} not finite, left out)' if len(bins) < len(cells) else ''
        ax.plot((0, 1), (0, 1), ':', color='#333333', linewidth=1)
        if bins:
            images, correct, confidence = (
                np.sum([b[key] for b in bins], 0) for key in ('images', 'correct', 'confidence')
            )
            some = images > 0
            left = np.arange(BINS) / BINS
            ax.bar(
                left[some],
                (images / images.sum())[some],
                1 / BINS,
                align='edge',
                color='#dddddd',
                label='share of images',
            )
            ax.plot(
                (confidence[some] / images[some]),
                (correct[some] / images[some]),
                '-o',
                color='#c2452d',
                markersize=4,
                label='share correct',
            )
            ece = np.abs(correct - confidence).sum() / images.sum()
            name += f', ECE {ece:.3f}' + (' of all images together' if len(bins) > 1 else '') + left_out
        dress(ax, name, 'confidence')
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1.02)
        if bins:
            keys = ax.get_legend_handles_labels()
    if keys:
        figure.legend(*keys, frameon=False, fontsize=8, loc='outside lower center', ncols=2)
    return figure


def _heat_map(report: Mapping[str, Any]) -> Figure:
    names, severities = list(report['cells']), report['benchmark']['severities']
    errors = np.array([[_scaled(report['cells'][n][str(s)]['error'], 'error') for n in names] for s in severities])
    figure = blank(1.6 + 0.62 * len(names), 1.8 + 0.42 * len(severities))
    ax = figure.subplots()
    picture = ax.imshow(errors, cmap='magma_r', vmin=0, vmax=100, aspect='auto')
    for (row, column), error in np.ndenumerate(errors):
        shown = 'nan' if np.isnan(error) else f'{error:.0f}'
        ax.text(column, row, shown, ha='center', va='center', fontsize=8, color='white' if error > 40 else 'black')
    ax.set_xticks(range(len(names)), [name.replace('_', ' ') for name in names], rotation=40, ha='right', fontsize=8)
    ax.set_yticks(range(len(severities)), severities)
    ax.set_ylabel('severity', fontsize=9)
    ax.set_title('error in %', fontsize=10)
    ax.spines[:].set_visible(False)
    figure.colorbar(picture, ax=ax, pad=0.01)
    return figure


def blank(width: float, height: float) -> Figure:
    """An empty figure of a width and height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout='constrained')


def dress(ax: Axes, heading: str, below: str) -> None:
    """Give a panel its heading, the name of its x axis, and the look of all others."""
    ax.set_title(heading, fontsize=10)
    ax.set_xlabel(below, fontsize=9)
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[['top', 'right']].set_visible(False)


def _scaled(value: float | None, metric: str) -> float:
    return float('nan') if value is None else 100 * value if metric == 'error' else value
