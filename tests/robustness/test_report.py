import csv
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support import corruptions as C
from support.reports import cell, empty, made, mollified

import timm_molly
from timm_molly.cli import main
from timm_molly.errors import UserError
from timm_molly.robustness import Report, figures
from timm_molly.robustness.mce import ALEXNET
from timm_molly.robustness.report import METRICS, Scaled, Temperatures

CARDS = Path(__file__).parents[2] / 'hub_cards'


def test_mce_is_reported_for_imagenet_c_with_imagenets_classes_alone():
    cells = {(name, s): cell(0.8 * error) for name, error in ALEXNET.items() for s in C.SEVERITIES}
    kinds = [
        (
            {
                'kind': 'on the fly',
                'table': 'imagenet-c',
            },
            1000,
            True,
        ),
        (
            {
                'kind': 'official',
                'name': 'ImageNet-C',
            },
            1000,
            True,
        ),
        (
            {
                'kind': 'on the fly',
                'table': 'imagenet-c',
            },
            10,
            False,
        ),
        (
            {
                'kind': 'on the fly',
                'table': 'tiny-imagenet-c',
            },
            1000,
            False,
        ),
        ({'kind': 'on the fly', 'table': 'imagenet-c', 'severities': (1, 3)}, 1000, False),
    ]
    for benchmark, num_classes, there in kinds:
        report = made(benchmark, cells, num_classes)
        assert (report.mce is not None) == there
        assert ('mCE 80.0 %' in str(report)) == there
    with_clean = made(kinds[0][0], {('clean', 0): cell(0.3), **cells}, 1000)
    assert with_clean.relative_mce is not None
    assert 'relative mCE' in str(with_clean)


def test_the_table_shows_the_figures_of_the_cells():
    lines = {line.split('  ')[0]: line.split() for line in str(made()).splitlines()}
    figures = ['30.9', '0.618', '0.309', '0.077', '0.900', '0.062', '0.103', '0.052']
    assert lines['fog'][1:] == ['10.9', '20.9', '30.9', '40.9', '50.9', *figures]
    assert lines['clean'][1:] == ['5.0', '0.100', '0.050', '0.013', '0.900', '0.010', '0.017', '0.008']
    assert lines['mean of common'][3:5] == ['30.7', '0.614']


def test_what_labels_taught_counts_label_smoothing(tmp_path):
    report = mollified(taught='molly-b4', smoothing=0.2)
    assert report.taught['blur'] == pytest.approx({0: 0.82, 0.25: 0.64, 0.5: 0.46, 1: 0.1})
    assert report.to_dict()['benchmark']['smoothing'] == 0.2
    text = str(report)
    assert 'taught: the confidence of the labels of molly-b4 and label smoothing 0.2 at that t' in text
    assert re.search(r'0 \(clean\) +0\.950 +0\.900 +0\.820', text)
    assert 'if there was any' in str(mollified())
    assert 'if there was any' not in str(mollified(smoothing=0.0)) + text
    report.save(tmp_path)
    assert Report.load(tmp_path) == report
    timm_molly.compare([report, mollified()])  # which taught other labels, and measured the same
    with pytest.raises(UserError, match=r'label smoothing must be in \[0, 1\], got 1\.5'):
        mollified(smoothing=1.5).check()


def test_files_hold_every_cell_and_pictures_open(tmp_path):
    for name, report, pictures in (
        ('c', made(), ('error-by-severity', 'reliability', 'heat-map')),
        ('m', mollified(), ('confidence',)),
    ):
        folder = tmp_path / name
        folder.mkdir()
        report.save(folder)
        assert Report.load(folder) == report
        with open(folder / 'report.csv') as file:
            rows = list(csv.DictReader(file))
        cells = [(n, f'{at:g}', one) for (n, at), one in report.cells.items()]
        assert len(rows) == len(cells)
        for row, (n, at, one) in zip(rows, cells, strict=True):
            assert (row['name'], row['t' if name == 'm' else 'severity']) == (n, at)
            assert [float(row[metric]) for metric in METRICS] == [one[metric] for metric in METRICS]
        markdown = (folder / 'report.md').read_text()
        for picture in pictures:
            assert f']({picture}.png)' in markdown
            with Image.open(folder / f'{picture}.png') as image:
                assert image.width > 500
        assert {path.suffix for path in folder.iterdir()} == {'.json', '.csv', '.md', '.html', '.png'}


