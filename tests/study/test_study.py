"""Studies: what a grid says, going on after whatever stopped one, the statistics, and a study from end to end."""

import argparse
import dataclasses
import datetime
import errno
import hashlib
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support import warm
from support.killed_study import run_study
from support.recipes import PARSER, problems
from support.reports import cell, empty, made

from timm_molly.cli import main
from timm_molly.errors import UserError
from timm_molly.robustness.report import Scaled, Temperatures
from timm_molly.study import results, runner, script
from timm_molly.study import run as run_module
from timm_molly.study.grid import choose, read_grid
from timm_molly.study.measure import load, measurement

HERE = Path(__file__).parents[1] / 'support'
STUDIES = Path(__file__).parents[2] / 'recipes' / 'studies'
GRIDS = sorted(STUDIES.glob('*.yaml'))
SCRIPT = Path(os.environ.get('TIMM_TRAIN_SCRIPT') or HERE / 'train_script.py')
SMALL = {
    'train': {'epochs': 2, 'aa': 'rand-m9'},
    'recipes': {'plain': {'aa': None}, 'rand': None},
    'grid': [{'recipes': ['plain', 'rand'], 'molly': ['none', 'molly'], 'seeds': [0, 1]}],
}


def write(path, grid):
    path.write_text(yaml.safe_dump(grid))
    return path


def entries(tmp_path, **train):
    return read_grid(write(tmp_path / 'grid.yaml', {**SMALL, 'train': {'epochs': 2, **train}}), {}, {}).entries


# What a grid says


def test_a_grid_is_the_union_of_its_crosses_seed_by_seed(tmp_path):
    crosses = [*SMALL['grid'], {'recipes': 'plain', 'molly': ['molly-b4.0', 'molly'], 'seeds': 0}]
    found = read_grid(write(tmp_path / 'mine.yaml', {**SMALL, 'grid': crosses}), {}, {})
    rows = ['plain', 'plain+molly', 'rand', 'rand+molly']
    assert [str(e) for e in found.entries] == [f'{row}/{seed}' for seed in (0, 1) for row in rows] + [
        'plain+molly-b4/0'
    ]
    assert [e.train['aa'] for e in found.entries[:4]] == [None, 'molly', 'rand-m9', 'rand-m9+molly']
    assert [e.train['seed'] for e in found.entries] == [0] * 4 + [1] * 4 + [0]
    assert found.title == 'mine'


def test_recipes_molly_and_seeds_have_defaults(tmp_path):
    found = read_grid(write(tmp_path / 'grid.yaml', {**SMALL, 'grid': [{}]}), {}, {}).entries
    assert [str(e) for e in found] == ['plain/0', 'plain+molly/0', 'rand/0', 'rand+molly/0']


