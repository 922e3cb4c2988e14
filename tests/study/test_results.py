"""The studies in recipes/studies: their files belong together, and what is told of them is what was measured."""

import functools
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from timm_molly.robustness import Report
from timm_molly.study import results
from timm_molly.study.grid import read_grid

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / 'recipes' / 'studies'
FOLDERS = sorted(path.parent for path in STUDIES.glob('*/study.json'))
PAGES = [ROOT / 'README.md', ROOT / 'recipes' / 'results.md', STUDIES / 'claims.md']
each_study = pytest.mark.parametrize('folder', FOLDERS, ids=lambda folder: folder.name)


def read(folder):
    return json.loads((folder / 'study.json').read_text())


@each_study
def test_the_tables_are_those_of_the_runs(folder, tmp_path):
    study = read(folder)
    against = [path.stem.removeprefix('against-') for path in folder.glob('against-*.md')]
    names = [name for row in (None, *against) for name in results.write(study, tmp_path, row)]
    assert sorted(names) == sorted(path.name for path in folder.iterdir())
    for name in names:
        if not name.endswith('.png'):
            assert (tmp_path / name).read_text() == (folder / name).read_text()


@each_study
def test_the_runs_are_those_of_the_grid(folder):
    runs = read(folder)['runs']
    measured = {(run['row'], run['seed']) for run in runs}
    entries = [e for e in read_grid(folder.with_suffix('.yaml'), {}, {}).entries if (e.row, e.seed) in measured]
    assert [(run['recipe'], run['molly'], run['seed']) for run in runs] == [
        (e.recipe, e.molly, e.seed) for e in entries
    ]
    for key in ('train', 'validate', 'threads'):
        assert [run[key] for run in runs] == [getattr(entry, key) for entry in entries]
    assert read(folder)['notes'] == []
    assert {run['status'] for run in runs} == {'finished'}
    assert len({run['sha256'] for run in runs}) == len(runs)


def merge(*words):
    return subprocess.run([sys.executable, STUDIES / 'merge.py', *words], capture_output=True, text=True)


def test_runs_of_two_machines_are_those_of_one(tmp_path):
    whole = read(STUDIES / 'fashion_mnist')
    for i, folder in enumerate('ab'):
        (tmp_path / folder).mkdir()
        half = {**whole, 'runs': whole['runs'][i::2][::-1]}
        (tmp_path / folder / 'study.json').write_text(json.dumps(half))
    words = [STUDIES / 'fashion_mnist.yaml', tmp_path / 'b', '--output']
    assert merge(*words, tmp_path / 'a').returncode == 0
    for name in ('study.json', 'study.md'):
        assert (tmp_path / 'a' / name).read_text() == (STUDIES / 'fashion_mnist' / name).read_text()
    (tmp_path / 'b' / 'study.json').write_text(json.dumps({**whole, 'script': {'torch': '2.5.0'}}))
    assert 'not of the same train.py and packages' in merge(*words, tmp_path / 'a').stderr
    assert 'was not run as the grid says' in merge(STUDIES / 'fashion_mnist_tenth.yaml', *words[1:], tmp_path).stderr


def told(page):
    """Tables of a page whose first cell links to a study's folder: (folder, heads, lines of cells)."""
    for block in re.findall(r'^\| \[[^\n]*\n(?:\|[^\n]*\n)+', page.read_text(), re.MULTILINE):
        head, _, *lines = [[cell.strip() for cell in line.strip('|').split('|')] for line in block.splitlines()]
        if link := re.fullmatch(r'\[.+\]\((?:(?:recipes/)?studies/)?(\w+)/study\.md\)', head[0]):
            yield STUDIES / link[1], head[1:], lines


@functools.cache
def measured(folder):
    """Figures of a study by row, figure and seed."""
    found = {}
    for run in read(folder)['runs']:
        errors = {f'{name} error': each['error'] for name, each in run['corruptions'].items()}
        for name, value in (run['figures'] | errors).items():
            found.setdefault(run['row'], {}).setdefault(name.lower(), {})[run['seed']] = value
    return found


def expected(values, figure, sign, bold):
    """What a cell says of values over seeds."""
    scale, digits = (100, 1) if figure.endswith(' error') else (1, 3)
    said = f'{scale * np.mean(values):{sign}.{digits}f}'
    if len(values) > 1:
        said += f' ± {scale * scipy.stats.sem(values):.{digits}f}'
        if bold and scipy.stats.ttest_1samp(values, 0).pvalue < 0.05:
            said = f'**{said}**'
    return said