def test_one_severity_has_no_picture_by_severity_and_leaves_none_of_a_longer_report(tmp_path):
    made().save(tmp_path)
    (tmp_path / 'mine.png').write_bytes(b'')
    names = made(cells={(name, 3): cell(0.5) for name in C.COMMON}).save(tmp_path)
    assert names == ['reliability', 'heat-map']
    assert {path.stem for path in tmp_path.glob('*.png')} == {*names, 'mine'}


def test_cells_that_are_not_numbers_are_drawn_and_written_as_such(tmp_path):
    cells = {(name, s): empty() if name == 'fog' else cell(0.5) for name in C.COMMON for s in (1, 2)}
    report = made(cells=cells)
    report.save(tmp_path)
    assert report.not_finite == ['fog 1', 'fog 2']
    assert ',,,,,' in (tmp_path / 'report.csv').read_text()
    assert 'NOT A NUMBER' in (tmp_path / 'report.md').read_text()
    everything = made(cells=dict.fromkeys(cells, empty()))
    everything.save(tmp_path)


@pytest.mark.parametrize('make', [made, mollified])
def test_compare_shows_both_and_the_differences(make, tmp_path, capsys):
    first = make()
    cells = {
        place: one if place == ('clean', 0) else replace(one, error=one.error + 0.01)
        for place, one in first.cells.items()
    }
    second = replace(first, cells=cells, model=replace(first.model, name='other', checkpoint='run/best.pth'))
    for name, report in (('a', first), ('b', second)):
        (tmp_path / name).mkdir()
        report.save(tmp_path / name)
    assert main(['compare', str(tmp_path / 'a'), str(tmp_path / 'b' / 'report.json'), '-o', str(tmp_path / 'out')]) == 0
    text = capsys.readouterr().out
    assert 'A: test_resnet\nB: other run/best.pth\n' in text
    text, _, _ = text.partition('Ranking of the confidences:')
    lines = {line.split('  ')[0]: line.split() for line in text.splitlines()}
    if make is made:
        assert lines['fog'][1:] == ['30.9', '31.9', '+1.0', '0.618', '0.618', '+0.000', '0.077', '0.077', '+0.000']
        assert lines['mean of common'][3:6] == ['30.7', '31.7', '+1.0']
    else:
        assert lines['noise t=0.5'][2:5] == ['25.0', '26.0', '+1.0']
    assert (tmp_path / 'out' / 'compare.md').read_text().split('\n\n')[1] == 'A: test_resnet\nB: other run/best.pth'
    with Image.open(tmp_path / 'out' / 'compare.png') as image:
        assert image.width > 500


def test_compare_shows_the_ranking_and_what_temperatures_would_have_done():
    def with_temperature(clean, trained, gain):
        report = made()
        cells = {
            place: replace(
                one,
                aurc=one.error / 2 + gain,
                scaled={by: Scaled(one.nll / t, one.ece / t) for by, t in (('clean', clean), ('trained', trained))},
            )
            for place, one in report.cells.items()
        }
        return replace(report, cells=cells, temperatures=Temperatures(clean, trained, 'molly', 'val', 100))

    reports = with_temperature(2, 4, 0), with_temperature(1, 2, 0.125)
    shown = timm_molly.compare(reports, ['a', 'b'])
    lines = {row[0]: row for row in shown.ranking}
    fog = reports[0].corruptions['fog']
    assert lines[''][1:4] == ['AURC A', 'AURC B', 'B - A']
    expected = [fog.error / 2, fog.error / 2 + 0.125, 0.125]
    assert [float(cell) for cell in lines['fog'][1:4]] == pytest.approx(expected, abs=0.6e-3)
    after = {row[0]: row for row in shown.after('trained')}
    assert [float(cell) for cell in after['fog'][1:3]] == pytest.approx([fog.nll / 4, fog.nll / 2], abs=0.6e-3)
    assert 'Ranking of the confidences:' in str(shown)
    assert 'Ranking' not in shown.table
    assert 'After one temperature, fitted on held-out images (A: T=2.000, B: T=1.000):' in str(shown)
    assert 'clean, noised and blurred (A: T=4.000, B: T=2.000):' in str(shown)
    assert 'temperature' not in str(timm_molly.compare([reports[0], made()]))


@pytest.mark.parametrize(('images', 'p'), [(200, 0.3), (5000, 0.1)])
def test_differences_of_chance_are_as_large_as_it_makes_them(images, p):
    of = made(cells={('clean', 0): cell(p, images)})
    of = replace(of, data=replace(of.data, images=images))
    said = float(re.search(r'below ([\d.]+) points can be chance', str(timm_molly.compare([of, of])))[1])
    a, b = np.random.default_rng(0).binomial(images, p, (2, 100_000)) / images
    assert np.mean(100 * np.abs(a - b) < said) == pytest.approx(0.95, abs=0.01)


