"""The pictures of a report."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from timm_molly.errors import needs
from timm_molly.preview import draw_law, save_figure
from timm_molly.robustness import render
from timm_molly.robustness.corruptions.names import BAR, GROUPS, HELD_OUT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from timm_molly.robustness.fit import Fit, Gap
    from timm_molly.robustness.report import Cell, Metrics, Report

COLOURS = {
    'noise': '#c2452d',
    'blur': '#2f6db3',
    'weather': '#3c8d5a',
    'digital': '#8757a6',
    'held out': '#8a8a8a',
    'C-bar': '#c08a1e',
}
NAMES = ('error-by-severity', 'reliability', 'heat-map', 'confidence')  # of the pictures of a report
REPORTS = ('#8a8a8a', '#c2452d', '#2f6db3', '#3c8d5a', '#8757a6', '#c08a1e')
FEWEST = 10  # images of a bin whose share of correct answers is drawn
PANELS = {'error': 'error in %', 'nll': 'NLL', 'ece': 'ECE'}


def save_all(report: Report, folder: Path) -> list[str]:
    """Draw the pictures of a report into a folder, and return their names without .png.

    Raises:
        UserError: matplotlib is missing, or the folder cannot be written.
    """
    pictures = draw(report)
    for name, figure in pictures.items():
        _name(figure, report)
        save_figure(figure, folder / f'{name}.png')
    for name in {*NAMES} - {*pictures}:  # of a report whose place this one takes
        (folder / f'{name}.png').unlink(missing_ok=True)
    return list(pictures)


def _name(figure: Figure, report: Report) -> None:
    """Write above a picture what was measured on what."""
    width = int(16 * figure.get_figwidth())  # characters, of this size
    lines = textwrap.fill(render.title(report), width, break_on_hyphens=False)
    figure.suptitle(lines.replace('$', r'\$'), fontsize=7, color='#666666')


def draw(report: Report) -> dict[str, Figure]:
    """Draw a report: error by severity if there are several, reliability, heat map; or confidence against t."""
    if report.benchmark.mollified:
        return {'confidence': _confidence(report)}
    several = len(report.benchmark.severities) > 1
    return {
        **({'error-by-severity': _error_by_severity(report)} if several else {}),
        'reliability': _reliability(report),
        'heat-map': _heat_map(report),
    }


def fit(report: Report, found: Fit) -> Figure:
    """Confidence and share correct against t; below it, where labels would close the gap, their smoothing."""
    rows = 2 if found.drawn else 1
    figure = blank(4.2 * len(found.gaps), 2.8 * rows)
    axes = panels(figure, rows, len(found.gaps), sharex=True)
    for column, (name, gap) in enumerate(found.gaps.items()):
        ax = axes[0][column]
        colour = COLOURS[name]
        ax.plot(gap.t, gap.confidence, '-', color='#333333', linewidth=1.4, label='mean confidence')
        ax.plot(gap.t, gap.correct, 'o', color=colour, markersize=4, label='share correct')
        ax.fill_between(gap.t, gap.correct, gap.confidence, color=colour, alpha=0.15, linewidth=0, label='gap')
        dress(ax, f'{name}: how sure, and how right', '')
        if rows == 2:
            _smoothing(axes[1][column], gap, found)
    for row in axes:
        for ax in row:
            ax.set_ylim(-0.02, 1.02)
            ax.legend(frameon=False, fontsize=7.5)
    for ax in axes[-1]:
        ax.set_xlabel('t (0 is clean)', fontsize=9)
    _name(figure, report)
    return figure


def _smoothing(ax: Axes, gap: Gap, found: Fit) -> None:
    """The label smoothing that closes a gap, and what one value and the label power nearest to it give."""
    fine = np.linspace(0, 1, 101)
    chosen = {'constant': '-', 'varying': '--'} if found.case == 'constant' else {'constant': '--', 'varying': '-'}
    draw_law(ax, gap.t, gap.density)
    ax.plot(gap.t, gap.smoothing, 'o', color=COLOURS[gap.degradation], markersize=4, label='closes the gap')
    ax.axhline(found.added, linestyle=chosen['constant'], color='#333333', label=f'{found.added:.2g} at every t')
    label = f'labels of power {gap.power:g}: k{gap.degradation[0]}{gap.power:g}'
    ax.plot(fine, gap.gamma(fine), chosen['varying'], color='#999999', label=label)
    dress(ax, 'label smoothing', '')


def comparison(reports: Sequence[Report], names: Sequence[str]) -> Figure:
    """Error, NLL and ECE of two or more reports, by group of corruptions or against t."""
    if reports[0].benchmark.mollified:
        return _compared_by_t(reports, names)
    return _compared_by_group(reports, names)


def curve(report: Report, name: str) -> tuple[list[float], list[float], list[float]]:
    """t, share of correct answers and mean confidence, the clean images first where they were measured."""
    cells = {**report.at('clean'), **report.at(name)}
    return list(cells), [1 - cell.error for cell in cells.values()], [cell.confidence for cell in cells.values()]


def blank(width: float, height: float) -> Figure:
    """An empty figure of a width and height in inches.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise needs('drawing', 'plot', error) from None

    return Figure(figsize=(width, height), dpi=150, layout='constrained')


