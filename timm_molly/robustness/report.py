"""The report of a measured model: JSON, CSV, Markdown and a table for the terminal; and two or more side by side."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import math
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from timm_molly.config import MollyConfig
from timm_molly.files import write_text
from timm_molly.functional import blur_gamma, noise_gamma
from timm_molly.robustness import figures
from timm_molly.robustness.metrics import BINS, METRICS, Cells, corruption_errors, summarise
from timm_molly.robustness.names import COMMON, GROUPS, HELD_OUT, SEVERITIES

SCHEMA = 'timm-molly/robustness'
VERSION = 1
PACKAGES = ('timm-molly', 'timm', 'torch', 'torchvision', 'numpy', 'pillow', 'imagecorruptions-imaug', 'opencv-python')
PREPARATION = ('input_size', 'crop_pct', 'crop_mode', 'interpolation')
BIN_KEYS = ('images', 'correct', 'confidence')
HEADINGS = {'error': 'error %', 'nll': 'NLL', 'brier': 'Brier', 'ece': 'ECE', 'confidence': 'confidence'}

Report = dict[str, Any]
Row = list[str]


def build(
    model: Mapping[str, Any], benchmark: Mapping[str, Any], data: Mapping[str, Any], cells: Cells, command: str
) -> Report:
    """Make the report from the cells; the same cells give the same report.

    Args:
        model: What is measured.
        benchmark: On what: 'kind' ('on the fly', 'official', 'mollification') and what else tells it from others.
        data: The images.
        cells: The results by (name, level), ('clean', 0) among them where there is one.
        command: The command line.
    """
    clean = cells.get(('clean', 0))
    levels: dict[str, dict[str, Any]] = {}
    for (name, level), cell in cells.items():
        if name != 'clean':
            levels.setdefault(name, {})[f'{level:g}'] = cell
    report: Report = {
        'schema': SCHEMA,
        'version': VERSION,
        'model': dict(model),
        'benchmark': dict(benchmark),
        'data': dict(data),
        'packages': packages(),
        'command': command,
        'clean': clean,
        'cells': levels,
        'not_finite': [_name(*key) for key, cell in cells.items() if cell['error'] is None],
    }
    if benchmark['kind'] == 'mollification':
        config = MollyConfig.from_string(benchmark['taught']) if benchmark['taught'] else None
        return {**report, 'taught': config and _taught(config, cells, data['num_classes'])}
    report['summary'] = summarise(cells, GROUPS)
    whole = benchmark['severities'] == list(SEVERITIES) and data['num_classes'] == 1000 and not data['class_map']
    if whole and (benchmark.get('table') == 'imagenet-c' or benchmark['kind'] == 'official'):
        mce, relative = corruption_errors(report['summary']['corruptions'], clean['error'] if clean else None)
        report['summary'] |= {'mCE': mce, 'relative_mCE': relative}
    return report


def write(report: Report, folder: Path) -> None:
    """Write report.json, .csv, .md and the pictures, each whole or not at all."""
    write_text(folder / 'report.json', json.dumps(report, indent=1) + '\n')
    write_text(folder / 'report.csv', _csv(report))
    pictures = draw(report, folder)
    shown = '\n'.join(f'![{name.replace("-", " ")}]({name}.png)' for name in pictures)
    write_text(
        folder / 'report.md', f'# {title(report)}\n\n{_facts(report)}\n\n{markdown_table(_table(report))}\n\n{shown}\n'
    )


def draw(report: Report, folder: Path) -> list[str]:
    """Draw the pictures of a report into a folder, and return their names without .png."""
    pictures = figures.mollification(report) if _mollified(report) else figures.corruptions(report)
    for name, figure in pictures.items():
        width = int(16 * figure.get_figwidth())  # characters, of this size
        lines = textwrap.fill(title(report), width, break_on_hyphens=False)
        figure.suptitle(lines.replace('$', r'\$'), fontsize=7, color='#666666')
        figures.save(figure, folder / f'{name}.png')
    return list(pictures)


def read(path: Path) -> Report:
    """Read a report.json, or the one in a folder.

    Raises:
        ValueError: There is none, or it is not a report of this version.
    """
    path = path / 'report.json' if path.is_dir() else path
    try:
        report = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise ValueError(f'no such report: {path}') from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is not a report: {error}') from None
    if not isinstance(report, dict) or report.get('schema') != SCHEMA:
        raise ValueError(f'{path} is not a report of timm-molly validate')
    if report.get('version') != VERSION:
        raise ValueError(f'{path} has version {report.get("version")} of the schema; this timm-molly reads {VERSION}')
    missing = {'model', 'benchmark', 'data', 'clean', 'cells', 'not_finite'} - report.keys()
    if missing:
        raise ValueError(f'{path} is not a whole report: it lacks {", ".join(sorted(missing))}')
    return report


def check(report: Report, source: object) -> None:
    """Check that a report is whole, and that what can be computed from other figures in it is what it says.

    Error, confidence and ECE of a cell follow from its bins, and the rest of a report from its cells.

    Raises:
        ValueError: It is not, or is no whole report.
    """
    try:
        model, data, clean = report['model'], report['data'], report['clean']
        cells = {('clean', 0.0): clean} if clean else {}
        cells |= {(name, float(at)): cell for name, levels in report['cells'].items() for at, cell in levels.items()}
        for (name, _), cell in cells.items():
            _check_cell(name, cell)
        again = json.loads(json.dumps(build(model, report['benchmark'], data, cells, '')))
        different = [key for key in ('summary', 'not_finite', 'taught') if again.get(key) != report.get(key)]
        missing = [key for key in ('name', 'sha256', 'ema', 'mean', 'std', 'amp', *PREPARATION) if key not in model]
        missing += [key for key in ('dataset', 'split') if not isinstance(data[key], (str, type(None)))]
        if missing or not isinstance(report['packages'], dict) or not isinstance(report['command'], str):
            raise ValueError(', '.join(missing))
        text(report)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f'{source} is not a whole report: {type(error).__name__} {error}') from None
    if different:
        raise ValueError(f'{source} was edited: its {" and ".join(different)} do not follow from its cells')


def _check_cell(name: str, cell: Mapping[str, Any]) -> None:
    """Raise ValueError where the figures of a cell cannot be, or are not those of its bins."""
    if name not in ('clean', 'noise', 'blur', *COMMON, *HELD_OUT):
        raise ValueError(f'no such corruption: {name}')
    values = [cell[metric] for metric in METRICS]
    if cell['bins'] is None and values == [None] * len(values):
        return  # of a model whose logits were not finite
    images, correct, confidence = (np.array(cell['bins'][key], float) for key in BIN_KEYS)
    if not all(row.shape == (BINS,) and (row >= 0).all() for row in (images, correct, confidence)):
        raise ValueError(f'{name} has no {BINS} bins')
    total = images.sum()
    expected = {'error': 1 - correct.sum() / total, 'confidence': confidence.sum() / total}
    expected['ece'] = np.abs(correct - confidence).sum() / total
    for metric, value in expected.items():
        if not math.isclose(cell[metric], value, rel_tol=1e-6, abs_tol=1e-6):
            raise ValueError(f'{metric} of {name} is {cell[metric]}, but {value:.6f} by its bins')
    if total != cell['images'] or not (0 <= cell['nll'] < math.inf and 0 <= cell['brier'] <= 2):
        raise ValueError(f'figures of {name} that cannot be')


def text(report: Report) -> str:
    """The table for the terminal, with what it is about above it."""
    return f'{title(report)}\n{_facts(report)}\n\n{aligned(_table(report))}'


def markdown(report: Report) -> str:
    """The means of a report as a Markdown table: error, NLL, ECE and mean confidence, a row a corruption and group."""
    if _mollified(report):
        return markdown_table(_table(report))
    metrics = ('error', 'nll', 'ece', 'confidence')
    rows = [['', *(HEADINGS[metric] for metric in metrics)]]
    rows += [[name, *(_number(m, values[m]) for m in metrics)] for name, values in _summary_rows(report)]
    return markdown_table(rows)


def title(report: Report) -> str:
    """Name the model and what it was measured on."""
    return f'{label(report["model"])} on {subject(report)}'


def subject(report: Report) -> str:
    """Name what a model was measured on."""
    benchmark, data = report['benchmark'], report['data']
    images = f'{data["images"]} images' + (f' of {data["dataset"]}' if data['dataset'] else '')
    how = {
        'mollification': 'noised and blurred as in training',
        'on the fly': f'corrupted as {benchmark.get("table")}',
        'official': f'corrupted: {benchmark.get("name")}',
    }[benchmark['kind']]
    return f'{images}, {how}'


def label(model: Mapping[str, Any]) -> str:
    """Name a model for a table or a legend."""
    return f'{model["name"]} {model["checkpoint"]}' if model['checkpoint'] else str(model['name'])


def packages() -> dict[str, str]:
    """Versions of the packages that a figure could depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if 'timm' in sys.modules:  # which may be a checkout, beside train.py
        found['timm'] = sys.modules['timm'].__version__
    return found