def test_base_config_and_flags_are_laid_one_over_the_other(tmp_path):
    (tmp_path / 'deep').mkdir()
    write(tmp_path / 'recipe.yaml', {'lr': 1, 'opt': 'sgd', 'epochs': 9, 'model': 'a'})
    base = {**SMALL, 'threads': 1, 'train': {'config': '../recipe.yaml', 'epochs': 5, 'lr': 2}, 'validate': {'seed': 3}}
    write(tmp_path / 'deep' / 'base.yaml', base)
    grid = {'base': 'deep/base.yaml', 'train': {'lr': 3}, 'recipes': {'rand': {'epochs': 7}}, 'title': 'T'}
    found = read_grid(write(tmp_path / 'grid.yaml', grid), {'model': 'b'}, {'data_dir': 'D', 'corrupted_dir': 'C'})
    plain, rand = found.entries[0], found.entries[2]
    assert plain.train == {'lr': 3, 'opt': 'sgd', 'epochs': 5, 'model': 'b', 'aa': None, 'seed': 0}
    assert rand.train['epochs'] == 7
    # The folder of images is for the measurement too, unless that has one of its own.
    assert (plain.validate, plain.threads, found.title) == ({'seed': 3, 'corrupted_dir': 'C'}, 1, 'T')
    grid = {**SMALL, 'validate': {'data_dir': 'mine'}}
    found = read_grid(write(tmp_path / 'grid.yaml', grid), {}, {'data_dir': 'D'})
    assert found.entries[0].validate == {'data_dir': 'D'}


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'recipe': {}}, "the grid has an unknown key 'recipe' (did you mean recipes?); it takes title"),
        ({'grid': [{'seed': [0]}]}, "unknown key 'seed' (did you mean seeds?)"),
        ({'validate': {'severity': [1]}}, "unknown key 'severity' (did you mean severities?)"),
        ({'validate': {'model': 'x'}}, "unknown key 'model'"),
        ({'train': {'seed': 1}}, 'has seed, which the study sets itself'),
        ({'recipes': {'a': {'output': 'x'}}}, 'recipe a has output'),
        ({'recipes': {'a+b': {}}}, "letters, digits, _, - and ., got 'a+b'"),
        ({'recipes': {'../a': {}}}, "got '../a'"),
        ({'recipes': {'a': {'aa': 'molly'}}, 'grid': [{}]}, 'molly belongs into the grid'),
        ({'recipes': {'a': {'aa': 3}}, 'grid': [{}]}, 'recipe a has aa: 3'),
        ({'recipes': []}, 'recipes must map names to flags'),
        ({'recipes': {'a': [1]}}, 'recipe a must hold flags by name'),
        ({'train': 'x'}, 'train must hold flags by name'),
        ({'grid': []}, 'grid must be a list'),
        ({'grid': ['plain']}, 'each of grid must have recipes, molly, seeds'),
        ({'grid': [{'recipes': ['x']}]}, "recipe 'x', which is none of plain, rand"),
        ({'grid': [{'seeds': []}]}, 'has no seeds'),
        ({'grid': [{'seeds': [True]}]}, 'got True'),
        ({'grid': [{'seeds': [-1]}]}, 'got -1'),
        ({'grid': [{'molly': ['mixup']}]}, "starts with 'molly'"),
        ({'grid': [{'molly': ['molly-q3']}]}, "unknown or malformed section 'q3'"),
        ({'threads': 0}, 'threads must be a number from 1 on, got 0'),
        ({'title': [1]}, 'title must be text'),
        ({'base': 'nowhere.yaml'}, 'nowhere.yaml: No such file'),
        ({'train': {'config': 'nowhere.yaml'}}, 'nowhere.yaml: No such file'),
        ({'zzzz': 1}, "unknown key 'zzzz'; it takes title"),
        ({'validate': {'mollification': True}}, "unknown key 'mollification'"),
        ({'recipes': {'a': {'epochs': '5'}}, 'grid': [{}]}, "recipe a has epochs: '5', not a number from 1 on"),
        ({'train': {'epochs': 1.5}}, 'has epochs: 1.5'),
        ({'train': {'lr': float('nan')}}, 'train has lr: nan'),
        ({'train': {'lr': datetime.date(2026, 1, 1)}}, 'not made of text, finite numbers'),
        ({'train': {'a': {1: 2}}}, 'not made of text, finite numbers'),
        ({'train': {'data_dir': 5}}, 'data_dir: 5, which must be text'),
        ({'validate': {'corrupted_dir': ['a']}}, "corrupted_dir: ['a'], which must be text"),
        ({'grid': [{'recipes': [['a']]}]}, "recipe ['a'], which is none of plain, rand"),
        ({'grid': [{'recipes': {'a': 'b'}}]}, "recipe {'a': 'b'}, which is none of"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(tmp_path, change, said):
    with pytest.raises(ValueError) as error:
        read_grid(write(tmp_path / 'grid.yaml', {**SMALL, **change}), {}, {})
    assert said in str(error.value)
    assert 'grid.yaml' in str(error.value) or 'nowhere.yaml' in str(error.value)


@pytest.mark.parametrize('text', ['', 'a: [', '- 1', '!!python/object/apply:os.system [false]', '\0'])
def test_what_is_no_grid_is_refused(tmp_path, text):
    (tmp_path / 'grid.yaml').write_text(text)
    with pytest.raises(ValueError, match=r'grid\.yaml (is not YAML|must hold settings)'):
        read_grid(tmp_path / 'grid.yaml', {}, {})


def test_rows_are_chosen_by_name(tmp_path):
    every = entries(tmp_path)
    assert [str(e) for e in choose(every, ['plain+molly', 'rand/1'])] == ['plain+molly/0', 'plain+molly/1', 'rand/1']
    with pytest.raises(ValueError, match="no row 'rand/2' in the grid; there are plain, plain"):
        choose(every, ['rand/2'])


@pytest.mark.parametrize('path', GRIDS, ids=lambda path: path.stem)
def test_train_py_knows_the_flags_of_our_grids(path):
    found = read_grid(path, {}, {}).entries
    assert found
    for entry in found:
        flags = {key: value for key, value in entry.train.items() if value is not None}
        assert not list(problems(f'{path.stem} {entry}', flags, PARSER))


def test_the_grid_of_the_tenth_is_the_other_but_for_images_and_epochs():
    whole, tenth = (read_grid(STUDIES / f'fashion_mnist{name}.yaml', {}, {}).entries for name in ('', '_tenth'))
    for a, b in zip(whole, tenth, strict=True):
        if 'molly-kn' in str(a):  # fitted to each
            continue
        assert (str(a), a.validate, a.threads) == (str(b), b.validate, b.threads)
        assert {**a.train, 'train_split': 'tenth', 'epochs': 10 * a.train['epochs']} == b.train


# Running it


ABOUT = {'timm': '1.2.3', 'sha256': 'abc'}


@pytest.fixture(scope='module')
def fake_report(tmp_path_factory):
    """A report for `fake_child.py` to fill in."""
    figures = made(cells={('clean', 0): cell(0.1), ('shot_noise', 1): cell(0.3), ('zoom_blur', 1): cell(0.2)})
    folder = tmp_path_factory.mktemp('report')
    figures.save(folder, pictures=False)
    return folder / 'report.json'


@pytest.fixture
def quick(monkeypatch, fake_report):
    monkeypatch.setattr(script, 'CHILD', [sys.executable, str(HERE / 'fake_child.py'), str(fake_report)])
    monkeypatch.setattr(run_module, 'POLL', 0.01)


def run(every, output, about=ABOUT):
    ended = runner.kept(every, output, about)
    ended |= runner.run_all([entry for entry in every if entry not in ended], output, SCRIPT, about)
    return {str(entry): ended[entry] for entry in every}


def table(every, output):
    ended = {entry: json.loads((output / str(entry) / 'result.json').read_text()) for entry in every}
    study = results.collect('T', ended, output, ABOUT)
    for each in study['runs']:
        each.pop('training_seconds', None)
    return study


def commands(output):
    return [line.split()[0] for path in sorted(output.rglob('commands')) for line in path.read_text().splitlines()]


@pytest.mark.usefixtures('quick')
def test_each_run_is_trained_and_measured_once(tmp_path):
    every = entries(tmp_path)
    found = run(every, tmp_path / 'out')
    assert list(found) == [str(entry) for entry in every]
    assert {result['status'] for result in found.values()} == {'finished'}
    assert commands(tmp_path / 'out') == ['train', 'measure'] * 8
    config = yaml.safe_load((tmp_path / 'out' / 'rand+molly' / '1' / 'config.yaml').read_text())
    assert config == {'epochs': 2, 'seed': 1, 'aa': 'molly'}
    before = table(every, tmp_path / 'out')
    assert run(every, tmp_path / 'out') == found
    assert commands(tmp_path / 'out') == ['train', 'measure'] * 8  # nothing was done again
    assert table(every, tmp_path / 'out') == before


@pytest.mark.usefixtures('quick')
def test_runs_without_figures_leave_the_others_alone(tmp_path, capsys):
    grid = dict(SMALL)
    mended = tmp_path / 'mended'
    grid['recipes'] = {
        'good': {},
        'nan': {'behave': 'nan'},
        'logits': {'behave': 'no logits'},
        'crash': {'behave': 'crash', 'mended': str(mended)},
        'killed': {'behave': 'killed'},
        'interrupted': {'behave': 'interrupted'},
        'weights': {'behave': 'weights'},
        'unreadable': {'behave': 'unreadable'},
    }
    grid['train'] = {'epochs': 2, 'val_interval': 10}  # of the epochs that are written down
    grid['grid'] = [{'molly': 'none'}]
    every = read_grid(write(tmp_path / 'grid.yaml', grid), {}, {}).entries
    found = run(every, tmp_path / 'out')
    assert {name: result['status'] for name, result in found.items()} == {
        'good/0': 'finished',
        'nan/0': 'diverged',
        'logits/0': 'diverged',
        'crash/0': 'failed',
        'killed/0': 'failed',
        'interrupted/0': 'finished',
        'weights/0': 'diverged',
        'unreadable/0': 'failed',
    }
    assert found['nan/0']['reason'] == 'the training loss became nan in epoch 10'
    assert found['logits/0']['reason'] == 'logits that are not finite in clean'
    assert found['crash/0']['reason'] == 'train.py ended with code 1: OSError: [Errno 28] No space left on device'
    assert found['killed/0']['reason'].startswith('train.py was ended by signal 9')
    assert found['unreadable/0']['reason'].endswith('no such folder or checkpoint')
    said = results.tables(table(every, tmp_path / 'out'), 'text')
    assert '- nan/0: diverged: the training loss became nan in epoch 10' in said
    told = capsys.readouterr().err
    assert 'crash/0: failed' in told
    assert f'to try it again, delete {tmp_path}/out/nan/0)' in told
    for name in ('crash', 'killed'):  # on a full disk the others need the space
        assert not (tmp_path / 'out' / name / '0' / 'train').exists()

    mended.touch()
    again = run(every, tmp_path / 'out')
    assert again['crash/0']['status'] == 'finished'  # tried again
    assert again['unreadable/0']['status'] == 'finished'
    assert commands(tmp_path / 'out' / 'unreadable') == ['train', 'measure'] * 2
    assert again['nan/0'] == found['nan/0']  # not tried again: it would diverge again
    assert commands(tmp_path / 'out' / 'nan') == ['train']
    assert commands(tmp_path / 'out' / 'good') == ['train', 'measure']


def alive(pid):
    try:
        state = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0]
    except OSError:
        return False
    return state != 'Z'


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='looks processes up in /proc')
@pytest.mark.usefixtures('quick')
def test_a_study_that_is_killed_at_any_time_goes_on_and_ends_the_same(tmp_path):
    every = entries(tmp_path, epoch_seconds=0.2)
    run(every, tmp_path / 'whole')
    moments = random.Random(0)
    kills = 0
    while True:
        begins = [warm.context.Event() for _ in range(2)]  # two processes, which share the runs
        arguments = tmp_path / 'grid.yaml', tmp_path / 'cut', SCRIPT, script.CHILD, ABOUT
        processes = [warm.context.Process(target=run_study, args=(*arguments, begun)) for begun in begins]
        for process in processes:
            process.start()
        for begun in begins:
            begun.wait()
        # Eight trainings of two epochs, two at once, take over 1.6 s: the first four kills come before their end.
        # Later ones come later and later, so that some start ends it on a machine of any speed.
        processes[0].join(moments.uniform(0.02, 0.15 if kills < 4 else kills / 4))
        if all(process.exitcode is not None for process in processes):
            break
        for process in processes:
            process.kill()
            process.join(moments.uniform(0, 0.3))  # the other goes on a little longer
        kills += 1
        pids = [int(line.split()[1]) for path in tmp_path.rglob('cut/*/*/commands') for line in path.open()]
        for _ in range(72_000):  # an hour: a hang, not slowness
            if not any(map(alive, pids)):
                break
            time.sleep(0.05)
        assert not any(map(alive, pids))  # its trainings end with it
    assert [process.exitcode for process in processes] == [0, 0]
    assert kills > 3
    assert table(every, tmp_path / 'cut') == table(every, tmp_path / 'whole')
    assert len(commands(tmp_path / 'cut')) > 16  # some were begun again