def test_one_severity_has_no_column_of_its_own():
    of = made(cells={('clean', 0): cell(0.05), ('fog', 3): cell(0.3)})
    assert 'at 3' not in str(of)
    assert 'error %' in str(of)


def test_compare_says_which_was_trained_with_molly():
    both = str(timm_molly.compare([made(name='a'), made(name='b', aa='molly-b4')]))
    assert '\nA: a\nB: b, trained with --aa molly-b4\n' in both


def test_compare_parts_no_metric_in_a_narrow_terminal(monkeypatch):
    monkeypatch.setattr('shutil.get_terminal_size', lambda: os.terminal_size((80, 24)))
    monkeypatch.setattr('sys.stdout.isatty', lambda: True, raising=False)
    text = timm_molly.compare([made(), made()], ['a', 'b']).table
    heads = [line for line in text.splitlines() if 'ECE A' in line]
    assert len(heads) == 1
    assert re.search('ECE A +ECE B +B - A', heads[0])
    assert max(map(len, text.partition('Another seed')[2].splitlines())) <= 80


def test_compare_takes_more_than_two(tmp_path, capsys):
    for name in 'abc':
        (tmp_path / name).mkdir()
        made().save(tmp_path / name)
    assert main(['compare', *(str(tmp_path / n) for n in 'abc'), '-o', str(tmp_path / 'out')]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == '100 images of digits/validation, corrupted on the fly as in cifar-c'
    assert lines[2:5] == [f'{letter}: {tmp_path / name}' for letter, name in zip('ABC', 'abc', strict=True)]
    heading = [f'{metric} {x}' for metric in ('error %', 'NLL', 'ECE') for x in ('A', 'B', 'C', 'B - A', 'C - A')]
    assert re.split(r'\s{2,}', lines[8].strip()) == [h[-5:] if '-' in h else h for h in heading]


def test_a_mean_of_a_part_says_so():
    names = ('gaussian_noise', *('snow', 'frost', 'fog', 'brightness'), 'lines')
    part = str(made(cells={(name, 1): cell(0.1) for name in names}))
    means = [re.split(r'\s{2,}', line)[0] for line in part.splitlines() if line.startswith('mean of')]
    assert means == ['mean of noise (1 of 3)', 'mean of weather', 'mean of common (5 of 15)', 'mean of C-bar (1 of 10)']
    assert ' of 15)' not in str(made())


@pytest.mark.parametrize(('folder', 'said'), [('corrupted', 'digits-corrupted'), ('CIFAR-10-C', 'CIFAR-10-C')])
def test_a_folder_of_corrupted_images_without_a_name_is_named_after_its_images(folder, said):
    found = made({'kind': 'official', 'name': folder, 'crop_pct': 1.0})
    assert f' on 100 images of digits/validation, corrupted: {said}\n' in str(found)


def renamed(labels):
    return {place: replace(one, labels=labels) for place, one in made().cells.items()}


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda r: replace(r, benchmark=replace(r.benchmark, table='imagenet-c')), 'table (A: cifar-c; B: imagenet-c)'),
        (lambda r: replace(r, benchmark=replace(r.benchmark, seed=2)), 'seed (A: 1; B: 2)'),
        (lambda r: replace(r, data=replace(r.data, num_classes=9)), 'num_classes (A: 10; B: 9)'),
        (
            lambda r: replace(r, data=replace(r.data, labels='xyz'), cells=renamed('xyz')),
            'alike: labels (other images, or in another order)\n',
        ),
        (lambda r: made(cells={p: c for p, c in r.cells.items() if p != ('clean', 0)}), 'clean (A: True; B: False)'),
        (
            lambda r: made(cells={p: c for p, c in r.cells.items() if p[1] in (0, 3)}),
            'alike: severities (A: 1, 2, 3, 4, 5; B: 3). Add --severities 3 to the command that measured A',
        ),
        (
            lambda r: made({'kind': 'official', 'name': 'c', 'crop_pct': 1.0}),
            'alike: kind (A: on the fly; B: official)\n',
        ),
    ],
)
def test_reports_of_different_things_are_not_compared(tmp_path, capsys, change, words):
    for name, report in (('a', made()), ('b', change(made()))):
        report.save(tmp_path / name, pictures=False)
    assert main(['compare', str(tmp_path / 'a'), str(tmp_path / 'b'), '-o', str(tmp_path / 'out')]) == 2
    error = capsys.readouterr().err
    assert 'measured different things' in error
    assert words in error
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('a', 'b', 'words'),
    [
        ((1, 3), (3,), 'Add --severities 3 to the command that measured A, which keeps its figures'),
        ((3,), (1, 2, 3), 'Add --severities 3 to the command that measured B, which keeps its figures'),
        ((1, 2, 3), (3, 2, 5), 'Add --severities 2 3 to the commands that measured A and B, which keep their figures'),
        ((1,), (3,), ''),  # nothing to keep
    ],
)
def test_a_comparison_of_other_severities_names_those_of_both(a, b, words):
    reports = [made(cells={(name, s): cell(0.5) for name in C.COMMON for s in of}) for of in (a, b)]
    with pytest.raises(UserError, match='measured different things') as error:
        timm_molly.compare(reports)
    assert str(error.value).endswith(f'). {words}' if words else ')')


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        (None, 'no such report'),
        ('{', 'is not JSON'),
        ('[1]', 'is not a report of timm-molly validate'),
        ('{"schema": "something"}', 'is not a report of timm-molly validate'),
        ('{"schema": "timm-molly/robustness", "version": 99}', 'has version 99 of the schema; this timm-molly reads 1'),
        ('{"schema": "timm-molly/robustness", "version": 1, "model": {}}', 'is not a whole report: model lacks name'),
    ],
)
def test_what_is_no_report_is_named(tmp_path, capsys, text, words):
    (tmp_path / 'good.json').write_text(json.dumps(made().to_dict()))
    if text is not None:
        (tmp_path / 'bad.json').write_text(text)
    assert main(['compare', str(tmp_path / 'good.json'), str(tmp_path / 'bad.json'), '-o', str(tmp_path)]) == 2
    assert words in capsys.readouterr().err
    assert main(['compare', str(tmp_path / 'good.json')]) == 2
    assert 'compare takes 2 to 6 reports, got 1' in capsys.readouterr().err


