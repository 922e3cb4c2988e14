import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from timm_molly import __version__
from timm_molly.cli import COMMANDS, _parser, main
from timm_molly.errors import UserError


@pytest.fixture
def script(tmp_path):
    path = tmp_path / 'some_train.py'
    path.write_text(
        'import sys, timm.data, helper\n'
        'print(__name__, sys.argv[1:], hasattr(timm.data.create_loader, "_timm_molly"), helper.__name__)\n'
        'sys.exit(5)\n'
    )
    (tmp_path / 'helper.py').write_text('')
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    'start',
    [
        ('-m', 'timm_molly'),
        ('-m', 'timm_molly', 'run'),
        ('-c', 'from timm_molly.cli import main; main()', 'run'),
    ],
)
def test_a_script_runs_as_itself_with_its_own_arguments(python, script, start):
    arguments = ['--aa', 'molly', '-b', '8', '--help', '--version', 'run', '--', '-x']
    done = python(*start, script, *arguments, env={'TIMM_MOLLY_AUTOLOAD': '0'})
    assert done.stdout == f'__main__ {arguments} True helper\n'
    assert done.stderr == ''
    assert done.returncode == 5


def test_a_script_that_is_not_there(capsys):
    assert main(['run', 'no/train.py', '--aa', 'molly']) == 2
    assert capsys.readouterr().err == 'timm-molly run: no such train script: no/train.py\n'


@pytest.mark.slow
def test_an_error_in_the_script_is_the_scripts_own(python, tmp_path):
    script = tmp_path / 'train.py'
    script.write_text('raise ValueError("mine")')
    done = python('-m', 'timm_molly', script)
    assert done.stderr.splitlines()[-1] == 'ValueError: mine'
    assert 'Traceback' in done.stderr


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(['--version'])
    assert capsys.readouterr().out == f'timm-molly {__version__}\n'


def test_commands_are_listed_and_unknown_ones_refused(capsys):
    for arguments in (['--help'], ['valdate', '--help'], ['--debug']):
        with pytest.raises(SystemExit):
            main(arguments)
    text = ''.join(capsys.readouterr())
    assert all(name in text for name in COMMANDS)
    assert "no command 'valdate' (did you mean validate?); there are run, recipes" in text


def test_an_unknown_argument_is_told_which_may_be_meant(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(['validate', 'run', '--data-dir', 'x', '--severity=3', '--quickly'])
    assert stopped.value.code == 2
    text = capsys.readouterr().err
    assert "no argument '--severity=3 --quickly' is known (did you mean --severities?)" in text
    assert 'usage: timm-molly validate' in text


def test_severities_with_commas_are_told_how_to_be_written(capsys):
    for wrong in ('1,3', '6', 'x'):
        with pytest.raises(SystemExit):
            main(['validate', 'run', '--data-dir', 'x', '--severities', wrong])
        assert f"severities are 1 to 5, with spaces between them (1 3 5), got '{wrong}'" in capsys.readouterr().err


def test_without_arguments_it_names_three_commands_that_take_what_it_says(capsys):
    assert main([]) == 0
    lines = re.findall(r'^  timm-molly (.+?)  ', capsys.readouterr().out, re.MULTILINE)
    assert [line.split()[0] for line in lines] == ['preview', 'validate', 'push']
    parser = _parser({name: importlib.import_module(f'timm_molly.cli.{name}') for name in COMMANDS})
    for line in lines:
        assert parser.parse_args(line.split()).command == line.split()[0]


def test_a_shell_completes_commands_flags_and_files(tmp_path, capsys):
    with pytest.raises(SystemExit, match='0'):
        main(['--print-completion', 'bash'])
    (tmp_path / 'completion').write_text(capsys.readouterr().out)
    (tmp_path / 'photo.jpg').touch()
    script = 'source ./completion\nfor words in "val" "validate --cali" "preview ph"; do\n'
    script += 'COMP_WORDS=(timm-molly $words); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()\n'
    script += '_shtab_timm_molly; echo "${COMPREPLY[@]}"; done'
    done = subprocess.run(['bash', '-c', script], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ['validate', '--calibrate', 'photo.jpg']


def test_completion_says_which_package_it_lacks(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'shtab', None)
    with pytest.raises(SystemExit, match='2'):
        main(['--print-completion', 'zsh'])
    assert 'pip install "timm-molly[completion]"' in capsys.readouterr().err


def test_running_a_script_leaves_the_plugin_usable_in_process(script, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['before'])
    monkeypatch.setattr(sys, 'path', list(sys.path))
    with pytest.raises(SystemExit, match='5'):
        main(['run', str(script), 'a'])
    assert "['a'] True helper" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize('arguments', [[], ['--help'], ['models', str(Path(__file__).parents[2] / 'hub_cards')]])
def test_who_stops_reading_gets_no_error(arguments):
    """As `timm-molly models hub_cards | head -1`."""
    command = [sys.executable, '-c', 'import sys; from timm_molly.cli import main; sys.exit(main(sys.argv[1:]))']
    command += arguments
    # With a buffer, which is written at the end.
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONUNBUFFERED'}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()  # before anything is written
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141
    assert error == b''


def test_models_where_there_are_none_says_which_folder_is_wanted(tmp_path, capsys):
    assert main(['models', str(tmp_path)]) == 2
    assert f'{tmp_path} has no models, which are folders with a config.json' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize('name', ['a.txt', 'a.PNG', 'a.md'])
def test_compare_makes_no_folder_of_a_files_name(tmp_path, capsys, name):
    cards = Path(__file__).parents[2] / 'hub_cards'
    reports = [str(cards / f'cifar_resnet20.{each}_cifar10') for each in ('crop_flip', 'molly')]
    assert main(['compare', *reports, '-o', str(tmp_path / name)]) == 2
    assert 'must be a folder, or one page FILE.html' in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_compare_needs_the_extra_plot_alone(python, tmp_path):
    cards = Path(__file__).parents[2] / 'hub_cards'
    words = ['compare', cards / 'cifar_resnet20.crop_flip_cifar10', cards / 'cifar_resnet20.molly_cifar10', '-o']
    others = ['scipy', 'torchmetrics', 'cv2', 'imagecorruptions', 'sklearn']
    main = (
        'import sys; sys.modules.update(dict.fromkeys({})); '
        'from timm_molly.cli import main; sys.exit(main(sys.argv[1:]))'
    )
    assert python('-c', main.format(others), *words, tmp_path / 'out').returncode == 0
    done = python('-c', main.format([*others, 'matplotlib.figure']), *words, tmp_path / 'none')
    assert done.returncode == 2
    assert 'pip install "timm-molly[plot]"' in done.stderr
    assert not (tmp_path / 'none').exists()


def test_debug_shows_the_traceback_of_an_error_for_users(tmp_path, capsys):
    command = ['models', str(tmp_path)]
    assert main(command) == 2
    assert capsys.readouterr().err.startswith('timm-molly models: ')
    for arguments in (['--debug', *command], [*command, '--debug']):
        with pytest.raises(UserError, match='has no models'):
            main(arguments)


@pytest.mark.parametrize('error', [ValueError, OSError, ImportError, RuntimeError])
def test_any_other_error_is_a_bug_and_shows_its_traceback(tmp_path, monkeypatch, error):
    def broken(folder):
        raise error('a bug')

    monkeypatch.setattr('timm_molly.hub.make.table', broken)
    with pytest.raises(error, match='a bug'):
        main(['models', str(tmp_path)])