@pytest.mark.usefixtures('quick')
def test_a_full_disk_stops_the_study_and_leaves_it_whole(tmp_path, monkeypatch):
    every = entries(tmp_path)
    write, calls = Path.write_text, []

    def full(path, text, **options):
        calls.append(path)
        if len(calls) in (3, 22):
            write(path, text[:5], **options)
            raise OSError(errno.ENOSPC, 'No space left on device', str(path))
        return write(path, text, **options)

    monkeypatch.setattr(Path, 'write_text', full)
    for _ in range(2):
        with pytest.raises(UserError, match=r'cannot write .*: No space left'):
            run(every, tmp_path / 'out')
    assert not list((tmp_path / 'out').rglob('tmp*'))
    run(every, tmp_path / 'out')
    run(every, tmp_path / 'whole')
    assert table(every, tmp_path / 'out') == table(every, tmp_path / 'whole')


@pytest.mark.usefixtures('quick')
def test_images_that_moved_are_found_and_another_measurement_is_made_again(tmp_path, caplog):
    mended = tmp_path / 'mended'
    how = {'behave': 'crash', 'mended': str(mended)}
    assert run(entries(tmp_path, data_dir='/a/images', **how)[:1], tmp_path / 'out')['plain/0']['status'] == 'failed'
    mended.touch()
    every = entries(tmp_path, data_dir='/b/images', **how)[:1]
    assert run(every, tmp_path / 'out')['plain/0']['status'] == 'finished'
    config = yaml.safe_load((tmp_path / 'out' / 'plain' / '0' / 'config.yaml').read_text())
    assert config['data_dir'] == '/b/images'
    (tmp_path / 'out' / 'plain' / '0' / 'report' / 'old').touch()
    write(
        tmp_path / 'grid.yaml',
        {**SMALL, 'train': {'epochs': 2, 'data_dir': '/b/images', **how}, 'validate': {'seed': 7}},
    )
    again = read_grid(tmp_path / 'grid.yaml', {}, {}).entries[:1]
    assert run(again, tmp_path / 'out')['plain/0']['status'] == 'finished'
    assert commands(tmp_path / 'out') == ['train', 'train', 'measure', 'measure']  # trained no more
    assert not (tmp_path / 'out' / 'plain' / '0' / 'report' / 'old').exists()
    again[0].train['data_dir'] = '/c/images'
    with caplog.at_level('INFO', 'timm_molly'):
        run(again, tmp_path / 'out')
    assert caplog.messages.count('data_dir was /b/images and is /c/images: taken to be the same') == 1