def panels(figure: Figure, rows: int, columns: int, **shared: Any) -> Sequence[Sequence[Axes]]:
    """Rows of panels, also where there is one."""
    axes: Sequence[Sequence[Axes]] = figure.subplots(rows, columns, squeeze=False, **shared)
    return axes


def dress(ax: Axes, heading: str, below: str) -> None:
    """Give a panel its heading, the name of its x axis, and the look of all others."""
    ax.set_title(heading, fontsize=10)
    ax.set_xlabel(below, fontsize=9)
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[['top', 'right']].set_visible(False)


def scaled(metrics: Metrics, metric: str) -> float:
    """A figure as it is drawn: an error in percent."""
    return metrics[metric] * (100 if metric == 'error' else 1)


def _confidence(report: Report) -> Figure:
    """Share of correct answers, confidence and taught confidence against t."""
    figure = blank(4.2 * len(report.names), 3.6)
    for ax, name in zip(panels(figure, 1, len(report.names), sharey=True)[0], report.names, strict=True):
        t, correct, confidence = curve(report, name)
        ax.plot(t, correct, '-o', color=COLOURS[name], markersize=3.5, label='share correct')
        ax.plot(t, confidence, '--s', color='#333333', markersize=3, label='mean confidence')
        if report.taught:
            taught = [*report.taught[name].values()][-len(t) :]
            ax.plot(t, taught, ':', color='#333333', label=f'confidence taught by {render.schedule(report)}')
        dress(ax, f'{name}', 't (0 is clean)')
        ax.set_ylim(0, 1.02)
        ax.legend(frameon=False, fontsize=7.5)
    return figure


def _error_by_severity(report: Report) -> Figure:
    figure = blank(5, 3.6)
    ax = figure.subplots()
    clean = report.at('clean')
    at = [*clean, *report.benchmark.severities]
    for group, members in {**GROUPS, 'held out': HELD_OUT, 'C-bar': BAR}.items():
        of = [report.at(name) for name in members if name in report.names]
        if of:
            errors = [100 * float(np.mean([cells[s].error for cells in of])) for s in report.benchmark.severities]
            errors = [100 * cell.error for cell in clean.values()] + errors
            ax.plot(at, errors, '-o', color=COLOURS[group], markersize=4, label=group, clip_on=False)
    dress(ax, 'error in %', 'severity (0 is clean)' if clean else 'severity')
    ax.set_xticks(at)
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=8)
    return figure


def _reliability(report: Report) -> Figure:
    corrupted = [cell for (name, _), cell in report.cells.items() if name != 'clean']
    of = {'clean': [*report.at('clean').values()], 'corrupted': corrupted}
    of = {name: cells for name, cells in of.items() if cells}
    figure, keys = blank(3.8 * len(of), 4.2), None
    for ax, (name, cells) in zip(panels(figure, 1, len(of))[0], of.items(), strict=True):
        heading = _reliability_panel(ax, name, cells)
        dress(ax, heading, 'confidence')
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1.02)
        if any(cell.bins for cell in cells):
            keys = ax.get_legend_handles_labels()
    if keys:
        figure.legend(*keys, frameon=False, fontsize=8, loc='outside lower center', ncols=2)
    return figure


