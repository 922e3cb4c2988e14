"""The `timm-molly` command."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from timm_molly import __version__
from timm_molly.robustness.flags import add_arguments, add_benchmark_arguments

COMMANDS = ('run', 'preview', 'demo', 'validate', 'fit', 'compare', 'study', 'push', 'card', 'models')


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0, 2 after a line on stderr where the user has to change something, 130 if interrupted."""
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        if args.command == 'run':
            _check_script(args.script)
        elif args.command == 'preview':
            from timm_molly.preview import preview

            preview(args.images, args.aa, args.output, args.img_size, args.num_classes)
            print(f'wrote {args.output}')
        elif args.command == 'validate':
            from timm_molly.robustness.validate import validate

            validate(args)
        elif args.command == 'fit':
            from timm_molly.robustness.fit import fit

            fit(args)
        elif args.command == 'compare':
            from timm_molly.robustness.report import compare_files

            compare_files(args.reports, args.output)
        elif args.command == 'study':
            from timm_molly.study.command import study

            return study(args)
        elif args.command == 'push':
            from timm_molly.hub.push import push

            push(args)
        elif args.command == 'card':
            from timm_molly.hub.make import make_again

            for folder in args.folders:
                print(f'{folder}: {", ".join(make_again(folder, args.overwrite_card)) or "nothing"} changed or removed')
        elif args.command == 'models':
            from timm_molly.hub.make import table

            print(table(args.folder))
        else:
            from timm_molly.demo import demo

            demo(args.data_dir, args.output, args.aa, args.img_size, args.epochs, args.seed)
        sys.stdout.flush()
    except BrokenPipeError:  # of `timm-molly models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left to be flushed
        return 141  # as a shell says of SIGPIPE
    except KeyboardInterrupt:
        if args.command not in ('validate', 'fit', 'study', 'push'):
            raise
        print('\ninterrupted; the same command goes on with what is left', file=sys.stderr)
        return 130
    except (ImportError, OSError, ValueError) as error:
        extra = 'plot' if args.command == 'compare' else 'robustness'
        hint = f': pip install "timm-molly[{extra}]"' if isinstance(error, ModuleNotFoundError) else ''
        print(f'timm-molly {args.command}: {error}{hint}', file=sys.stderr)
        return 2
    if args.command == 'run':  # outside the try: the script's errors are its own
        _run(args.script, args.arguments)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='timm-molly', description='Mollification for timm.')
    parser.add_argument('--version', action='version', version=f'timm-molly {__version__}')
    commands = parser.add_subparsers(dest='command', required=True)

    command = commands.add_parser(
        'run',
        help='run a train script with the plugin registered, where autoload is off',
        description='Run a train script with --aa molly available, as `python SCRIPT ARGUMENTS` does where PyTorch '
        'loads the plugin by itself. Under torchrun: torchrun ... -m timm_molly SCRIPT ARGUMENTS.',
    )
    command.add_argument('script', metavar='SCRIPT', help='such as train.py')
    command.add_argument('arguments', metavar='ARGUMENTS', nargs=argparse.REMAINDER, help='handed on as they are')

    command = commands.add_parser(
        'preview',
        help='draw what the network will see',
        description='Draw noise and blur at t = 0, 0.2 ... 1, with the confidence that the label keeps.',
    )
    command.add_argument('images', metavar='IMAGE', nargs='+', type=Path)
    command.add_argument('--aa', default='molly', help='as for train.py (default: %(default)s)')
    command.add_argument(
        '-o',
        '--output',
        metavar='FILE',
        type=Path,
        default=Path('preview.png'),
        help='picture to write, .png, .pdf or .svg (default: %(default)s)',
    )
    command.add_argument('--img-size', type=int, default=224, metavar='N', help='input size (default: %(default)s)')
    command.add_argument('--num-classes', type=int, default=1000, metavar='K', help='(default: %(default)s)')

    command = commands.add_parser(
        'demo',
        help='train a small model without and with molly, and compare',
        description='Train a small timm model twice at the same budget, without and with molly, on handwritten '
        'digits or on an image folder, and compare error, NLL and ECE on clean and degraded images.',
    )
    command.add_argument(
        '--data-dir',
        metavar='DIR',
        type=Path,
        help='image folder with train/ and val/ or validation/ (default: handwritten digits)',
    )
    command.add_argument(
        '--output',
        metavar='DIR',
        type=Path,
        default=Path('output/demo'),
        help='where results go (default: %(default)s)',
    )
    command.add_argument('--aa', default='molly', help='the second training (default: %(default)s)')
    command.add_argument('--img-size', type=int, default=32, metavar='N', help='input size (default: %(default)s)')
    command.add_argument('--epochs', type=int, default=10, metavar='N', help='(default: %(default)s)')
    command.add_argument('--seed', type=int, default=0, metavar='N', help='(default: %(default)s)')

    command = commands.add_parser(
        'validate',
        help='measure a model under common corruptions',
        description='Measure error, NLL, Brier score, ECE and mean confidence of any timm model, clean and under 15 '
        'common corruptions: on a published set (--corrupted-dir), or on any data set that timm reads, corrupted on '
        'the fly; or under noise and blur of mollification (--mollification). A run that was interrupted goes on '
        'where it stopped.',
    )
    add_arguments(command)
    add_benchmark_arguments(command)

    command = commands.add_parser(
        'fit',
        help='find the label powers for your data',
        description='Find the powers of the label schedule whose confidence is nearest to what a net still recognises '
        'at each t, on images that it was not trained on. The net is best trained with --aa molly-k1000.',
    )
    add_arguments(command)

    command = commands.add_parser(
        'compare',
        help='put reports side by side',
        description='Put two or more reports of timm-molly validate side by side, with differences to the first.',
    )
    command.add_argument('reports', metavar='REPORT', nargs='+', type=Path, help='report.json, or its folder')
    command.add_argument(
        '-o',
        '--output',
        metavar='DIR',
        type=Path,
        default=Path('output/compare'),
        help='where table and picture go (default: %(default)s)',
    )

    command = commands.add_parser(
        'study',
        help='train and measure a grid of recipes without and with molly',
        description="Train a grid of recipes x molly x seeds with timm's train.py, measure each with timm-molly "
        'validate, and write a table of means, standard errors and paired differences, a figure and JSON. What is '
        'finished is kept: the same command goes on after whatever stopped it.',
    )
    command.add_argument(
        'grid', metavar='GRID', type=Path, help='YAML file, such as recipes/studies/cifar10_paper.yaml'
    )
    command.add_argument(
        '--train-script', metavar='FILE', type=Path, help="timm's train.py (default: of TIMM_TRAIN_SCRIPT)"
    )
    command.add_argument('--data-dir', metavar='DIR', type=Path, help='images (default: of the grid)')
    command.add_argument('--corrupted-dir', metavar='DIR', type=Path, help='corrupted test images (default: likewise)')
    command.add_argument('--jobs', metavar='N', type=int, default=1, help='runs at once (default: %(default)s)')
    command.add_argument(
        '--against', metavar='ROW', help='show differences to this row (default: to the same recipe without molly)'
    )
    command.add_argument(
        '--only',
        metavar='ROW',
        nargs='+',
        action='extend',
        help='such as plain+molly, or plain+molly/0 for one seed',
    )
    command.add_argument(
        '-o', '--output', metavar='DIR', type=Path, help='(default: output/study/ and the name of the grid)'
    )

    command = commands.add_parser(
        'push',
        help='bring a trained model to the Hugging Face Hub',
        description="Write a folder with a run's weights, config, card and figures, and push it to the Hugging Face "
        "Hub in one commit. Plain timm loads it from there: timm.create_model('hf-hub:OWNER/NAME', pretrained=True).",
    )
    command.add_argument(
        'run',
        metavar='RUN',
        type=Path,
        help="folder of train.py's with args.yaml and model_best.pth.tar, a checkpoint, or a folder of --dry-run",
    )
    command.add_argument('--repo-id', metavar='OWNER/NAME', required=True, help='created if it is not there yet')
    command.add_argument('--model', '-m', metavar='NAME', help="timm's name, for a checkpoint that does not say it")
    command.add_argument('--no-ema', action='store_true', help='not the EMA weights, though there are some')
    command.add_argument(
        '--report', metavar='FILE', type=Path, help='report.json of timm-molly validate, or its folder'
    )
    command.add_argument('--license', metavar='NAME', help='of the weights, such as apache-2.0 (default: not said)')
    command.add_argument(
        '--dataset-id', metavar='ID', help="the training data's name on the Hub, for metadata (default: of hfds/ID)"
    )
    command.add_argument('--private', action='store_true', help='refuse where it would be public')
    command.add_argument('--revision', metavar='BRANCH', help='(default: main)')
    command.add_argument('--create-pr', action='store_true', help='open a pull request')
    command.add_argument('--token', help='(default: of `hf auth login`, or HF_TOKEN)')
    command.add_argument('--overwrite-card', action='store_true', help='also where it was edited by hand on the Hub')
    command.add_argument('--dry-run', action='store_true', help='write the folder and stop before the network')
    command.add_argument('-o', '--output', metavar='DIR', type=Path, help='for --dry-run (default: output/push/NAME)')

    command = commands.add_parser(
        'card',
        help='write the card of a pushed folder again',
        description='Write config, card, figures and evaluation results of folders for the Hub again, from their '
        'weights, args.yaml and report.json.',
    )
    command.add_argument(
        'folders', metavar='DIR', nargs='+', type=Path, help='as timm-molly push --dry-run writes them'
    )
    command.add_argument('--overwrite-card', action='store_true', help='also where it was edited by hand')

    command = commands.add_parser(
        'models',
        help='list published models with their figures',
        description='List the models in the folders of a folder, with error and calibration, clean and corrupted.',
    )
    command.add_argument('folder', metavar='DIR', nargs='?', type=Path, default=Path('hub_cards'), help='(%(default)s)')
    return parser


def _check_script(script: str) -> None:
    if not Path(script).is_file():
        raise ValueError(f'no such train script: {script}')


def _run(script: str, arguments: list[str]) -> None:
    """Run a script as `python SCRIPT` would, with the plugin registered."""
    from timm_molly import register

    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).resolve().parent))  # first, for a timm that is there beside the script
    register()
    runpy.run_path(script, run_name='__main__')
