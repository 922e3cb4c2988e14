"""A report as text: the table for the terminal, Markdown, and CSV."""

from __future__ import annotations

import csv as csv_writer
import io
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from timm_molly.robustness.corruptions.names import BAR, BAR_OF, COMMON, GROUPS, HELD_OUT
from timm_molly.tables import Row, aligned, markdown_table, number

if TYPE_CHECKING:
    from timm_molly.robustness.report import BenchmarkRecord, Metrics, Report

HEADINGS = {'error': 'error %', 'nll': 'NLL', 'brier': 'Brier', 'ece': 'ECE', 'confidence': 'confidence'}
HEADINGS |= {'adaptive_ece': 'adaptive ECE', 'aurc': 'AURC', 'e_aurc': 'E-AURC'}
# What temperatures are fitted on.
SCALED = {'clean': 'held-out images', 'trained': 'held-out images, clean, noised and blurred'}
LETTER = ('error', 'nll', 'ece', 'confidence')  # of a table that has to be narrow


def text(report: Report) -> str:
    """The table for the terminal, with what it is about above it."""
    tables = [aligned(_table(report)), *_scaled(report, aligned)]
    return f'{title(report)}\n{_facts(report)}\n\n' + '\n\n'.join(tables)


def page(report: Report, pictures: list[str], said: str = '') -> str:
    """The table as a page of Markdown, with its pictures.

    Args:
        report: The report.
        pictures: Names of the pictures beside it, without .png.
        said: What else is to be said of it.
    """
    shown = '\n'.join(f'![{name.replace("-", " ")}]({name}.png)' for name in pictures)
    tables = '\n\n'.join([markdown_table(_table(report)), *_scaled(report, markdown_table), *filter(None, [said])])
    return f'# {title(report)}\n\n{_facts(report)}\n\n{tables}\n\n{shown}\n'


def markdown(report: Report) -> str:
    """The means of a report as a Markdown table: error, NLL, ECE and mean confidence, a row a corruption and group."""
    rows: list[Row] = [['', *(HEADINGS[metric] for metric in LETTER)]]
    rows += [[name, *(number(m, values[m]) for m in LETTER)] for name, values in summary_rows(report)]
    rows = _table(report) if report.benchmark.mollified else rows
    return '\n\n'.join([markdown_table(rows), *_scaled(report, markdown_table)])


def csv(report: Report) -> str:
    """Every cell as CSV; a figure that is not finite is left empty."""
    file = io.StringIO()
    writer = csv_writer.writer(file, lineterminator='\n')
    after = [report.scaled(by) for by in SCALED] if report.temperatures else []
    heads = [f'{metric} after T of {by}' for by in SCALED for metric in ('nll', 'ece')] if after else []
    writer.writerow(['name', 't' if report.benchmark.mollified else 'severity', 'images', *HEADINGS, *heads])
    for (name, level), cell in report.cells.items():
        figures = [cell[metric] for metric in HEADINGS]
        figures += [each[name, level][metric] for each in after for metric in ('nll', 'ece')]
        writer.writerow([name, f'{level:g}', cell.images, *('' if v != v else repr(v) for v in figures)])
    return file.getvalue()


def title(report: Report) -> str:
    """Name the model and what it was measured on."""
    return f'{report.model.label} on {subject(report)}'


def known_as(report: Report, name: str) -> str:
    """A name for a model beside others, with how it was trained."""
    return f'{name}, trained with --aa {report.model.aa}' if report.model.aa else name


def subject(report: Report) -> str:
    """Name what a model was measured on."""
    data, benchmark = report.data, report.benchmark
    where = '/'.join(part for part in (data.dataset, data.split) if part)
    images = f'{data.images} images' + (f' of {where}' if where else '')
    images += f' ({data.subset})' if data.subset else ''
    how = {
        'mollification': 'noised and blurred as in training',
        'on the fly': f'corrupted on the fly as in {_sets(benchmark)}',
        'official': f'corrupted: {report.corrupted_set}',
    }[benchmark.kind]
    return f'{images}, {how}'