def test_another_file_in_place_of_the_report_is_named(tmp_path, capsys):
    made().save(tmp_path, pictures=False)
    assert main(['compare', str(tmp_path), str(tmp_path / 'report.csv')]) == 2
    said = f'{tmp_path / "report.csv"} is no report.json: give that file, or the folder that it is in'
    assert said in capsys.readouterr().err


def test_a_training_in_place_of_its_report_is_named(tmp_path, capsys):
    (tmp_path / 'args.yaml').write_text('model: resnet50')
    assert main(['compare', str(tmp_path), str(tmp_path)]) == 2
    assert (
        f'{tmp_path} is a training, not a report: measure it with timm-molly validate {tmp_path} --data-dir'
        in capsys.readouterr().err
    )
    (tmp_path / 'config.json').write_text('{}')  # of the Hub
    assert main(['compare', str(tmp_path), str(tmp_path)]) == 2
    assert f'no such report: {tmp_path / "report.json"}' in capsys.readouterr().err
    (tmp_path / 'plain').mkdir()
    assert main(['compare', str(tmp_path / 'plan'), str(tmp_path / 'plain')]) == 2
    assert f'no such report: {tmp_path / "plan"} (did you mean plain?)' in capsys.readouterr().err
    made().save(tmp_path, pictures=False)  # as a folder of the Hub may have both
    assert Report.load(tmp_path).cells == made().cells


def test_a_place_that_was_not_measured_is_named():
    report = made()
    said = {
        ('fogg', 3): ' (did you mean fog?)',
        ('fog', 9): ': fog was measured at 1, 2, 3, 4, 5',
        ('nothing like it', 3): '',
    }
    for place, near in said.items():
        with pytest.raises(KeyError) as error:
            report[place]
        assert error.value.args == (f'no figures of {place!r}{near}',)
    with pytest.raises(KeyError, match=r"no figures of 'fog': fog was measured at 1, 2"):
        report['fog']


def test_long_lists_are_told_apart_by_what_one_side_has():
    one, other = (made(cells={(name, 1): cell(0.1) for name in names}) for names in (C.COMMON[:9], C.COMMON[2:4]))
    only = ', '.join([*C.COMMON[:2], *C.COMMON[4:7]]) + ' and 2 more'
    with pytest.raises(ValueError, match=rf'corruptions \(only A: {only}; only B: none\)$'):
        timm_molly.compare([one, other])
    t = [round(0.1 * i, 1) for i in range(1, 9)]
    one, other = (
        made({'kind': 'mollification', 'roles': 'n', 'seed': 1}, {('noise', round(at + by, 1)): cell(0.1) for at in t})
        for by in (0.0, 0.1)
    )
    with pytest.raises(ValueError, match=r't \(only A: 0\.1; only B: 0\.9\)$'):
        timm_molly.compare([one, other])