@pytest.mark.usefixtures('quick')
def test_a_study_that_is_killed_before_it_measures_otherwise_does_not_keep_the_old_result(tmp_path):
    every = entries(tmp_path, behave='no logits')[:1]
    folder = tmp_path / 'out' / 'plain' / '0'
    assert run(every, tmp_path / 'out')['plain/0']['status'] == 'diverged'
    assert run_module.known(every[0], folder, ABOUT)['status'] == 'diverged'
    other = dataclasses.replace(every[0], validate={'severities': [1]})
    assert run_module.known(other, folder, ABOUT) is None
    run_module.claim(other, folder, ABOUT)
    assert run_module.known(other, folder, ABOUT) is None


@pytest.mark.usefixtures('quick')
def test_runs_on_different_images_are_told_from_the_others(tmp_path):
    every = read_grid(
        write(tmp_path / 'grid.yaml', {**SMALL, 'recipes': {'a': {}, 'b': {'behave': 'images'}}, 'grid': [{}]}), {}, {}
    ).entries
    run(every, tmp_path / 'out')
    study = table(every, tmp_path / 'out')
    assert study['notes'] == ['b/0, b+molly/0: not measured as a/0 was: labels: "abc", "other"']
    assert f'Not measured alike\n\n- {study["notes"][0]}' in results.tables(study, 'text')


