"""Two or more reports side by side: `timm_molly.compare([a, b])`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm_molly.errors import UserError
from timm_molly.files import make_folder, write_text
from timm_molly.preview import save_figure
from timm_molly.robustness import figures, html, render
from timm_molly.robustness.report import CLEAN, Report, plain
from timm_molly.tables import Row, aligned, markdown_table, number

METRICS = ('error', 'nll', 'ece')
MOST = 5  # names in a message


@dataclass(frozen=True)
class Comparison:
    """Reports of the same images, side by side.

    Attributes:
        reports: Two or more.
        names: A name for each.
    """

    reports: tuple[Report, ...]
    names: tuple[str, ...]

    @property
    def rows(self) -> list[Row]:
        """Error, NLL and ECE of each, and their differences to the first; the first row is the head."""
        rows = render.side_by_side(self.reports, METRICS, self._letters())
        for heading, values in (
            ('mCE %', [r.mce for r in self.reports]),
            ('relative mCE %', [r.relative_mce for r in self.reports]),
        ):
            known = [value for value in values if value is not None]
            if len(known) == len(values):
                row = [heading, *(number('error', v) for v in known)]
                row += [number('error', v - known[0], sign=True) for v in known[1:]]
                rows.append(row + [''] * (len(rows[0]) - len(row)))
        return rows

    @property
    def ranking(self) -> list[Row]:
        """AURC and E-AURC likewise; NaN where a report is of an older version."""
        return render.side_by_side(self.reports, ('aurc', 'e_aurc'), self._letters())

    def after(self, by: str) -> list[Row]:
        """NLL and ECE likewise, after the temperature of each.

        Args:
            by: What the temperatures were fitted on, 'clean' or 'trained'.

        Raises:
            UserError: A report has none.
        """
        return render.side_by_side([report.scaled(by) for report in self.reports], ('nll', 'ece'), self._letters())

    def __str__(self) -> str:
        return self._tables(self._aligned)

    def save(self, folder: str | Path) -> None:
        """Write compare.md and compare.png.

        Raises:
            UserError: The folder cannot be written, or matplotlib is missing.
        """
        picture = figures.comparison(self.reports, self.names)  # first, since it may need what is not there
        folder = make_folder(Path(folder))
        write_text(folder / 'compare.md', f'{self._tables(markdown_table)}\n\n![comparison](compare.png)\n')
        save_figure(picture, folder / 'compare.png')

    def save_html(self, file: str | Path) -> None:
        """Write one page of HTML that needs no network.

        Raises:
            UserError: The file cannot be written, or Bokeh is missing.
        """
        write_text(Path(file), html.page(self.reports, self.names))

    @property
    def table(self) -> str:
        """Error, NLL and ECE as text."""
        return f'{self._above()}\n\n{self._aligned(self.rows)}'

    def _aligned(self, rows: Sequence[Row]) -> str:
        return aligned(rows, together=2 * len(self.reports) - 1)  # a metric of each, and its differences

    def _tables(self, table: Callable[[Sequence[Row]], str]) -> str:
        parts = [self._above(), table(self.rows)]
        if all(cell.aurc == cell.aurc for report in self.reports for cell in report.cells.values()):
            parts += ['Ranking of the confidences:', table(self.ranking)]
        temperatures = [report.temperatures for report in self.reports]
        for by, name in render.SCALED.items():
            fitted = [getattr(each, by) for each in temperatures if each]
            if len(fitted) == len(self.reports):
                each = ', '.join(f'{letter}: T={t:.3f}' for letter, t in zip(self._letters(), fitted, strict=True))
                parts += [f'After one temperature, fitted on {name} ({each}):', table(self.after(by))]
        return '\n\n'.join(parts)

    def _letters(self) -> list[str]:
        return [chr(ord('A') + i) for i in range(len(self.reports))]

    def _above(self) -> str:
        names = map(render.known_as, self.reports, self.names)
        key = '\n'.join(f'{letter}: {name}' for letter, name in zip(self._letters(), names, strict=True))
        return f'{render.subject(self.reports[0])}\n\n{key}\n\n{render.chance(self.reports)}'


def compare(reports: Sequence[Report], names: Sequence[str] | None = None) -> Comparison:
    """Put reports of the same images side by side, with the differences of each to the first.

    Args:
        reports: Two to six.
        names: A name for each (default: those of their models).

    Returns:
        `print` shows the table, `save` writes it with a picture.

    Raises:
        UserError: Too few or too many, or they measured different things (which).
    """
    most = len(figures.REPORTS)
    if not 2 <= len(reports) <= most or not all(isinstance(each, Report) for each in reports):
        raise UserError(f'compare takes 2 to {most} reports, got {len(reports)}')
    names = [each.model.label for each in reports] if names is None else list(names)
    if len(names) != len(reports):
        raise UserError(f'compare takes a name for each of {len(reports)} reports, got {len(names)}')
    letters = 'ABCDEF'
    for letter, report in zip(letters[1:], reports[1:], strict=False):
        first, other = measured(reports[0]), measured(report)
        if different := _different(first, other, letter):
            how = _alike(first, other, letter)
            raise UserError(f'A and {letter} measured different things, so measure both alike: {different}{how}')
    return Comparison(tuple(reports), tuple(names))


def measured(report: Report) -> dict[str, Any]:
    """What two reports must share to be compared; names of folders and models may differ."""
    benchmark = plain(dataclasses.replace(report.benchmark, name=None, taught=None, smoothing=None))
    data = {'images': report.data.images, 'num_classes': report.data.num_classes, 'labels': report.data.labels}
    t = [*report.at(report.names[0])] if report.benchmark.mollified else None
    return {**benchmark, **data, 'clean': CLEAN in report, 't': t}


def _different(a: Mapping[str, Any], b: Mapping[str, Any], letter: str) -> str:
    """Say in what A differs from the report of a letter."""
    keys = [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    if 'kind' in keys:  # which explains the rest
        keys = ['kind']
    if 'images' in keys:
        keys = [key for key in keys if key != 'labels']
    return ', '.join(f'{key} ({_apart(key, a.get(key), b.get(key), letter)})' for key in keys)


def _alike(a: Mapping[str, Any], b: Mapping[str, Any], letter: str) -> str:
    """How to measure both alike where only the severities differ."""
    differ = {key for key in {*a, *b} if a.get(key) != b.get(key)}
    shared = [each for each in a.get('severities', ()) if each in b.get('severities', ())]
    if differ != {'severities'} or not shared:
        return ''
    longer = [name for name, of in (('A', a), (letter, b)) if of['severities'] != shared]
    which = f'command that measured {longer[0]}, which keeps its figures'
    if len(longer) > 1:
        which = f'commands that measured A and {letter}, which keep their figures'
    return f'. Add --severities {" ".join(map(str, shared))} to the {which}'


def _apart(key: str, a: Any, b: Any, letter: str) -> str:
    if key == 'labels':
        return 'other images, or in another order'
    if isinstance(a, list) and isinstance(b, list) and max(len(a), len(b)) > MOST:
        one, other = [each for each in a if each not in b], [each for each in b if each not in a]
        if not one and not other:
            return 'in another order'
        return f'only A: {_few(one)}; only {letter}: {_few(other)}'
    return f'A: {_few(a)}; {letter}: {_few(b)}'


def _few(value: Any) -> str:
    """A setting in few words."""
    if isinstance(value, list) and value:
        more = f' and {len(value) - MOST} more' if len(value) > MOST else ''
        return ', '.join(f'{each:g}' if isinstance(each, float) else str(each) for each in value[:MOST]) + more
    return str(value) if value not in (None, []) else 'none'