def test_schedules_and_folder_names_do_not_keep_reports_apart(tmp_path, capsys):
    pairs = [(mollified(), mollified(taught='molly-k1000'))]
    kinds = [{'kind': 'official', 'name': name} for name in ('CIFAR-10-C', 'renamed')]
    pairs.append(tuple(made(kind) for kind in kinds))
    for pair in pairs:
        for name, report in zip('ab', pair, strict=True):
            (tmp_path / f'{name}.json').write_text(json.dumps(report.to_dict()))
        assert main(['compare', str(tmp_path / 'a.json'), str(tmp_path / 'b.json'), '-o', str(tmp_path / 'out')]) == 0
    refused = made(), mollified()
    for name, report in zip('ab', refused, strict=True):
        (tmp_path / f'{name}.json').write_text(json.dumps(report.to_dict()))
    assert main(['compare', str(tmp_path / 'a.json'), str(tmp_path / 'b.json'), '-o', str(tmp_path / 'out')]) == 2
    assert 'kind (A: on the fly; B: mollification)' in capsys.readouterr().err


def test_a_long_title_stays_in_its_picture(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, 'save_figure', lambda figure, path: drawn.append(figure))
    report = made()
    name = 'a-folder-of-images-with-a-name-of-fifty-two-characters'
    figures.save_all(replace(report, data=replace(report.data, dataset=name)), tmp_path)
    assert len(drawn) == 3
    for figure in drawn:
        figure.draw_without_rendering()
        box = figure.get_window_extent().bounds, figure._suptitle.get_window_extent().bounds
        assert box[1][0] >= 0
        assert box[1][0] + box[1][2] <= box[0][2]
        assert name in figure._suptitle.get_text().replace('\n', ' ')


def test_a_report_of_held_out_corruptions_alone_is_drawn(tmp_path):
    report = made(cells={(name, s): cell(0.1 * s) for name in C.HELD_OUT for s in C.SEVERITIES})
    report.save(tmp_path)
    assert report.groups == {}
    assert 'mean of common' not in str(report)
    assert 'spatter (held out)' in str(report)
    figures.comparison([report, report], ['a', 'b'])


def test_mce_is_not_reported_for_a_part_of_the_classes():
    cells = {(name, s): cell(0.5) for name in C.COMMON for s in C.SEVERITIES}
    report = made({'kind': 'official', 'name': 'ImageNet-C'}, cells, 1000)
    assert report.mce is not None
    part = replace(report, data=replace(report.data, class_map=True))
    assert part.mce is None
    assert 'mCE' not in part.to_dict()['summary']


figure = st.floats(0, 1)


@given(
    names=st.lists(st.sampled_from([*C.COMMON, *C.HELD_OUT]), min_size=1, max_size=4, unique=True),
    severities=st.lists(st.sampled_from(C.SEVERITIES), min_size=1, max_size=5, unique=True).map(sorted),
    clean=st.booleans(),
    data=st.data(),
)
def test_a_report_is_the_same_after_json(names, severities, clean, data):
    places = [('clean', 0)] * clean + [(name, s) for name in names for s in severities]
    cells = {place: cell(data.draw(figure), nll=data.draw(st.floats(0, 1e9))) for place in places}
    report = made(cells=cells)
    assert Report.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False))) == report


@pytest.mark.parametrize('path', sorted(CARDS.glob('*/report.json')), ids=lambda path: path.parent.name)
def test_reports_written_before_load_and_say_the_same(path):
    written = json.loads(path.read_text())
    again = Report.load(path).to_dict()
    assert again == written


def test_a_report_is_asked_by_name():
    report = made()
    assert report['fog', 3].error == pytest.approx(0.309)
    assert ('fog', 3) in report
    assert ('fog', 6) not in report
    assert next(iter(report)) == ('clean', 0)
    assert len(report) == 76
    assert report.clean.error == 0.05
    with pytest.raises(UserError, match='the clean images were not measured'):
        made(cells={('fog', 1): cell(0.1)}).clean  # noqa: B018


def test_compare_from_python_takes_reports():
    with pytest.raises(UserError, match='compare takes 2 to 6 reports, got 1'):
        timm_molly.compare([made()])
    with pytest.raises(UserError, match='a name for each of 2 reports, got 1'):
        timm_molly.compare([made(), made()], ['a'])
    assert 'A: a\nB: b' in str(timm_molly.compare([made(), made()], ['a', 'b']))
