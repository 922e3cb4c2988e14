import copy
import csv
import json
import re

import pytest
from PIL import Image
from support.reports import cell, made, mollified

from timm_molly.cli import main
from timm_molly.robustness import corruptions as C
from timm_molly.robustness import report as R
from timm_molly.robustness.metrics import ALEXNET, METRICS


def test_mce_is_reported_for_imagenet_c_with_imagenets_classes_alone():
    cells = {(name, s): cell(0.8 * error) for name, error in ALEXNET.items() for s in C.SEVERITIES}
    kinds = [
        ({'kind': 'on the fly', 'table': 'imagenet-c', 'severities': [1, 2, 3, 4, 5]}, 1000, True),
        ({'kind': 'official', 'name': 'ImageNet-C', 'severities': [1, 2, 3, 4, 5]}, 1000, True),
        ({'kind': 'on the fly', 'table': 'imagenet-c', 'severities': [1, 2, 3, 4, 5]}, 10, False),
        ({'kind': 'on the fly', 'table': 'tiny-imagenet-c', 'severities': [1, 2, 3, 4, 5]}, 1000, False),
        ({'kind': 'on the fly', 'table': 'imagenet-c', 'severities': [1, 3]}, 1000, False),
    ]
    for benchmark, num_classes, there in kinds:
        report = made(benchmark, cells, num_classes)
        assert (report['summary'].get('mCE') is not None) == there
        assert ('mCE 80.0 %' in R.text(report)) == there
    with_clean = made(kinds[0][0], {('clean', 0): cell(0.3), **cells}, 1000)
    assert with_clean['summary']['relative_mCE'] is not None
    assert 'relative mCE' in R.text(with_clean)


def test_the_table_shows_the_figures_of_the_cells():
    lines = {line.split('  ')[0]: line.split() for line in R.text(made()).splitlines()}
    assert lines['fog'][1:] == ['10.9', '20.9', '30.9', '40.9', '50.9', '30.9', '0.618', '0.309', '0.077', '0.900']
    assert lines['clean'][1:] == ['5.0', '0.100', '0.050', '0.013', '0.900']
    assert lines['mean of all'][3:5] == ['30.7', '0.614']


def test_files_hold_every_cell_and_pictures_open(tmp_path):
    for name, report, pictures in (
        ('c', made(), ('error-by-severity', 'reliability', 'heat-map')),
        ('m', mollified(), ('confidence',)),
    ):
        folder = tmp_path / name
        folder.mkdir()
        R.write(report, folder)
        assert R.read(folder) == json.loads(json.dumps(report))
        with open(folder / 'report.csv') as file:
            rows = list(csv.DictReader(file))
        cells = [('clean', '0', report['clean'])]
        cells += [(n, at, one) for n, levels in report['cells'].items() for at, one in levels.items()]
        assert len(rows) == len(cells)
        for row, (n, at, one) in zip(rows, cells, strict=True):
            assert (row['name'], row['t' if name == 'm' else 'severity']) == (n, at)
            assert [float(row[metric]) for metric in METRICS] == [one[metric] for metric in METRICS]
        markdown = (folder / 'report.md').read_text()
        for picture in pictures:
            assert f']({picture}.png)' in markdown
            with Image.open(folder / f'{picture}.png') as image:
                assert image.width > 500
        assert {path.suffix for path in folder.iterdir()} == {'.json', '.csv', '.md', '.png'}


def test_cells_that_are_not_numbers_are_drawn_and_written_as_such(tmp_path):
    empty = {'images': 100, 'not_finite': 3, **dict.fromkeys((*METRICS, 'bins'))}
    cells = {(name, s): empty if name == 'fog' else cell(0.5) for name in C.COMMON for s in (1, 2)}
    report = made(cells=cells)
    R.write(report, tmp_path)
    assert report['not_finite'] == ['fog 1', 'fog 2']
    assert ',,,,,' in (tmp_path / 'report.csv').read_text()
    assert 'NOT A NUMBER' in (tmp_path / 'report.md').read_text()
    everything = made(cells=dict.fromkeys(cells, empty))
    R.write(everything, tmp_path)


@pytest.mark.parametrize('make', [made, mollified])
def test_compare_shows_both_and_the_differences(make, tmp_path, capsys):
    first, second = make(), make()
    for one in second['cells'].values():
        for level in one.values():
            level['error'] += 0.01
    if 'summary' in second:
        for one in (*second['summary']['corruptions'].values(), second['summary']['mean']):
            one['error'] += 0.01
    second['model'] |= {'name': 'other', 'checkpoint': 'run/best.pth'}
    for name, report in (('a', first), ('b', second)):
        (tmp_path / name).mkdir()
        R.write(report, tmp_path / name)
    assert main(['compare', str(tmp_path / 'a'), str(tmp_path / 'b' / 'report.json'), '-o', str(tmp_path / 'out')]) == 0
    text = capsys.readouterr().out
    assert 'A: test_resnet\nB: other run/best.pth\n' in text
    lines = {line.split('  ')[0]: line.split() for line in text.splitlines()}
    if make is made:
        assert lines['fog'][1:] == ['30.9', '31.9', '+1.0', '0.618', '0.618', '+0.000', '0.077', '0.077', '+0.000']
        assert lines['mean of all'][3:6] == ['30.7', '31.7', '+1.0']
    else:
        assert lines['noise t=0.5'][2:5] == ['25.0', '26.0', '+1.0']
    assert (tmp_path / 'out' / 'compare.md').read_text().split('\n\n')[1] == 'A: test_resnet\nB: other run/best.pth'
    with Image.open(tmp_path / 'out' / 'compare.png') as image:
        assert image.width > 500


