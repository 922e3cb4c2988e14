"""What comes out of a study: means and paired differences over seeds, as tables, a figure and JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from timm_molly.files import write_json, write_text
from timm_molly.preview import save_figure
from timm_molly.robustness import figures
from timm_molly.robustness.compare import measured
from timm_molly.robustness.render import HEADINGS
from timm_molly.robustness.report import CLEAN, Metrics, Report, differences
from timm_molly.study.grid import Entry
from timm_molly.tables import aligned, markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 'timm-molly/study'
VERSION = 1
METRICS = {metric: HEADINGS[metric] for metric in ('error', 'nll', 'ece')}
SCALED = {'clean': 'after T', 'trained': 'after trained T'}  # which held-out images a temperature was fitted on
RANKED = {'nll after T': 'NLL after T', 'ece after T': 'ECE after T', 'aurc': 'AURC'}
SUMMARY = {
    'clean error %': 'clean error',
    'corrupted error %': 'corrupted error',
    'corrupted NLL': 'corrupted nll',
    'corrupted ECE': 'corrupted ece',
    'ECE after T': 'corrupted ece after T',
    'C-bar error %': 'C-bar error',
    'corrupted AURC': 'corrupted aurc',
}

Run = dict[str, Any]
Row = dict[str, Any]
Value = dict[str, Any]


def collect(
    title: str, ended: Mapping[Entry, Mapping[str, Any]], output: Path, script: Mapping[str, Any]
) -> dict[str, Any]:
    """Bring the reports of a study together, run by run, for JSON.

    Args:
        title: Of the study.
        ended: How each entry ended.
        output: Folder of the runs.
        script: What the train script is known by, of `ask`.
    """
    runs = []
    notes: dict[str, list[str]] = {}  # by what differs
    first: tuple[str, Any] | None = None
    for entry, result in ended.items():
        folder = output / str(entry)
        run: Run = {'row': entry.row, 'recipe': entry.recipe, 'molly': entry.molly, 'seed': entry.seed, **result}
        if result['status'] == 'finished':
            report = Report.load(folder / 'report')
            run |= {'figures': numbers(report), 'sha256': report.model.sha256}
            of = report.corruptions
            run['corruptions'] = {name: {metric: of[name].figures()[metric] for metric in METRICS} for name in of}
            written = report.to_dict()
            run |= {key: written[key] for key in ('benchmark', 'data', 'packages')}
            what = {**measured(report), 'packages': dict(report.packages)}
            first = first or (str(entry), what)
            if different := differences(first[1], what):
                notes.setdefault('; '.join(different), []).append(str(entry))
        runs.append({**run, 'train': dict(entry.train), 'validate': dict(entry.validate), 'threads': entry.threads})
    said = [f'{", ".join(names)}: not measured as {first[0]} was: {what}' for what, names in notes.items() if first]
    return {'schema': SCHEMA, 'version': VERSION, 'title': title, 'script': dict(script), 'notes': said, 'runs': runs}


def numbers(report: Report) -> dict[str, float]:
    """The figures of a report by name: 'clean error', 'corrupted nll', 'weather ece' ...

    Of each part error, NLL, ECE, AURC, and the mean confidence less the share of correct answers, which ECE gives
    without its sign: 'clean overconfidence'. Where temperatures were fitted on held-out images, also the NLL and ECE
    that they lead to: 'clean ece after T' of one fitted on clean images, 'clean ece after trained T' of one fitted on
    clean, noised and blurred ones.
    """
    found: dict[str, float] = {}
    for part, values in _parts(report).items():
        found |= {f'{part} {metric}': values[metric] for metric in (*METRICS, 'aurc')}
        found[f'{part} overconfidence'] = values.confidence - (1 - values.error)
    if report.temperatures:
        for by, words in SCALED.items():
            for part, values in _parts(report.scaled(by)).items():
                found |= {f'{part} {metric} {words}': values[metric] for metric in ('nll', 'ece')}
    return {name: value for name, value in found.items() if value == value}  # an older report has no AURC


def _parts(report: Report) -> dict[str, Metrics]:
    """Means of the parts of a report that were measured."""
    parts: dict[str, Metrics] = {'clean': report.clean} if CLEAN in report else {}
    parts |= {'corrupted': report.mean, **report.groups, 'C-bar': report.bar}
    return {name: values for name, values in parts.items() if values.error == values.error}


def rows(study: Mapping[str, Any], against: str | None = None) -> list[Row]:
    """Average the runs of a study over seeds.

    Args:
        study: What `collect` returns.
        against: Name of the row that `differences` are to; None for the same recipe without molly.

    Returns:
        A row for each recipe and aa string of molly: 'name', 'recipe', 'molly', 'seeds', those that are 'finished',
        and by name of the figure 'values', 'differences', seed by seed over the seeds that both have ('shared'), and
        'others', the figures of the other row over these; each with 'mean' and the standard error of the mean 'se'
        (None for a single seed).
    """
    by_row: dict[str, list[Run]] = {}
    for run in study['runs']:
        by_row.setdefault(run['row'], []).append(run)
    figures_of = {name: {run['seed']: run['figures'] for run in of if 'figures' in run} for name, of in by_row.items()}
    found = []
    for name, ((run, *_), own) in zip(by_row, zip(by_row.values(), figures_of.values(), strict=True), strict=True):
        other = against or run['recipe']  # a row without molly is named by its recipe alone
        others = figures_of.get(other, {}) if other != name else {}
        shared = [seed for seed in own if seed in others]
        differences = [{key: own[seed][key] - others[seed][key] for key in own[seed]} for seed in shared]
        row: Row = {'name': name, 'recipe': run['recipe'], 'molly': run['molly']}
        row |= {'seeds': [run['seed'] for run in by_row[name]], 'finished': list(own), 'shared': shared}
        row |= {'values': _over_seeds(list(own.values())), 'differences': _over_seeds(differences)}
        found.append({**row, 'others': _over_seeds([others[seed] for seed in shared])})
    return found


def _over_seeds(of: Sequence[Mapping[str, float]]) -> dict[str, Value]:
    found = {}
    for key in of[0] if of else ():
        values = [each[key] for each in of]
        error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        found[key] = {'mean': fmean(values), 'se': error}
    return found


def tables(study: Mapping[str, Any], style: str, against: str | None = None) -> str:
    """Tables of a study: main figures, corrupted and clean images, groups of corruptions, and runs without figures.

    Args:
        study: What `collect` returns.
        style: 'text' or 'markdown'.
        against: As for `rows`.
    """
    found = rows(study, against)
    parts = list(dict.fromkeys(key.split()[0] for row in found for key in row['values']))
    groups = [part for part in parts if part not in ('corrupted', 'clean')]
    difference = f'- {against}' if against else 'with - without'
    known = {key for row in found for key in row['values']}
    blocks = {}
    if not against:
        blocks['In short'] = _table(found, {text: key for text, key in SUMMARY.items() if key in known}, seeds=True)
    for part in ('corrupted', 'clean'):
        for title, metrics in (('images', METRICS), ('images, calibrated and ranked', RANKED)):
            columns = {text: f'{part} {metric}' for metric, text in metrics.items() if f'{part} {metric}' in known}
            if columns:
                blocks[f'{part.capitalize()} {title}'] = _table(found, columns, difference, seeds=True)
    if groups:
        for metric, text in (('error', 'Error %'), ('ece', 'ECE')):
            columns = {group: f'{group} {metric}' for group in groups}
            blocks[f'{text} by group of corruptions'] = _table(found, columns, difference)
        columns = {part: f'{part} overconfidence' for part in parts}
        blocks['Mean confidence less share correct (below 0: underconfident)'] = _table(found, columns)
    render = aligned if style == 'text' else markdown_table
    mark = '' if style == 'text' else '## '
    bad = [run for run in study['runs'] if run['status'] != 'finished']
    lists = {
        'Not measured alike': study['notes'],
        'Runs without figures': [f'{run["row"]}/{run["seed"]}: {run["status"]}: {run["reason"]}' for run in bad],
    }
    texts = ['Means over seeds ± their standard errors; differences are taken seed by seed.']
    if any(key.endswith('after T') for key in known):
        texts[0] += ' T: a temperature of each run, fitted on clean held-out images.'
    texts += [f'{mark}{title}\n\n{render(table)}' for title, table in blocks.items()]
    texts += [f'{mark}{title}\n\n- ' + '\n- '.join(lines) for title, lines in lists.items() if lines]
    return '\n\n'.join(texts)


def _table(
    found: Sequence[Row], columns: Mapping[str, str], difference: str | None = None, seeds: bool = False
) -> list[list[str]]:
    """A row each, with its values and, below the head `difference`, its differences."""
    head = [''] + ['seeds'] * seeds
    for text in columns:
        head += [text, difference] if difference else [text]
    table = [head]
    for row in found:
        if not (seeds or row['values']):
            continue  # the first table says that it has none
        finished, all_of_them, shared = len(row['finished']), len(row['seeds']), len(row['shared'])
        line = [row['name']] + [str(finished) if finished == all_of_them else f'{finished} of {all_of_them}'] * seeds
        for key in columns.values():
            line.append(said(row['values'].get(key), key, key.endswith('overconfidence')))
            if difference:
                few = f' ({shared} of {finished} seeds)' if 0 < shared < finished else ''
                line.append(said(row['differences'].get(key), key, sign=True) + few)
        table.append(line)
    return table


def said(value: Value | None, key: str, sign: bool = False) -> str:
    """A figure with its standard error: '29.4 ± 0.3'; empty where there is none."""
    if value is None:
        return ''
    scale, digits = (100, 1) if key.endswith(' error') else (1, 3)
    text = f'{scale * value["mean"]:{"+" if sign else ""}.{digits}f}'
    return text if value['se'] is None else f'{text} ± {scale * value["se"]:.{digits}f}'


def draw(study: Mapping[str, Any]) -> Figure:
    """Error, NLL and ECE of each recipe without and with molly, on corrupted and on clean images.

    Means over seeds, those without molly over the seeds with it; a line as long as the standard error on both sides.
    """
    found = [row for row in rows(study) if row['values']]
    # A line for each row with molly, which starts at its recipe without; one for each recipe that has none.
    mollified = {row['recipe'] for row in found if row['molly']}
    lines = [row for row in found if row['molly'] or row['recipe'] not in mollified]
    parts = [part for part in ('corrupted', 'clean') if any(f'{part} error' in row['values'] for row in found)]
    figure = figures.blank(11, (0.8 + 0.24 * len(lines)) * len(parts) + 0.3)
    axes = figure.subplots(len(parts), len(METRICS), squeeze=False)
    for row_of_axes, part in zip(axes, parts, strict=True):
        for ax, (metric, heading) in zip(row_of_axes, METRICS.items(), strict=True):
            key, scale = f'{part} {metric}', 100 if metric == 'error' else 1
            for y, row in enumerate(lines):
                start = row['others' if row['molly'] else 'values'].get(key)  # both over the same seeds
                end = row['values'].get(key) if row['molly'] else None
                if start and end:
                    ends = [scale * start['mean'], scale * end['mean']]
                    ax.plot(ends, [y, y], color='#cccccc', linewidth=1.5, zorder=1)
                filled = figures.REPORTS[1 if row['molly'] == 'molly' else 2]
                for value, colour, face in ((start, '#555555', 'white'), (end, filled, None)):
                    if value:
                        ax.errorbar(
                            scale * value['mean'],
                            y,
                            xerr=scale * value['se'] if value['se'] else None,
                            fmt='o',
                            markersize=5,
                            color=colour,
                            markerfacecolor=face or colour,
                        )
            figures.dress(ax, f'{part} images: {heading}', '')
            ax.set_yticks(range(len(lines)), [row['name'] for row in lines])
            ax.tick_params(axis='y', labelleft=metric == 'error', length=0)
            ax.set_ylim(len(lines) - 0.4, -0.6)
            ax.locator_params(axis='x', nbins=6)
    title = study['title'].replace('$', r'\$')
    legend = 'without molly (open), with it (filled: red with its default settings, blue with others); bars: ± se'
    figure.suptitle(f'{title}: {legend}', fontsize=9, color='#444444')
    return figure


def write(study: Mapping[str, Any], output: Path, against: str | None = None) -> list[str]:
    """Write study.json, .md and .png; with `against`, a table of its own. Return the names."""
    if against:
        name = f'against-{against}.md'
        write_text(output / name, f'# {study["title"]}\n\n{tables(study, "markdown", against)}\n')
        return [name]
    drawn = any('figures' in run for run in study['runs'])
    (output / 'study.png').unlink(missing_ok=True)
    write_json(output / 'study.json', study)
    shown = '\n![study](study.png)\n' if drawn else ''
    write_text(output / 'study.md', f'# {study["title"]}\n\n{tables(study, "markdown")}\n{shown}')
    if drawn:
        save_figure(draw(study), output / 'study.png')
    return ['study.json', 'study.md'] + ['study.png'] * drawn