def differences(a: Any, b: Any, prefix: str = '') -> list[str]:
    """Say where two nested records differ: 'benchmark.table: cifar-c, imagenet-c'."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = sorted({*a, *b})
        return [line for key in keys for line in differences(a.get(key), b.get(key), f'{prefix}{key}.')]
    return [] if a == b else [f'{prefix[:-1]}: {_short(a)}, {_short(b)}']


def compare_files(paths: Sequence[Path], output: Path) -> None:
    """Print reports side by side, and write table and picture: `timm-molly compare`.

    Raises:
        ValueError: Too few or too many reports, one that cannot be read, or reports of different things.
    """
    if not 2 <= len(paths) <= len(figures.REPORTS):
        raise ValueError(f'compare takes 2 to {len(figures.REPORTS)} reports, got {len(paths)}')
    reports = [read(path) for path in paths]
    names = [label(report['model']) for report in reports]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    table, picture = compare_table(reports, names), figures.comparison(reports, names)
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / 'compare.md', compare_table(reports, names, markdown=True) + '\n\n![comparison](compare.png)\n')
    figures.save(picture, output / 'compare.png')
    print(f'{table}\n\nwrote {output}/compare.md and compare.png')


def compare(reports: Sequence[Report], names: Sequence[str]) -> list[Row]:
    """Put reports side by side, with the difference of each to the first.

    Args:
        reports: Two or more, of the same benchmark.
        names: A heading for each.

    Returns:
        Rows of cells, the first being the heading.

    Raises:
        ValueError: They measured different things (which).
    """
    first = reports[0]
    for name, report in zip(names[1:], reports[1:], strict=True):
        different = differences(measured(first), measured(report))
        if different:
            raise ValueError(f'{names[0]} and {name} measured different things: {"; ".join(different)}')
    metrics = ('error', 'nll', 'ece')
    heading = ['']
    for metric in metrics:
        heading += [f'{HEADINGS[metric]} {name}' for name in names]
        heading += [f'{name} - {names[0]}' for name in names[1:]]
    rows = [heading]
    for row, values in zip(_summary_rows(first), zip(*map(_summary_rows, reports), strict=True), strict=True):
        line = [row[0]]
        for metric in metrics:
            numbers = [metric_values[metric] for _, metric_values in values]
            line += [_number(metric, n) for n in numbers]
            line += [
                '' if n is None or numbers[0] is None else _number(metric, n - numbers[0], sign=True)
                for n in numbers[1:]
            ]
        rows.append(line)
    for key in ('mCE', 'relative_mCE'):
        values = [report.get('summary', {}).get(key) for report in reports]
        if None not in values:
            line = [key.replace('_', ' ') + ' %', *(f'{100 * v:.1f}' for v in values)]
            line += [f'{100 * (v - values[0]):+.1f}' for v in values[1:]]
            rows.append(line + [''] * (len(heading) - len(line)))
    return rows


def compare_table(reports: Sequence[Report], names: Sequence[str], markdown: bool = False) -> str:
    """The rows of `compare` as text or Markdown, with letters for the names and a key to them."""
    letters = [chr(ord('A') + i) for i in range(len(reports))]
    rows = compare(reports, letters)
    key = '\n'.join(f'{letter}: {name}' for letter, name in zip(letters, names, strict=True))
    return f'{subject(reports[0])}\n\n{key}\n\n{markdown_table(rows) if markdown else aligned(rows)}'


def measured(report: Report) -> dict[str, Any]:
    """What two reports must share to be compared; names of folders and models may differ."""
    data = {key: report['data'][key] for key in ('images', 'num_classes', 'labels')}
    benchmark = {key: value for key, value in report['benchmark'].items() if key not in ('name', 'taught')}
    return {**benchmark, **data, 'clean': report['clean'] is not None}


def _mollified(report: Report) -> bool:
    return bool(report['benchmark']['kind'] == 'mollification')


def _summary_rows(report: Report) -> list[tuple[str, Mapping[str, Any]]]:
    rows = [('clean', report['clean'])] if report['clean'] else []
    if _mollified(report):
        return rows + [(f'{name} t={t}', cell) for name, cells in report['cells'].items() for t, cell in cells.items()]
    corruptions, groups = report['summary']['corruptions'], report['summary']['groups']
    for group, members in GROUPS.items():
        rows += [(name, corruptions[name]) for name in members if name in corruptions]
        rows += [(f'mean of {group}', groups[group])] if group in groups else []
    if groups:
        rows.append(('mean of all', report['summary']['mean']))
    return rows + [(f'{name} (held out)', corruptions[name]) for name in HELD_OUT if name in corruptions]


def _table(report: Report) -> list[Row]:
    if _mollified(report):
        return _mollification_table(report)
    severities = [str(s) for s in report['benchmark']['severities']]
    rows = [['', *(f'{"error % " if s == severities[0] else ""}at {s}' for s in severities), *HEADINGS.values()]]
    for name, metrics in _summary_rows(report):
        cells = report['cells'].get(name.removesuffix(' (held out)'))
        errors = [_number('error', cells[s]['error']) for s in severities] if cells else [''] * len(severities)
        rows.append([name, *errors, *(_number(metric, metrics[metric]) for metric in METRICS)])
    return rows


def _mollification_table(report: Report) -> list[Row]:
    names = list(report['cells'])
    columns = ['confidence', *['taught'] * bool(report['taught']), 'ECE']
    rows = [['t', *(heading for name in names for heading in (f'{name}: correct', *columns))]]

    def shown(cell: Mapping[str, Any], taught: float) -> Row:
        values = [_share(cell['error'], 1), _share(cell['confidence']), _share(taught), _share(cell['ece'])]
        return values if report['taught'] else values[:2] + values[3:]

    if report['clean']:
        rows.append(['0 (clean)', *shown(report['clean'], 1.0) * len(names)])
    for t in report['cells'][names[0]]:
        taught = {name: report['taught'][name][t] if report['taught'] else 1.0 for name in names}
        rows.append([t, *(text for name in names for text in shown(report['cells'][name][t], taught[name]))])
    return rows


def notes(report: Report) -> list[str]:
    """Lines on mCE, and on what went wrong."""
    lines = []
    summary = report.get('summary', {})
    if summary.get('mCE') is not None:
        line = f'mCE {100 * summary["mCE"]:.1f} %'
        if summary['relative_mCE'] is not None:
            line += f', relative mCE {100 * summary["relative_mCE"]:.1f} % (AlexNet: 100 %)'
        lines.append(line)
    if report['not_finite']:
        lines.append(
            f'NOT A NUMBER: the model gave logits that are not finite in {", ".join(report["not_finite"])}; '
            'means that these go into are left out'
        )
    return lines


def _facts(report: Report) -> str:
    """Lines under the title."""
    lines = notes(report)
    model = report['model']
    size = ' x '.join(str(side) for side in model['input_size'][1:])
    lines.append(
        f'{model["parameters"] / 1e6:.2f} M parameters, {model["num_classes"]} classes, input {size}, '
        f'crop {report["benchmark"].get("crop_pct", model["crop_pct"]):g}'
        + (f', trained with --aa {model["aa"]}' if model['aa'] else '')
    )
    return '\n'.join(lines)


def _csv(report: Report) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    level = 't' if _mollified(report) else 'severity'
    writer.writerow(['name', level, 'images', *METRICS])
    rows = [('clean', '0', report['clean'])] if report['clean'] else []
    rows += [(name, at, cell) for name, cells in report['cells'].items() for at, cell in cells.items()]
    for name, at, cell in rows:
        writer.writerow([name, at, cell['images'], *('' if cell[m] is None else repr(cell[m]) for m in METRICS)])
    return file.getvalue()


def _taught(config: MollyConfig, cells: Cells, num_classes: int) -> dict[str, dict[str, float]]:
    """The confidence of the label by degradation and t: 1 - gamma (K - 1) / K."""
    import torch

    schedules = {'noise': (noise_gamma, config.noise_power), 'blur': (blur_gamma, config.blur_power)}
    taught: dict[str, dict[str, float]] = {}
    for name, t in cells:
        if name in schedules:
            schedule, power = schedules[name]
            gamma = float(schedule(torch.tensor(t, dtype=torch.float64), power))
            taught.setdefault(name, {})[f'{t:g}'] = 1 - gamma * (num_classes - 1) / num_classes
    return taught


def aligned(rows: Sequence[Row]) -> str:
    """Rows of cells as text, the first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        '  '.join(
            f'{cell:<{w}}' if i == 0 else f'{cell:>{w}}' for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return '\n'.join(line.rstrip() for line in lines)


def markdown_table(rows: Sequence[Row]) -> str:
    """Rows of cells as a Markdown table, the first column to the left and the others to the right."""
    head, *body = rows
    lines = [head, ['---', *['---:'] * (len(head) - 1)], *body]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _number(metric: str, value: float | None, sign: bool = False) -> str:
    if value is None:
        return 'nan'
    plus = '+' if sign else ''
    return f'{100 * value:{plus}.1f}' if metric == 'error' else f'{value:{plus}.3f}'


def _share(value: float | None, of: float | None = None) -> str:
    return 'nan' if value is None else f'{value if of is None else of - value:.3f}'


def _name(name: str, level: float) -> str:
    return name if name == 'clean' else f'{name} {level:g}'


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
