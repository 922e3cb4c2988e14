"""A report, or several side by side, as one page of HTML that needs no network: hover for figures, click to sort."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from timm_molly.errors import needs
from timm_molly.robustness import figures, render
from timm_molly.robustness.corruptions.names import BAR, COMMON, GROUPS, HELD_OUT
from timm_molly.tables import Row, number

if TYPE_CHECKING:
    from timm_molly.robustness.report import Cell, Place, Report

HOVER = ('error', 'nll', 'ece', 'confidence', 'aurc')
NARROW = 300  # pixels that a panel has at least
ROW = 25  # pixels of a row of the table
# Scroll bars only where the table is wider than the window; Bokeh's grid has them always.
SCROLL = '.slick-viewport-left {overflow-x: hidden !important} .slick-viewport-right {overflow-x: auto !important}'
PALETTE = [f'#{255 - i * 105 // 63:02x}{255 - i * 225 // 63:02x}{255 - i * 235 // 63:02x}' for i in range(64)]


@dataclass(frozen=True)
class Line:
    """What has a line in a plot: a group of corruptions of one report, or the common ones of one of several."""

    name: str
    colour: str
    report: Report
    members: Sequence[str]

    def at(self, level: float) -> list[Cell]:
        """Its cells of a level."""
        return [self.report[name, level] for name in self.members if (name, level) in self.report]


def page(reports: Sequence[Report], names: Sequence[str], said: str = '') -> str:
    """Return the page: heat maps, error by level where there are several, reliability, and a table of all cells.

    Args:
        reports: One or more, of the same images.
        names: A name for each.
        said: What else is to be said of them.

    Raises:
        UserError: Bokeh is missing.
    """
    try:
        from bokeh.embed import file_html
        from bokeh.layouts import column, row
        from bokeh.models import Div
        from bokeh.resources import INLINE
    except ImportError as error:
        raise needs('a page of HTML', 'robustness', error) from None
    letters = [chr(ord('A') + i) for i in range(len(reports))] if len(reports) > 1 else ['']
    title = ' and '.join(names)
    known = map(html.escape, map(render.known_as, reports, names))
    key = ''.join(f'<br>{letter}: {name}' for letter, name in zip(letters, known, strict=True) if letter)
    chance = f'<br>{render.chance(reports)}' if key else ''
    head = Div(
        text=f'<h2>{html.escape(title)}</h2>{html.escape(render.subject(reports[0]))}. '
        f'Lower is better, but for confidence.{key}{chance}'
    )
    tables = (
        ''.join(_paragraph(part) for part in said.split('\n\n') if part)
        + _means(reports, letters)
        + _scaled(reports, letters)
    )
    narrow = '.bk-clearfix { width: 100% }'  # of the window, so that a table scrolls and a sentence breaks
    means = Div(text=tables, sizing_mode='stretch_width', stylesheets=[narrow])
    highest = max([cell.error for report in reports for cell in report.cells.values() if cell.error > 0], default=1.0)
    maps = [_heat_map(report, letter, highest) for report, letter in zip(reports, letters, strict=True)]
    lines = _lines(reports, letters)
    several = len({level for report in reports for _, level in report} - {0.0}) > 1
    plots = [*([_by_level(lines)] if several else []), _reliability(lines)]
    wide: dict[str, Any] = dict(sizing_mode='stretch_width')
    rows = [row(*panels, styles={'flex-wrap': 'wrap'}, **wide) for panels in (maps, plots)]
    return str(file_html(column(head, means, *rows, _table(reports, letters), **wide), INLINE, title))


def _means(reports: Sequence[Report], letters: Sequence[str]) -> str:
    """A table of HTML: clean images and means, with the differences to the first report."""
    return _means_of(render.side_by_side(reports, ('error', 'nll', 'ece', 'aurc'), letters))


def _scaled(reports: Sequence[Report], letters: Sequence[str]) -> str:
    """What temperatures would have done to clean images and means; nothing where none were fitted."""
    of = [(letter, *each) for letter, report in zip(letters, reports, strict=True) for each in render.scaled(report)]
    return ''.join(_paragraph(f'{letter}: {said}' if letter else said) + _means_of(rows) for letter, said, rows in of)


def _paragraph(text: str) -> str:
    return f'<p style="margin: 9px 0">{html.escape(text)}</p>'


def _means_of(table: Sequence[Row]) -> str:
    """The head and those rows of a table that are of clean images and of means, as HTML."""
    head, *rows = table
    cells = [(head, 'th'), *((row, 'td') for row in rows if row[0].startswith(('clean', 'mean of')))]
    style = 'style="padding: 1px 9px; white-space: nowrap; text-align:'
    lines = [
        ''.join(f'<{tag} {style} {"right" if i else "left"}">{html.escape(cell)}</{tag}>' for i, cell in enumerate(row))
        for row, tag in cells
    ]
    return f'<div style="overflow-x: auto"><table><tr>{"</tr><tr>".join(lines)}</tr></table></div>'


def _heat_map(report: Report, letter: str, highest: float) -> Any:
    """Error by corruption and level, with the other figures on hover."""
    from bokeh.models import LinearColorMapper
    from bokeh.plotting import figure

    cells = {place: cell for place, cell in report.cells.items() if place[0] != 'clean'}
    data: dict[str, list[Any]] = {'name': [name for name, _ in cells], 'level': [f'{level:g}' for _, level in cells]}
    data |= {metric: [number(metric, cell[metric]) for cell in cells.values()] for metric in HOVER}
    levels = list(dict.fromkeys(data['level']))
    data |= {
        'value': [cell.error for cell in cells.values()],
        'text': [
            f'{100 * cell.error:.0f}' if len(levels) > 10 else number('error', cell.error) for cell in cells.values()
        ],
        'ink': ['white' if cell.error > 0.6 * highest else 'black' for cell in cells.values()],
    }
    hover = [('', '@name @level'), *((render.HEADINGS[metric], f'@{metric}') for metric in HOVER)]
    plot = figure(
        title=f'{letter}: error %' if letter else 'error %',
        x_range=levels,
        y_range=report.names[::-1],
        x_axis_label=_level(report),
        height=100 + 22 * len(report.names),
        max_width=220 + 120 * len(levels),
        **_frame(hover),
    )
    colour = {'field': 'value', 'transform': LinearColorMapper(palette=PALETTE, low=0, high=highest, nan_color='gray')}
    plot.rect('level', 'name', 0.98, 0.94, source=data, fill_color=colour, line_color=None)
    style = dict(text_align='center', text_baseline='middle', text_font_size='11px')
    plot.text('level', 'name', 'text', source=data, text_color='ink', **style)
    plot.grid.visible = False
    return plot


def _lines(reports: Sequence[Report], letters: Sequence[str]) -> list[Line]:
    """The lines of the plots."""
    if len(reports) > 1:
        of = [[name for name in report.names if name in COMMON] or report.names for report in reports]
        return [Line(*each) for each in zip(letters, cycle(figures.REPORTS), reports, of, strict=False)]
    (report,) = reports
    groups = {**GROUPS, 'held out': HELD_OUT, 'C-bar': BAR}
    if report.benchmark.mollified:
        groups = {name: (name,) for name in report.names}
    found = {group: [name for name in members if name in report.names] for group, members in groups.items()}
    return [Line(group, figures.COLOURS[group], report, members) for group, members in found.items() if members]


def _by_level(lines: Sequence[Line]) -> Any:
    """Mean error of each line against the level."""
    from bokeh.plotting import figure

    level = _level(lines[0].report)
    frame = _frame([('', '$name'), (level, '@x'), ('error %', '@y{0.0}')])
    plot = figure(title=f'mean error % by {level}, from clean (0) on', x_axis_label=level, height=340, **frame)
    for line in lines:
        levels = sorted({at for name, at in line.report if name in line.members} - {0.0})
        found = {at: line.at(at) for at in levels}
        found = {0.0: [line.report.clean], **found} if ('clean', 0) in line.report else found
        _draw(plot, line, {'x': [*found], 'y': [100 * np.mean([cell.error for cell in of]) for of in found.values()]})
    plot.y_range.start = 0
    if level == 'severity':
        plot.xaxis.ticker = sorted({at for name, at in lines[0].report})
    return _with_legend_below(plot)


def _reliability(lines: Sequence[Line]) -> Any:
    """Share of correct answers of each line against confidence, over all levels."""
    from bokeh.plotting import figure

    frame = _frame([('', '$name'), ('confidence', '@x{0.00}'), ('correct %', '@y{0.0}'), ('images', '@images')])
    label = f'confidence (dashed: as sure as right; larger points: more images, {figures.FEWEST} or more)'
    plot = figure(title='correct % by confidence', x_axis_label=label, height=340, **frame)
    plot.line([0, 1], [0, 100], color='#999999', line_dash='dashed')
    for line in lines:
        bins = [cell.bins for (name, _), cell in line.report.cells.items() if name in line.members and cell.bins]
        if bins:
            sums = [
                np.sum([getattr(each, key) for each in bins], axis=0) for key in ('images', 'correct', 'confidence')
            ]
            images, correct, confidence = np.array(sums)[:, sums[0] >= figures.FEWEST]
            size = 3 + 12 * np.sqrt(images / images.sum())
            data = {'x': confidence / images, 'y': 100 * correct / images, 'images': images, 'size': size}
            _draw(plot, line, data)
    return _with_legend_below(plot)


def _draw(plot: Any, line: Line, data: Mapping[str, Any]) -> None:
    """Add a line with its points; a click on its name hides it."""
    for glyph, style in ((plot.line, {'line_width': 2}), (plot.scatter, {'size': 'size' if 'size' in data else 7})):
        glyph('x', 'y', source=dict(data), color=line.colour, legend_label=line.name, name=line.name, **style)
    plot.legend.click_policy = 'hide'


def _with_legend_below(plot: Any) -> Any:
    """Move the legend of a plot off its lines."""
    if plot.legend:
        (legend,) = plot.legend
        legend.update(orientation='horizontal', ncols=3, border_line_color=None)
        plot.add_layout(legend, 'below')
    return plot


def _table(reports: Sequence[Report], letters: Sequence[str]) -> Any:
    """Every cell of every report; a click on a head sorts."""
    from bokeh.models import ColumnDataSource, DataTable, NumberFormatter, TableColumn

    places: list[Place] = list(dict.fromkeys(place for report in reports for place in report))
    data: dict[str, list[Any]] = {'name': [name for name, _ in places], 'level': [level for _, level in places]}
    columns = [
        TableColumn(field='name', title='', width=190),
        TableColumn(field='level', title=_level(reports[0]), width=70),
    ]
    for metric in render.HEADINGS if len(reports) == 1 else HOVER:
        digits = '0.0' if metric == 'error' else '0.000'
        style = NumberFormatter(format=digits, text_align='right', nan_format='')
        for letter, report in zip(letters, reports, strict=True):
            field = f'{metric} {letter}'
            # Rounded here, so that the page rounds a figure one way.
            texts = [number(metric, report[place][metric]) if place in report else '' for place in places]
            data[field] = [float(text) if text and text != 'nan' else None for text in texts]
            columns.append(
                TableColumn(field=field, title=f'{render.HEADINGS[metric]} {letter}', formatter=style, width=90)
            )
    source = ColumnDataSource(data)
    style = dict(index_position=None, reorderable=False, autosize_mode='none', frozen_columns=1, stylesheets=[SCROLL])
    height = ROW * (len(places) + 2)  # all rows, a head, and room for a scroll bar below where the window is narrow
    return DataTable(
        source=source, columns=columns, row_height=ROW, height=height, sizing_mode='stretch_width', **style
    )


def _frame(hover: Sequence[tuple[str, str]]) -> Mapping[str, Any]:
    """What all plots have: as wide as the page lets them, nothing to drag, figures on hover."""
    return dict(
        sizing_mode='stretch_width',
        min_width=NARROW,
        styles={'flex': f'1 1 {NARROW}px'},
        tools='hover',
        toolbar_location=None,
        tooltips=list(hover),
    )


def _level(report: Report) -> str:
    return 't' if report.benchmark.mollified else 'severity'