@pytest.mark.usefixtures('quick')
def test_a_folder_of_another_training_is_refused(tmp_path):
    run(entries(tmp_path, data_dir='/a/images'), tmp_path / 'out')
    run(entries(tmp_path, data_dir='/b/images'), tmp_path / 'out')  # the same images elsewhere
    assert len(commands(tmp_path / 'out')) == 16
    with pytest.raises(ValueError, match=r'out/plain/0 holds another training \(train.epochs: 2, 3\): delete it'):
        run(entries(tmp_path, data_dir='/a/images', epochs=3), tmp_path / 'out')
    with pytest.raises(ValueError, match=r'script.timm: "1.2.3", "1.2.4"'):
        run(entries(tmp_path, data_dir='/a/images'), tmp_path / 'out', {**ABOUT, 'timm': '1.2.4'})
    (tmp_path / 'out' / 'plain' / '0' / 'settings.json').write_text('{')
    with pytest.raises(ValueError, match=r'settings.json is damaged'):
        run(entries(tmp_path), tmp_path / 'out')
    (tmp_path / 'out' / 'plain' / '0' / 'settings.json').unlink()
    with pytest.raises(ValueError, match=r'holds a training but not its settings.json'):
        run(entries(tmp_path), tmp_path / 'out')


@pytest.mark.usefixtures('quick')
@pytest.mark.parametrize('damage', ['', '{', '{"status": "finished"'])
def test_a_damaged_result_is_made_again(tmp_path, damage):
    every = entries(tmp_path)[:1]
    run(every, tmp_path / 'out')
    (tmp_path / 'out' / 'plain' / '0' / 'result.json').write_text(damage)
    assert run(every, tmp_path / 'out')['plain/0']['status'] == 'finished'
    assert commands(tmp_path / 'out') == ['train', 'measure', 'measure']


@pytest.mark.usefixtures('quick')
def test_a_last_loss_that_is_written_while_we_look_is_seen(tmp_path, monkeypatch):
    (entry, *_) = entries(tmp_path)
    folder = tmp_path / 'out' / 'plain' / '0'

    class Process(subprocess.Popen):
        def poll(self):
            self.wait()
            with (folder / 'train' / 'summary.csv').open('a') as file:
                file.write('2,nan\n')
            return super().poll()

    monkeypatch.setattr(run_module.subprocess, 'Popen', Process)
    assert run([entry], tmp_path / 'out')['plain/0']['status'] == 'diverged'


@pytest.mark.usefixtures('quick')
def test_a_run_that_dies_without_a_word_is_not_explained_by_an_earlier_one(tmp_path):
    mended = tmp_path / 'mended'
    (entry, *_) = entries(tmp_path, behave='crash', mended=str(mended))
    assert 'No space left' in run([entry], tmp_path / 'out')['plain/0']['reason']
    entry.train['behave'] = 'killed'
    settings = tmp_path / 'out' / 'plain' / '0' / 'settings.json'
    settings.write_text(json.dumps(run_module.settings(entry, ABOUT)))
    assert run([entry], tmp_path / 'out')['plain/0']['reason'].endswith('signal 9: nothing in its log')


@pytest.mark.parametrize('crop_pct', [None, 0.7])
@pytest.mark.parametrize('corrupted', [None, 'ImageNet-C'])
def test_the_measurement_sees_images_as_the_training_did(tmp_path, corrupted, crop_pct):
    trained = {
        'model': 'test_resnet',
        'num_classes': 7,
        'in_chans': 1,
        'model_kwargs': {'drop_rate': 0.25},
        'input_size': [1, 64, 48],
        'interpolation': 'bilinear',
        'mean': [0.25],
        'std': [0.5],
        'crop_pct': 0.8,
    }
    model = timm.create_model('test_resnet', in_chans=1, num_classes=7)
    averaged = {name: value + 1 for name, value in model.state_dict().items()}
    (tmp_path / 'train').mkdir()
    state = {'state_dict': model.state_dict(), 'state_dict_ema': averaged, 'args': argparse.Namespace(**trained)}
    torch.save(state, tmp_path / 'train' / 'last.pth.tar')
    train = {'val_split': 'val', 'data_dir': 'D', 'workers': 3, 'channels_last': True, 'amp': True, 'device': None}
    own = {'corrupted_dir': corrupted, 'severities': [1, 3], 'corruptions': 'fog', 'crop_pct': crop_pct}
    found = measurement(train, own)
    assert (found.data_dir, found.split, found.workers, found.channels_last, found.amp) == ('D', 'val', 3, True, False)
    assert (found.severities, found.corruptions, found.corrupted_dir) == ((1, 3), ('fog',), corrupted)
    assert found.crop_pct == crop_pct  # that of the training is not that of the corrupted images too
    classifier = load(tmp_path, own)
    assert classifier.data_config == {
        'input_size': (1, 64, 48),
        'interpolation': 'bilinear',
        'mean': (0.25,),
        'std': (0.5,),
        'crop_pct': crop_pct or 0.8,
        'crop_mode': 'center',
    }
    assert classifier.num_classes == 7
    assert classifier.model.drop_rate == 0.25
    assert torch.equal(classifier.model.state_dict()['fc.bias'], averaged['fc.bias'])