def _sets(benchmark: BenchmarkRecord) -> str:
    """The published sets whose corruptions and strengths are used."""
    bar = {*BAR} & {*benchmark.corruptions}
    names = [benchmark.table or ''] * bool({*benchmark.corruptions} - bar)
    return ' and '.join(names + ['imagenet-c-bar' if benchmark.table == 'imagenet-c' else 'cifar-10-c-bar'] * bool(bar))


def notes(report: Report) -> list[str]:
    """Lines on mCE, and on what went wrong."""
    lines = []
    if report.mce is not None:
        line = f'mCE {100 * report.mce:.1f} %'
        if report.relative_mce is not None:
            line += f', relative mCE {100 * report.relative_mce:.1f} % (AlexNet: 100 %)'
        lines.append(line)
    if report.not_finite:
        lines.append(
            f'NOT A NUMBER: the model gave logits that are not finite in {", ".join(report.not_finite)}; '
            'means that these go into are left out'
        )
    return lines


def summary_rows(report: Report) -> Iterator[tuple[str, Metrics]]:
    """The rows of a table by their names: clean, corruptions and their groups, means; or each t of mollification."""
    if ('clean', 0) in report:
        yield 'clean', report.clean
    if report.benchmark.mollified:
        for (name, t), cell in report.cells.items():
            if name != 'clean':
                yield f'{name} t={t:g}', cell
        return
    for group, members in GROUPS.items():
        for name in members:
            if name in report.corruptions:
                yield name, report.corruptions[name]
        if group in report.groups:
            yield _mean_of(group, members, report), report.groups[group]
    if any(name in COMMON for name in report.corruptions):
        yield _mean_of('common', COMMON, report), report.mean
    for name in HELD_OUT:
        if name in report.corruptions:
            yield f'{name} (held out)', report.corruptions[name]
    bar = [name for name in BAR if name in report.corruptions]
    for name in bar:
        yield name, report.corruptions[name]
    if bar:
        whole = next(of for of in BAR_OF.values() if {*bar} <= {*of})
        yield _mean_of('C-bar', whole, report), report.bar


def _mean_of(group: str, members: Sequence[str], report: Report) -> str:
    """Name a mean, and say where it is over a part of its group."""
    measured = sum(name in report.corruptions for name in members)
    return f'mean of {group}' + f' ({measured} of {len(members)})' * (measured < len(members))


def margin(share: float, images: int) -> float:
    """What chance makes of a share of so many images, either way: two standard errors."""
    return 2 * math.sqrt(share * (1 - share) / images)


def chance(reports: Sequence[Report]) -> str:
    """Say how much errors of so many images differ by chance: less in 95 of 100 cases.

    As of different images, since those of the same ones differ less.
    """
    images = reports[0].data.images
    errors = [of.error for report in reports for name, of in summary_rows(report) if name == 'clean' or 'mean' in name]
    widest = max((margin(error, images) for error in errors if error == error), default=margin(0.5, images))
    points = 100 * math.sqrt(2) * widest
    return (
        f'With {images} images, differences in error below {points:.1f} points can be chance. '
        'Another seed of the training changes errors too.'
    )


def side_by_side(reports: Sequence[Report], metrics: Sequence[str], letters: Sequence[str]) -> list[Row]:
    """The summary rows of reports, with differences to the first; the first row is the head."""
    head = ['']
    for metric in metrics:
        head += [f'{HEADINGS[metric]} {letter}'.rstrip() for letter in letters]
        head += [f'{letter} - {letters[0]}' for letter in letters[1:]]
    rows: list[Row] = [head]
    for lines in zip(*map(summary_rows, reports), strict=True):
        row = [lines[0][0]]
        for metric in metrics:
            numbers = [of[metric] for _, of in lines]
            row += [number(metric, n) for n in numbers]
            row += [
                '' if n != n or numbers[0] != numbers[0] else number(metric, n - numbers[0], sign=True)
                for n in numbers[1:]
            ]
        rows.append(row)
    return rows