def between(figures, label, figure):
    """A figure of seed 0 at a clean error: on the straight line between the strengths to both sides of it."""
    row, clean = re.fullmatch(r'crop_flip\+molly(.*) at ([\d.]+) %', label).groups()
    strengths = ('', '-mxxnb-b4', '-b4', '-b9')
    rows = [
        'crop_flip',
        *(f'crop_flip+molly{s}{row}' if row == '-k100' else f'crop_flip+molly{row}{s}' for s in strengths),
    ]
    points = [(figures[each]['clean error'][0], figures[each][figure][0]) for each in rows if each in figures]
    at = float(clean) / 100
    x0, y0 = max(point for point in points if point[0] <= at)
    x1, y1 = min(point for point in points if point[0] >= at)
    return y0 + (y1 - y0) * (at - x0) / ((x1 - x0) or 1)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_figure_in_a_table_was_measured(page):
    tables = list(told(page))
    assert tables
    for folder, heads, lines in tables:
        figures = measured(folder)
        for label, *cells in lines:
            first, _, second = label.partition(' less ')
            for head, cell in zip(heads, cells, strict=True):
                figure = head.removesuffix(' %').lower()
                if ' at ' in label:
                    assert cell == expected([between(figures, label, figure)], figure, '', False), (label, head)
                    continue
                of = figures[first][figure]
                if second:
                    other = figures[second][figure]
                    of = {seed: value - other[seed] for seed, value in of.items() if seed in other}
                sign = '+' if second else ''
                assert cell == expected(list(of.values()), figure, sign, bool(second)), (label, head)


def test_empty_tables_are_filled():
    tell = runpy.run_path(str(STUDIES / 'tell.py'))
    for page in PAGES:
        text = page.read_text()
        empty = re.sub(r'^(\| [a-z][\w+ .%-]* \|)[ \d.|±+*-]+$', r'\1 |', text, flags=re.MULTILINE)
        assert empty != text
        assert tell['TABLE'].sub(lambda found: tell['fill'](found[0], found[1]), empty) == text


def test_labels_are_compared_at_one_clean_error_along_their_strengths():
    along = runpy.run_path(str(STUDIES / 'tell.py'))['along']

    def run(molly, clean, corrupted, seed=0, recipe='crop_flip'):
        row = f'{recipe}+{molly}' if molly else recipe
        figures = {'clean error': clean, 'corrupted error': corrupted}
        return {'row': row, 'recipe': recipe, 'molly': molly, 'seed': seed, 'figures': figures}

    curve = [
        run('molly', 0.2, 0.3),
        run(None, 0.1, 0.4),
        run('molly-b4-mxxnb', 0.12, 0.38),
        run('molly-b9', 0.15, 0.32),
    ]
    others = [
        run('molly-w', 0.14, 0.1),
        run('molly-k2', 0.16, 0.1),
        run('molly-mxn', 0.17, 0.1),
        run('molly', 0.18, 0, 1),
    ]
    study = {'runs': [*others, *curve, run('molly', 0.155, 0, recipe='augmix')]}

    def corrupted(name):
        return {key: value['mean'] for key, value in along(study, name).items()}.get('corrupted error')

    for each in curve:  # where a run is, the figures are its own
        at = 100 * each['figures']['clean error']
        assert corrupted(f'crop_flip+molly at {at:g} %') == pytest.approx(each['figures']['corrupted error'])
    assert corrupted('crop_flip+molly at 16 %') == pytest.approx(0.8 * 0.32 + 0.2 * 0.3)
    assert corrupted('crop_flip+molly-w at 12 %') == pytest.approx((0.4 + 0.1) / 2)  # the one without molly begins it
    assert corrupted('crop_flip+molly at 21 %') is corrupted('crop_flip+molly at 9 %') is None  # nothing is invented
    assert along(study, 'crop_flip+molly-k100 at 16 %') == {}


def test_the_figure_has_a_point_for_each_run_where_its_figures_are():
    script = runpy.run_path(str(STUDIES / 'figure.py'))
    studies = [read(STUDIES / name) for name in script['STUDIES']]
    panels = script['draw'](studies).axes
    for study, (errors, eces) in zip(studies, (panels[:2], panels[2:]), strict=True):
        of = [run['figures'] for run in study['runs'] if run['seed'] == 0 and run['recipe'] in script['MARKERS']]
        for panel, name, scale in ((errors, 'corrupted error', 100), (eces, 'corrupted ece', 1)):
            drawn = {(x, y) for each in panel.lines for x, y in each.get_xydata().tolist()}
            assert drawn == {(100 * run['clean error'], scale * run[name]) for run in of}


def test_published_networks_are_those_of_the_runs_that_their_list_names():
    page = (ROOT / 'hub_cards' / 'README.md').read_text()
    listed = re.findall(r'^\| \[(cifar_\w+\.\w+)\][^|]*\| `([^`]+)`, seed (\d)', page, re.MULTILINE)
    assert len(listed) == 3
    for name, row, seed in listed:
        report = Report.load(ROOT / 'hub_cards' / name)
        runs = read(STUDIES / name.rpartition('_')[2])['runs']
        run = next(run for run in runs if (run['row'], run['seed']) == (row, int(seed)))
        assert report.model.sha256 == run['sha256']
        assert results.numbers(report).items() >= run['figures'].items()


def test_the_network_that_was_trained_once_more_is_as_good_as_the_runs_of_its_row():
    found = results.numbers(Report.load(ROOT / 'hub_cards' / 'cifar_resnet20.molly_b9_k100_cifar10'))
    runs = [run['figures'] for run in read(STUDIES / 'cifar10')['runs'] if run['row'] == 'crop_flip+molly-b9-k100']
    assert len(runs) == 3
    for name in ('clean error', 'corrupted error', 'corrupted nll', 'C-bar error'):
        values = [run[name] for run in runs]
        assert found[name] == pytest.approx(np.mean(values), abs=2 * np.std(values, ddof=1))