def test_the_figures_of_a_report_are_those_of_its_parts():
    after = {'clean': Scaled(0.75, 0.0625), 'trained': Scaled(0.5, 0.03125)}
    shot = cell(0.25, nll=1, ece=0.125, confidence=0.5, aurc=0.375, scaled=after)
    bar = cell(0.5, nll=2, ece=0.25, confidence=0.75, aurc=0.5, scaled=after)
    report = made(cells={('clean', 0): shot, ('shot_noise', 1): shot, ('cocentric_sine_waves', 1): bar})
    report = dataclasses.replace(report, temperatures=Temperatures(2.0, 3.0, 'molly', 'validation', 10))
    same = {'error': 0.25, 'nll': 1, 'ece': 0.125, 'aurc': 0.375, 'overconfidence': -0.25}
    scaled = {'nll after T': 0.75, 'ece after T': 0.0625, 'nll after trained T': 0.5, 'ece after trained T': 0.03125}
    other = {'error': 0.5, 'nll': 2, 'ece': 0.25, 'aurc': 0.5, 'overconfidence': 0.25}
    parts = {'clean': same, 'corrupted': same, 'noise': same, 'C-bar': other}
    assert results.numbers(report) == {
        f'{part} {name}': value for part, values in parts.items() for name, value in {**values, **scaled}.items()
    }
    assert results.numbers(made(cells={('shot_noise', 1): empty()})) == {}


# The command


@pytest.fixture
def study(tmp_path, image_folder, monkeypatch, quick):
    """The command on a grid of one row, with processes that do nothing in no time."""
    monkeypatch.chdir(tmp_path)
    grid = {**SMALL, 'train': {'epochs': 2, 'data_dir': str(image_folder)}}
    write(tmp_path / 'mine.yaml', grid)
    return lambda *words: main(['study', 'mine.yaml', '--train-script', str(SCRIPT), *words])


def test_the_command_writes_and_prints_a_table(study, tmp_path, capsys):
    assert study('--only', 'plain', '--only', 'plain+molly/0') == 0
    said = capsys.readouterr()
    assert 'plain+molly/0: clean error 5.0 %, NLL 0.150, ECE 0.017, corrupted error 12.5 %' in said.err
    out = tmp_path / 'output' / 'study' / 'mine'
    # seeds 0 and 1: 25 % and 25 * 8/7; their mean, and |difference| / 2 for the standard error of two
    assert 'plain            2  26.8 ± 1.8' in said.out
    short, corrupted, *_ = [' '.join(line.split()) for line in said.out.splitlines() if line.startswith('plain+molly ')]
    assert short == 'plain+molly 1 5.0 12.5 0.375 0.042 0.083'  # clean error first, AURC last
    assert corrupted == 'plain+molly 1 12.5 -12.5 0.375 -0.375 0.042 -0.042'
    assert 'rand' not in said.out
    assert {'study.json', 'study.md', 'study.png'} <= {path.name for path in out.iterdir()}
    assert study() == 0  # the rest
    capsys.readouterr()
    assert study('--against', 'rand+molly', '--only', 'plain') == 0
    said = capsys.readouterr().out
    assert '- rand+molly' in said
    line = next(line for line in said.splitlines() if line.startswith('plain '))
    assert line.split()[5] == '+13.4'  # 26.8 less 13.4
    assert (out / 'against-rand+molly.md').is_file()


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (['--jobs', '0'], 'jobs must be 1 or more, got 0'),
        (['--only', 'x'], "no row 'x' in the grid"),
        (['--against', 'x'], 'against x: the grid has no such row'),
        (['--against', 'plain/0'], 'against plain/0: the grid has no such row'),
        (['--data-dir', 'nowhere'], 'no such data folder: nowhere'),
        (['--data-dir', '.'], 'timm cannot open'),
        (['--corrupted-dir', 'nowhere'], 'no such folder: nowhere (--corrupted-dir)'),
        (['--train-script', 'nowhere.py'], 'no such train script: nowhere.py'),
    ],
)
def test_what_cannot_work_says_so_before_anything_is_trained(study, tmp_path, capsys, words, said):
    assert study(*words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / 'output').exists()


