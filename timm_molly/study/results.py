"""What comes out of a study: means and paired differences over seeds, as tables, a figure and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from timm_molly.files import write_text
from timm_molly.robustness import figures, report
from timm_molly.study.grid import Entry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 'timm-molly/study'
METRICS = {'error': 'error %', 'nll': 'NLL', 'ece': 'ECE'}
Value = dict[str, Any]  # mean, standard error (None for one seed), number of seeds


def collect(entries: Sequence[Entry], results: Mapping[Entry, Mapping[str, Any]], output: Path) -> dict[str, Any]:
    """Bring the reports of a study together.

    Each row has 'seeds', the `values` of its finished runs, mean and standard error over seeds, and the `differences`
    to the same recipe without molly, seed by seed: their mean and standard error, over the seeds that both have.

    Args:
        entries: The grid.
        results: How each entry ended.
        output: Folder of the study.

    Returns:
        'runs' and 'rows', for JSON.
    """
    runs = []
    for entry in entries:
        folder = output / str(entry)
        run: dict[str, Any] = {
            'recipe': entry.recipe,
            'molly': entry.molly,
            'seed': entry.seed,
            **results[entry],
            'train': dict(entry.train),
        }
        if results[entry]['status'] == 'finished':
            made = report.read(folder / 'report')
            run |= {'sha256': made['model']['sha256'], 'benchmark': made['benchmark'], 'data': made['data']}
            run['figures'] = numbers(made)
        runs.append(run)
    finished = {(r['recipe'], r['molly'], r['seed']): r['figures'] for r in runs if 'figures' in r}
    rows = []
    for recipe, molly in dict.fromkeys((entry.recipe, entry.molly) for entry in entries):
        seeds = [entry.seed for entry in entries if (entry.recipe, entry.molly) == (recipe, molly)]
        own = {seed: finished[recipe, molly, seed] for seed in seeds if (recipe, molly, seed) in finished}
        pairs = [(own[s], finished[recipe, None, s]) for s in own if molly and (recipe, None, s) in finished]
        differences = [{key: with_[key] - without[key] for key in with_} for with_, without in pairs]
        row = {'recipe': recipe, 'molly': molly, 'seeds': seeds, 'finished': list(own)}
        rows.append({**row, 'values': over_seeds(list(own.values())), 'differences': over_seeds(differences)})
    return {'rows': rows, 'runs': runs}


def numbers(made: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a report by name: 'clean error', 'corrupted nll', 'weather ece' ..."""
    parts = {'clean': made['clean'], 'corrupted': made['summary']['mean'], **made['summary']['groups']}
    return {
        f'{part} {metric}': values[metric]
        for part, values in parts.items()
        if values and values['error'] is not None
        for metric in METRICS
    }


def over_seeds(of: Sequence[Mapping[str, float]]) -> dict[str, Value]:
    """Mean and standard error of the mean of each figure; the standard error is None for a single one."""
    keys = of[0] if of else ()
    return {
        key: {
            'mean': fmean(each[key] for each in of),
            'se': stdev(each[key] for each in of) / math.sqrt(len(of)) if len(of) > 1 else None,
            'n': len(of),
        }
        for key in keys
    }


def tables(study: Mapping[str, Any], style: str) -> str:
    """Tables of a study: corrupted and clean images, and corruptions by group.

    Args:
        study: What `collect` returns, with 'title'.
        style: 'text' or 'markdown'.
    """
    render = report.aligned if style == 'text' else report.markdown_table
    heading = '{}' if style == 'text' else '## {}'
    parts = list(dict.fromkeys(key.split()[0] for row in study['rows'] for key in row['values']))
    blocks = []
    for part, title in (('corrupted', 'Corrupted images'), ('clean', 'Clean images')):
        if part in parts:
            head = ['', 'seeds', *(text for m in METRICS.values() for text in (m, 'with - without'))]
            rows = [
                [
                    label(row),
                    _seeds(row),
                    *(
                        text
                        for m in METRICS
                        for text in (
                            said(row['values'].get(f'{part} {m}'), m),
                            said(row['differences'].get(f'{part} {m}'), m, sign=True),
                        )
                    ),
                ]
                for row in study['rows']
            ]
            blocks.append((title, render([head, *rows])))
    groups = [part for part in parts if part not in ('corrupted', 'clean')]
    for metric in ('error', 'ece'):
        if groups:
            head = ['', *(text for g in groups for text in (g, 'with - without'))]
            rows = [
                [
                    label(row),
                    *(
                        text
                        for g in groups
                        for text in (
                            said(row['values'].get(f'{g} {metric}'), metric),
                            said(row['differences'].get(f'{g} {metric}'), metric, sign=True),
                        )
                    ),
                ]
                for row in study['rows']
            ]
            blocks.append((f'{METRICS[metric]} by group of corruptions', render([head, *rows])))
    text = '\n\n'.join(f'{heading.format(title)}\n\n{table}' for title, table in blocks)
    bad = [run for run in study['runs'] if run['status'] != 'finished']
    if bad:
        lines = [f'- {name(run)}: {run["status"]}: {run["reason"]}' for run in bad]
        text += '\n\n' + heading.format('Runs without figures') + '\n\n' + '\n'.join(lines)
    return text.strip()