def test_compare_takes_more_than_two(tmp_path, capsys):
    for name in 'abc':
        (tmp_path / name).mkdir()
        R.write(made(), tmp_path / name)
    assert main(['compare', *(str(tmp_path / n) for n in 'abc'), '-o', str(tmp_path / 'out')]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == '100 images of digits, corrupted as cifar-c'
    assert lines[2:5] == [f'{letter}: {tmp_path / name}' for letter, name in zip('ABC', 'abc', strict=True)]
    heading = [f'{metric} {x}' for metric in ('error %', 'NLL', 'ECE') for x in ('A', 'B', 'C', 'B - A', 'C - A')]
    assert re.split(r'\s{2,}', lines[6].strip()) == [h[-5:] if '-' in h else h for h in heading]


@pytest.mark.parametrize(
    ('where', 'value', 'words'),
    [
        (('benchmark', 'table'), 'imagenet-c', 'table: "cifar-c", "imagenet-c"'),
        (('benchmark', 'seed'), 2, 'seed: 1, 2'),
        (('data', 'images'), 99, 'images: 100, 99'),
        (('data', 'labels'), 'xyz', 'labels: "abc", "xyz"'),
        (('clean',), None, 'clean: true, false'),
    ],
)
def test_reports_of_different_things_are_not_compared(tmp_path, capsys, where, value, words):
    first, second = made(), copy.deepcopy(made())
    inner = second
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    for name, report in (('a', first), ('b', second)):
        (tmp_path / f'{name}.json').write_text(json.dumps(report))
    assert main(['compare', str(tmp_path / 'a.json'), str(tmp_path / 'b.json'), '-o', str(tmp_path / 'out')]) == 2
    error = capsys.readouterr().err
    assert 'measured different things' in error
    assert words in error
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        (None, 'no such report'),
        ('{', 'is not a report'),
        ('[1]', 'is not a report of timm-molly validate'),
        ('{"schema": "something"}', 'is not a report of timm-molly validate'),
        ('{"schema": "timm-molly/robustness", "version": 99}', 'has version 99 of the schema; this timm-molly reads 1'),
        ('{"schema": "timm-molly/robustness", "version": 1, "model": {}}', 'is not a whole report: it lacks benchmark'),
    ],
)
def test_what_is_no_report_is_named(tmp_path, capsys, text, words):
    (tmp_path / 'good.json').write_text(json.dumps(made()))
    if text is not None:
        (tmp_path / 'bad.json').write_text(text)
    assert main(['compare', str(tmp_path / 'good.json'), str(tmp_path / 'bad.json'), '-o', str(tmp_path)]) == 2
    assert words in capsys.readouterr().err
    assert main(['compare', str(tmp_path / 'good.json')]) == 2
    assert 'compare takes 2 to 6 reports, got 1' in capsys.readouterr().err


def test_schedules_and_folder_names_do_not_keep_reports_apart(tmp_path, capsys):
    pairs = [(mollified(), mollified(taught='molly-k1000'))]
    kinds = [{'kind': 'official', 'name': name, 'severities': [1, 2, 3, 4, 5]} for name in ('CIFAR-10-C', 'renamed')]
    pairs.append(tuple(made(kind) for kind in kinds))
    for pair in pairs:
        for name, report in zip('ab', pair, strict=True):
            (tmp_path / f'{name}.json').write_text(json.dumps(report))
        assert main(['compare', str(tmp_path / 'a.json'), str(tmp_path / 'b.json'), '-o', str(tmp_path / 'out')]) == 0
    refused = made(), mollified()
    for name, report in zip('ab', refused, strict=True):
        (tmp_path / f'{name}.json').write_text(json.dumps(report))
    assert main(['compare', str(tmp_path / 'a.json'), str(tmp_path / 'b.json'), '-o', str(tmp_path / 'out')]) == 2
    assert 'kind: "on the fly", "mollification"' in capsys.readouterr().err


def test_a_long_title_stays_in_its_picture(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(R.figures, 'save', lambda figure, path: drawn.append(figure))
    report = made()
    report['data']['dataset'] = 'a-folder-of-images-with-a-name-of-fifty-two-characters'
    R.draw(report, tmp_path)
    assert len(drawn) == 3
    for figure in drawn:
        figure.draw_without_rendering()
        box = figure.get_window_extent().bounds, figure._suptitle.get_window_extent().bounds
        assert box[1][0] >= 0
        assert box[1][0] + box[1][2] <= box[0][2]
        assert report['data']['dataset'] in figure._suptitle.get_text().replace('\n', ' ')


def test_a_report_of_held_out_corruptions_alone_is_drawn(tmp_path):
    report = made(cells={(name, s): cell(0.1 * s) for name in C.HELD_OUT for s in C.SEVERITIES})
    R.write(report, tmp_path)
    assert report['summary']['groups'] == {}
    assert 'mean of all' not in R.text(report)
    assert 'spatter (held out)' in R.text(report)
    R.figures.comparison([report, report], ['a', 'b'])


def test_mce_is_not_reported_for_a_part_of_the_classes():
    cells = {(name, s): cell(0.5) for name in C.COMMON for s in C.SEVERITIES}
    benchmark = {'kind': 'official', 'name': 'ImageNet-C', 'severities': [1, 2, 3, 4, 5]}
    data = {'dataset': 'part', 'images': 10, 'num_classes': 1000, 'class_map': True, 'labels': 'x'}
    assert 'mCE' not in R.build(made()['model'], benchmark, data, cells, '')['summary']