def test_without_a_train_script_it_says_how_to_get_the_one_that_fits(study, monkeypatch, capsys):
    monkeypatch.delenv('TIMM_TRAIN_SCRIPT', raising=False)
    monkeypatch.setattr('timm.version.__version__', '1.0.28')
    assert main(['study', 'mine.yaml']) == 2
    assert '--branch v1.0.28 https://github.com/huggingface/pytorch-image-models' in capsys.readouterr().err
    monkeypatch.setattr('timm.version.__version__', '1.0.32.dev0')
    assert main(['study', 'mine.yaml']) == 2
    assert '--branch main' in capsys.readouterr().err


def test_a_flag_that_train_py_would_pass_over_is_refused(tmp_path):
    every = entries(tmp_path, epochz=3)
    with pytest.raises(ValueError, match=r'recipe plain: train.py has no --epochz \(did you mean epochs\?\)'):
        script.check_flags(every, {'epochs', 'aa', 'seed'}, Path('train.py'))


def test_a_script_is_asked_for_flags_and_timm(quick, tmp_path):
    flags, about = script.ask(SCRIPT)
    assert flags == {'data_dir', 'model', 'aa', 'experiment', 'seed', 'epochs', 'behave'}
    assert (about['timm'], about['torch']) == ('1.2.3', version('torch'))
    assert about['sha256'] == hashlib.sha256(SCRIPT.read_bytes()).hexdigest()


@pytest.mark.usefixtures('quick')
def test_a_script_that_is_no_train_script_is_refused(tmp_path):
    (tmp_path / 'train.py').write_text('raise SystemExit("ImportError: no module named timm")')
    with pytest.raises(ValueError, match='is not a train script of timm that works here: ImportError: no module'):
        script.ask(tmp_path / 'train.py')


@pytest.mark.parametrize(
    ('flags', 'said'),
    [
        ({'severities': [7]}, 'validate: severities must be some of 1 to 5, got (7,)'),
        ({'corruptions': ['fogg']}, "validate: no corruption 'fogg'"),
        ({'batch_size': 'abc'}, "validate: batch_size must be a whole number, got 'abc'"),
        ({'corruptions': [3]}, 'validate: corruptions must be text, got 3'),
        ({'amp': 'yes'}, "validate: amp must be true or false, got 'yes'"),
        ({'mean': ['a']}, "validate: mean must be a finite number, got 'a'"),
        ({'num_classes': True}, 'validate: num_classes must be a whole number, got True'),
        ({'model_kwargs': 'x'}, "takes key=value, got 'x'"),
        ({'corrupted_dir': '.', 'table': 'cifar-c'}, 'leave --table'),
        ({'corrupted_dir': '.'}, '. lacks gaussian_noise'),
    ],
)
def test_flags_of_validate_are_checked_before_anything_is_trained(study, tmp_path, capsys, image_folder, flags, said):
    grid = yaml.safe_load((tmp_path / 'mine.yaml').read_text())
    write(tmp_path / 'mine.yaml', {**grid, 'validate': flags})
    assert study() == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / 'output').exists()


def test_a_row_changed_since_is_noticed_before_another_is_trained(study, tmp_path, capsys):
    assert study('--only', 'rand/0') == 0
    grid = yaml.safe_load((tmp_path / 'mine.yaml').read_text())
    grid['recipes']['rand'] = {'lr': 3}
    write(tmp_path / 'mine.yaml', grid)
    assert study('--only', 'plain/0') == 2
    assert 'rand/0 holds another training' in capsys.readouterr().err
    assert not (tmp_path / 'output' / 'study' / 'mine' / 'runs' / 'plain').exists()


def test_failed_runs_stay_in_the_table_and_no_figure_is_claimed_without_figures(study, tmp_path, capsys):
    grid = yaml.safe_load((tmp_path / 'mine.yaml').read_text())
    grid |= {'title': 'costs $x_$', 'recipes': {'good': {}, 'bad': {'behave': 'killed'}}}
    write(tmp_path / 'mine.yaml', {**grid, 'grid': [{'molly': 'none'}]})
    out = tmp_path / 'output' / 'study' / 'mine'
    assert study('--only', 'bad') == 1
    assert 'wrote study.json, study.md to' in capsys.readouterr().out
    assert not (out / 'study.png').exists()
    assert '.png' not in (out / 'study.md').read_text()
    assert study('--only', 'good') == 0
    assert (out / 'study.png').exists()
    assert 'bad/0: failed' in capsys.readouterr().out


# Statistics


figure_or_none = st.none() | st.floats(0, 1)