def label(row: Mapping[str, Any]) -> str:
    """Name a row as `--only` takes it."""
    return f'{row["recipe"]}+{row["molly"]}' if row['molly'] else str(row['recipe'])


def name(run: Mapping[str, Any]) -> str:
    """Name a run as `--only` takes it."""
    return f'{label(run)}/{run["seed"]}'


def said(value: Value | None, metric: str, sign: bool = False) -> str:
    """A figure with its standard error: '29.4 ± 0.3'; empty where there is none."""
    if value is None:
        return ''
    scale, digits = (100, 1) if metric == 'error' else (1, 3)
    text = f'{scale * value["mean"]:{"+" if sign else ""}.{digits}f}'
    return text if value['se'] is None else f'{text} ± {scale * value["se"]:.{digits}f}'


def _seeds(row: Mapping[str, Any]) -> str:
    finished, seeds = len(row['finished']), len(row['seeds'])
    return str(seeds) if finished == seeds else f'{finished} of {seeds}'


def draw(study: Mapping[str, Any]) -> Figure:
    """Error, NLL and ECE of each recipe without and with molly, on corrupted and on clean images.

    Means over seeds; a line as long as the standard error on both sides.
    """
    from matplotlib.figure import Figure

    rows = [row for row in study['rows'] if row['values']]
    recipes = list(dict.fromkeys(row['recipe'] for row in rows))
    policies = [p for p in dict.fromkeys(row['molly'] for row in rows) if p]
    # Each recipe is a line with its own policies below one another.
    lines: list[tuple[str, str | None]] = []
    for recipe in recipes:
        own = [row['molly'] for row in rows if row['recipe'] == recipe and row['molly']]
        lines += [(recipe, p) for p in own] or [(recipe, None)]
    by = {(row['recipe'], row['molly']): row['values'] for row in rows}
    parts = [part for part in ('corrupted', 'clean') if any(f'{part} error' in values for values in by.values())]
    figure = Figure(figsize=(11, (0.9 + 0.27 * len(lines)) * len(parts) + 0.4), dpi=150, layout='constrained')
    axes = figure.subplots(len(parts), len(METRICS), squeeze=False)
    colours = {p: figures.REPORTS[1 + i % (len(figures.REPORTS) - 1)] for i, p in enumerate(policies)}
    for row_of_axes, part in zip(axes, parts, strict=True):
        for ax, (metric, heading) in zip(row_of_axes, METRICS.items(), strict=True):
            scale = 100 if metric == 'error' else 1
            for y, (recipe, molly) in enumerate(lines):
                without, with_ = (by.get((recipe, p), {}).get(f'{part} {metric}') for p in (None, molly))
                if without and with_ and molly:
                    ax.annotate(
                        '',
                        (scale * with_['mean'], y),
                        (scale * without['mean'], y),
                        arrowprops={
                            'arrowstyle': '-|>',
                            'color': '#bbbbbb',
                            'linewidth': 1,
                            'shrinkA': 0,
                            'shrinkB': 3,
                        },
                    )
                for value, colour, face in ((without, '#555555', 'white'), (with_, colours.get(molly or ''), None)):
                    if value and colour:
                        ax.errorbar(
                            scale * value['mean'],
                            y,
                            xerr=scale * value['se'] if value['se'] else None,
                            fmt='o',
                            markersize=5,
                            color=colour,
                            markerfacecolor=face or colour,
                        )
            ax.set_yticks(range(len(lines)), [f'{r}  +{m}' if m else r for r, m in lines] if metric == 'error' else [])
            ax.set_ylim(len(lines) - 0.4, -0.6)
            ax.set_title(f'{part}: {heading}', fontsize=10)
            ax.tick_params(labelsize=8)
            ax.grid(alpha=0.25, linewidth=0.6)
            ax.set_axisbelow(True)
            ax.spines[['top', 'right']].set_visible(False)
    figure.suptitle(f'{study["title"]}: without molly (open) and with it (filled)', fontsize=9, color='#444444')
    return figure


def write(study: Mapping[str, Any], output: Path) -> None:
    """Write study.json, study.md and study.png."""
    write_text(output / 'study.json', json.dumps(study, indent=1) + '\n')
    write_text(output / 'study.md', f'# {study["title"]}\n\n{tables(study, "markdown")}\n\n![study](study.png)\n')
    if any(row['values'] for row in study['rows']):
        figures.save(draw(study), output / 'study.png')