def _scaled(report: Report, table: Callable[[list[Row]], str]) -> list[str]:
    """What a temperature would have done, as text; nothing where none was fitted."""
    return [f'{said}\n\n{table(rows)}' for said, rows in scaled(report)]


def scaled(report: Report) -> list[tuple[str, list[Row]]]:
    """What a temperature would have done, as a sentence and a table with a head; nothing where none was fitted."""
    found = report.temperatures
    if found is None:
        return []
    said = (
        f'After one temperature, fitted on {found.images} '
        + (f'images of split {found.split}' if found.split else 'held-out images')
        + f': T1 = {found.clean:.3f} on the clean ones, T2 = {found.trained:.3f} on those, clean, noised and '
        f'blurred as by {found.aa}'
    )
    temperatures = f'T1={found.clean:.3f}', f'T2={found.trained:.3f}'
    heads = ['NLL', 'ECE', *(f'{name} {t}' for t in temperatures for name in ('NLL', 'ECE'))]
    lines = zip(*map(summary_rows, [report, *map(report.scaled, SCALED)]), strict=True)
    rows = [[of[0][0], *(number(m, each[m]) for _, each in of for m in ('nll', 'ece'))] for of in lines]
    return [(said, [['', *heads], *rows])]


def _table(report: Report) -> list[Row]:
    if report.benchmark.mollified:
        return _mollification_table(report)
    severities = report.benchmark.severities if len(report.benchmark.severities) > 1 else ()
    heads = [f'{"error % " if s == severities[0] else ""}at {s}' for s in severities]
    lines = dict(summary_rows(report))
    # Reports of before they were measured lack some.
    shown = [m for m in HEADINGS if m in LETTER or any(metrics[m] == metrics[m] for metrics in lines.values())]
    rows: list[Row] = [['', *heads, *(HEADINGS[metric] for metric in shown)]]
    for name, metrics in lines.items():
        cells = report.at(name.removesuffix(' (held out)'))
        errors = [number('error', cells[s].error) if s in cells else '' for s in severities]
        rows.append([name, *errors, *(number(metric, metrics[metric]) for metric in shown)])
    return rows


def _mollification_table(report: Report) -> list[Row]:
    columns = ['confidence', *['taught'] * (report.taught is not None), 'ECE']
    rows: list[Row] = [['t', *(heading for name in report.names for heading in (f'{name}: correct', *columns))]]
    if ('clean', 0) in report:
        rows.append(['0 (clean)', *(each for name in report.names for each in _mollified(report, name, 0))])
    for t in report.at(report.names[0]):
        rows.append([f'{t:g}', *(each for name in report.names for each in _mollified(report, name, t))])
    return rows


def _mollified(report: Report, name: str, t: float) -> list[str]:
    cell = report[name, t] if t else report.clean
    taught = [report.taught[name][t]] if report.taught else []
    values = [1 - cell.error, cell.confidence, *taught, cell.ece]
    return [number('share', value) for value in values]


def schedule(report: Report) -> str:
    """What the labels of a training were, in a report of mollification."""
    smoothing = report.benchmark.smoothing
    return f'{report.benchmark.taught}{f" and label smoothing {smoothing:g}" if smoothing else ""}'


def _facts(report: Report) -> str:
    """Lines under the title."""
    model = report.model
    size = ' x '.join(str(side) for side in model.input_size[1:])
    crop = model.crop_pct if report.benchmark.crop_pct is None else report.benchmark.crop_pct
    trained = f', trained with --aa {model.aa}' if model.aa else ''
    about = (
        f'{model.parameters / 1e6:.2f} M parameters, {model.num_classes} classes, input {size}, crop {crop:g}{trained}'
    )
    unknown = ', less for label smoothing if there was any' if report.benchmark.smoothing is None else ''
    taught = [f'taught: the confidence of the labels of {schedule(report)} at that t{unknown}'] if report.taught else []
    return '\n'.join([*notes(report), about, *taught])