@given(st.lists(st.tuples(figure_or_none, figure_or_none), min_size=1, max_size=6))
def test_means_errors_and_paired_differences_follow_numpy(values):
    runs = []
    for seed, pair in enumerate(values):
        for molly, value in zip((None, 'molly'), pair, strict=True):
            run = {'row': 'a+molly' if molly else 'a', 'recipe': 'a', 'molly': molly, 'seed': seed}
            runs.append(run if value is None else {**run, 'figures': {'clean error': value}})
    row = next(row for row in results.rows({'runs': runs}) if row['molly'])
    own = np.array([b for _, b in values if b is not None])
    shared = [(a, b) for a, b in values if a is not None and b is not None]
    differences = np.array([b - a for a, b in shared])
    others = np.array([a for a, _ in shared])
    for key, expected in (('values', own), ('differences', differences), ('others', others)):
        found = row[key]
        if not len(expected):
            assert found == {}
            continue
        assert math.isclose(found['clean error']['mean'], expected.mean(), abs_tol=1e-12)
        if len(expected) == 1:
            assert found['clean error']['se'] is None
        else:
            se = expected.std(ddof=1) / np.sqrt(len(expected))
            assert math.isclose(found['clean error']['se'], se, abs_tol=1e-12)
    against = {row['name']: row['differences'] for row in results.rows({'runs': runs}, 'a+molly')}
    assert against['a+molly'] == {}
    if len(differences):
        assert math.isclose(against['a']['clean error']['mean'], -differences.mean(), abs_tol=1e-12)
    assert not any(row['differences'] for row in results.rows({'runs': runs}, 'a row without runs'))


def test_differences_over_fewer_seeds_say_so():
    figures = {f'clean {metric}': 0.5 for metric in ('error', 'nll', 'ece')}
    seeds = {'a': [1], 'a+molly': [0, 1, 2], 'b': [0, 1], 'b+molly': [0]}
    runs = [
        {'row': row, 'recipe': row[0], 'molly': row[2:] or None, 'seed': seed, 'status': 'finished', 'figures': figures}
        for row in seeds
        for seed in seeds[row]
    ]
    said = results.tables({'runs': runs, 'notes': []}, 'text')
    assert re.search(r'^a\+molly +3 +50.0 ± 0.0 +\+0.0 \(1 of 3 seeds\)', said, re.MULTILINE)
    assert re.search(r'^b\+molly +1 +50.0 +\+0.0 +0.5', said, re.MULTILINE)  # it has no other seed itself


# From end to end


@pytest.mark.train
def test_the_papers_grid_for_two_steps_and_the_same_again(tmp_path, image_folder, monkeypatch, capsys):
    grid = {
        'base': str(STUDIES / 'cifar10_paper.yaml'),
        'threads': 1,
        'train': {
            'dataset': '',
            'num_classes': 3,
            'model': 'test_resnet',
            'data_dir': str(image_folder),
            'img_size': 32,
            'batch_size': 24,
            'epochs': 1,
            'device': 'cpu',
            'workers': 1,
            'amp': False,
        },
        'validate': {'corruptions': ['gaussian_noise', 'contrast'], 'severities': [1, 5]},
    }
    write(tmp_path / 'grid.yaml', grid)
    monkeypatch.chdir(tmp_path)
    paths = [str(HERE), os.environ.get('PYTHONPATH')]
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(path for path in paths if path))
    command = ['study', 'grid.yaml', '--train-script', str(SCRIPT), '-o', 'out', '--only']
    rows = ['crop_flip/0', 'cutmix+molly/0']
    assert main([*command, *rows, '--jobs', '2']) == 0, capsys.readouterr().err
    runs = json.loads((tmp_path / 'out' / 'study.json').read_text())['runs']
    assert [run['status'] for run in runs] == ['finished'] * 2
    assert {'clean error', 'corrupted nll', 'noise ece', 'digital overconfidence'} <= runs[0]['figures'].keys()
    logs = [(tmp_path / 'out' / 'runs' / row / 'log.txt').read_text() for row in rows]
    assert 'Mollification' not in logs[0]
    assert re.search(r'Mollification is on: molly .*Stacks with: .*cutmix 1', logs[1])
    report = json.loads((tmp_path / 'out' / 'runs' / rows[1] / 'report' / 'report.json').read_text())
    assert report['command'].startswith('timm-molly validate --checkpoint out/runs/cutmix+molly/0/train/last.pth.tar ')
    contrast = report['summary']['corruptions']['contrast']
    assert runs[1]['corruptions']['contrast'] == {key: contrast[key] for key in ('error', 'nll', 'ece')}

    shutil.rmtree(tmp_path / 'out' / 'runs' / rows[1])
    monkeypatch.setattr('timm_molly.study.study.ask', lambda script: asked)
    settings = json.loads((tmp_path / 'out' / 'runs' / rows[0] / 'settings.json').read_text())
    asked = ({*settings['train'], 'cutmix'}, settings['script'])
    assert main([*command, rows[1]]) == 0, capsys.readouterr().err
    again = json.loads((tmp_path / 'out' / 'study.json').read_text())['runs']
    for run in (*runs, *again):
        del run['training_seconds']
    assert again == runs