def _reliability_panel(ax: Axes, name: str, cells: Iterable[Cell]) -> str:
    """Draw the bins of cells together, and return the heading."""
    bins = [cell.bins for cell in cells]
    known = [each for each in bins if each is not None]
    left_out = f' ({len(bins) - len(known)} not finite, left out)' if len(known) < len(bins) else ''
    ax.plot((0, 1), (0, 1), ':', color='#333333', linewidth=1)
    if not known:
        return name + left_out
    images = np.sum([each.images for each in known], 0)
    correct = np.sum([each.correct for each in known], 0)
    confidence = np.sum([each.confidence for each in known], 0)
    some = images > 0
    width = 1 / len(images)
    left = np.arange(len(images)) * width
    shares = (images / images.sum())[some]
    ax.bar(left[some], shares, width, align='edge', color='#dddddd', label='share of images')
    many = images >= FEWEST
    x, y = (confidence[many] / images[many]), (correct[many] / images[many])
    ax.plot(x, y, '-o', color='#c2452d', markersize=4, label='share correct')
    ece = np.abs(correct - confidence).sum() / images.sum()
    return f'{name}, ECE {ece:.3f}' + (' of all images together' if len(known) > 1 else '') + left_out


def _heat_map(report: Report) -> Figure:
    names, severities = report.names, report.benchmark.severities
    errors = np.array([[100 * report[name, s].error for name in names] for s in severities])
    figure = blank(1.6 + 0.62 * len(names), 1.8 + 0.42 * len(severities))
    ax = figure.subplots()
    picture = ax.imshow(errors, cmap='magma_r', vmin=0, vmax=100, aspect='auto')
    for (row, column), error in np.ndenumerate(errors):
        shown = 'nan' if np.isnan(error) else f'{error:.0f}'
        ax.text(column, row, shown, ha='center', va='center', fontsize=8, color='white' if error > 40 else 'black')
    ax.set_xticks(range(len(names)), [name.replace('_', ' ') for name in names], rotation=40, ha='right', fontsize=8)
    ax.set_yticks(range(len(severities)), [str(s) for s in severities])
    ax.set_ylabel('severity', fontsize=9)
    ax.set_title('error in %', fontsize=10)
    ax.spines[:].set_visible(False)
    figure.colorbar(picture, ax=ax, pad=0.01)
    return figure


def _compared_by_t(reports: Sequence[Report], names: Sequence[str]) -> Figure:
    kinds = reports[0].names
    figure = blank(10, 2.9 * len(kinds))
    axes = panels(figure, len(kinds), len(PANELS), sharex=True)
    for row, kind in zip(axes, kinds, strict=True):
        for ax, (metric, heading) in zip(row, PANELS.items(), strict=True):
            for report, name, colour in zip(reports, names, REPORTS, strict=False):
                cells = {**report.at('clean'), **report.at(kind)}
                values = [scaled(cell, metric) for cell in cells.values()]
                ax.plot(list(cells), values, '-o', color=colour, markersize=3, label=name)
            dress(ax, f'{kind}: {heading}', 't (0 is clean)' if kind == kinds[-1] else '')
            ax.set_ylim(bottom=0)
    axes[0][0].legend(frameon=False, fontsize=8)
    return figure


def _compared_by_group(reports: Sequence[Report], names: Sequence[str]) -> Figure:
    held_out = [name for name in HELD_OUT if name in reports[0].names]
    groups = [*reports[0].groups]
    bar = ['C-bar'] * any(name in BAR for name in reports[0].names)
    columns = ['clean'] * bool(reports[0].at('clean')) + groups + ['mean'] * bool(groups) + held_out + bar
    figure = blank(11, 3.4)
    for ax, (metric, heading) in zip(panels(figure, 1, len(PANELS))[0], PANELS.items(), strict=True):
        width = 0.8 / len(reports)
        for i, (report, name, colour) in enumerate(zip(reports, names, REPORTS, strict=False)):
            of: dict[str, Metrics] = {**report.corruptions, **report.groups, 'mean': report.mean, 'C-bar': report.bar}
            if ('clean', 0) in report:
                of['clean'] = report.clean
            at = np.arange(len(columns)) + (i - (len(reports) - 1) / 2) * width
            ax.bar(at, [scaled(of[column], metric) for column in columns], width, color=colour, label=name)
        dress(ax, heading, '')
        below = [column.replace('_', ' ') for column in columns]
        ax.set_xticks(range(len(columns)), below, rotation=30 * bool(held_out), ha='right' if held_out else 'center')
        ax.set_ylim(bottom=0)
    figure.legend(*ax.get_legend_handles_labels(), frameon=False, fontsize=8, loc='outside lower center', ncols=2)
    return figure
