"""The flags of `timm-molly validate` and `timm-molly fit`, those of timm's validate.py by the same names."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, cast

from timm_molly.errors import UserError

if TYPE_CHECKING:
    from timm_molly.classifier import Classifier
    from timm_molly.robustness.measurement import Measurement

# Of how images are prepared, by the names of `classifier.Preparation`.
IMAGES = ('img_size', 'input_size', 'mean', 'std', 'crop_pct', 'crop_mode', 'interpolation')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name a model and data, as timm's validate.py has them."""
    model = parser.add_argument_group('the model')
    model.add_argument('run', metavar='RUN', nargs='?', type=Path, help="a training's folder, or a checkpoint")
    model.add_argument('--checkpoint', metavar='FILE', type=Path, help="the same; train.py's or .safetensors")
    model.add_argument('--model', '-m', metavar='NAME', help="timm's name, hf-hub:... or local-dir:...")
    model.add_argument('--pretrained', action='store_true', help='pretrained weights (default without a checkpoint)')
    model.add_argument('--use-ema', action='store_true', help='EMA weights of --checkpoint (of RUN always, if any)')
    model.add_argument('--trust-pickle', action='store_true', help='load a checkpoint that runs code of its own')
    model.add_argument('--model-kwargs', metavar='KEY=VALUE', nargs='*', default=[], help='as for train.py')
    model.add_argument('--num-classes', metavar='K', type=int, help="(default: the checkpoint's)")
    model.add_argument('--aa', help="the training's, of which the label schedule is shown (default: the checkpoint's)")
    data = parser.add_argument_group('the images')
    data.add_argument('--data-dir', metavar='DIR', help='path to the data set of clean images')
    data.add_argument('--dataset', metavar='NAME', default='', help='type/name as for timm (default: image folder)')
    data.add_argument('--split', metavar='NAME', default='validation', help='(default: %(default)s)')
    data.add_argument('--dataset-download', action='store_true', help='for torch/, tfds/ and hfds/ data sets')
    data.add_argument('--class-map', metavar='FILE', default='', help='class to index mapping')
    data.add_argument('--input-key', metavar='KEY', help='of the images, for hfds/ and wds/ data sets')
    data.add_argument('--target-key', metavar='KEY', help='of the labels')
    data.add_argument('--num-samples', metavar='N', type=int, help='of streamed data sets that do not say it')
    ready = parser.add_argument_group('how they are prepared', 'By default as in the training.')
    ready.add_argument('--img-size', metavar='N', type=int, help='input side in pixels')
    ready.add_argument('--input-size', metavar='N', nargs=3, type=int, help='such as 3 224 224')
    ready.add_argument('--crop-pct', metavar='F', type=float, help='(official sets: 1.0)')
    ready.add_argument('--crop-mode', choices=('squash', 'border', 'center'))
    names = ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')
    ready.add_argument('--interpolation', choices=names, default='')
    ready.add_argument('--mean', metavar='F', nargs='+', type=float)
    ready.add_argument('--std', metavar='F', nargs='+', type=float)


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how it is run, as timm's validate.py has them, and where the result goes."""
    machine = parser.add_argument_group('the machine')
    machine.add_argument('-b', '--batch-size', metavar='N', type=int, default=256, help='(default: %(default)s)')
    machine.add_argument('-j', '--workers', metavar='N', type=int, default=4, help='(default: %(default)s)')
    machine.add_argument('--device', default='', help='(default: cuda where there is one)')
    machine.add_argument('--channels-last', action='store_true', help='memory format, faster on some machines')
    machine.add_argument('--amp', action='store_true', help='mixed precision')
    machine.add_argument('--amp-dtype', default='float16', choices=('float16', 'bfloat16'))
    machine.add_argument('--seed', metavar='N', type=int, default=42, help='of what is drawn (default: %(default)s)')
    machine.add_argument(
        '-o',
        '--output',
        metavar='DIR',
        type=Path,
        help='(default: output/validate/NAME, for fit output/fit/NAME; NAME is that of RUN or model)',
    )


def add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose what to measure."""
    group = parser.add_argument_group('what is measured')
    group.add_argument(
        '--corrupted-dir', metavar='DIR', type=Path, help='ImageNet-C, Tiny-ImageNet-C, CIFAR-C or C-bar'
    )
    group.add_argument('--subset', choices=('robustbench',), help='its 5,000 validation images of ImageNet alone')
    group.add_argument(
        '--table',
        choices=('imagenet-c', 'tiny-imagenet-c', 'cifar-c'),
        help='strengths on the fly (default: by image size)',
    )
    group.add_argument(
        '--corruptions',
        metavar='NAME',
        nargs='+',
        default=['common'],
        help='names, or common, held-out, all (both), noise, blur, weather, digital, bar (C-bar) (default: common)',
    )
    group.add_argument(
        '--severities',
        metavar='N',
        nargs='+',
        type=_severity,
        default=range(1, 6),
        help='(default: 1 2 3 4 5)',
    )
    group.add_argument(
        '--calibrate',
        metavar='SPLIT',
        help='held-out images to fit a temperature on: NLL and ECE after it, too, from the first measurement on',
    )
    group.add_argument('--mollification', action='store_true', help='noise and blur of molly in place of corruptions')


def _severity(text: str) -> int:
    if text not in {'1', '2', '3', '4', '5'}:
        raise argparse.ArgumentTypeError(f'severities are 1 to 5, with spaces between them (1 3 5), got {text!r}')
    return int(text)


def measurement(args: argparse.Namespace) -> Measurement:
    """What is measured, by the flags."""
    from timm_molly.robustness.measurement import Measurement

    names = {field.name for field in dataclasses.fields(Measurement)}
    values = {name: value for name, value in vars(args).items() if name in names and value is not None}
    values |= {name: tuple(values[name]) for name in ('corruptions', 'severities') if name in values}
    return Measurement(**values)


def classifier(args: argparse.Namespace) -> Classifier:
    """Load the model that the flags name.

    Raises:
        UserError: The name, the flags or the checkpoint will not do.
    """
    import timm

    from timm_molly.classifier import Classifier, Preparation
    from timm_molly.plain import keywords

    checkpoint = checkpoint_of(args)
    if checkpoint is not None and not checkpoint.exists() and timm.is_model(str(checkpoint)):
        raise UserError(f'no such folder or checkpoint: {checkpoint}. For the model of timm give --model {checkpoint}')
    if checkpoint is not None and args.pretrained:
        raise UserError('--pretrained and a checkpoint both name weights; leave one out')
    if args.use_ema and checkpoint is None:
        raise UserError('--use-ema needs a checkpoint')
    preparation = cast(Preparation, {key: value for key, value in vars(args).items() if key in IMAGES})
    kwargs = keywords(args.model_kwargs)
    # --checkpoint as in timm's validate.py, a training as `load` and `push` take it.
    use_ema = args.use_ema or (False if args.run is None else None)
    if checkpoint is not None:
        return Classifier.from_run(
            checkpoint, args.model, use_ema, args.num_classes, kwargs, args.trust_pickle, **preparation
        )
    if args.model is None:
        raise UserError("which model? Name a training's folder, or add --model")
    return Classifier.from_timm(args.model, True, args.num_classes, kwargs, args.trust_pickle, **preparation)


def checkpoint_of(args: argparse.Namespace) -> Path | None:
    """The training or checkpoint that the flags name.

    Raises:
        UserError: They name two.
    """
    if args.run is not None and args.checkpoint is not None:
        raise UserError(f'{args.run} and --checkpoint {args.checkpoint} both name weights; leave one out')
    found: Path | None = args.checkpoint if args.run is None else args.run
    return found


def default_output(args: argparse.Namespace, command: str) -> Path:
    """Name the folder of a run after its checkpoint or model."""
    from timm_molly.training import WEIGHTS

    name: str = args.model or ''
    if (checkpoint := checkpoint_of(args)) is not None:
        path = checkpoint.resolve()
        # train.py's checkpoints have the same names in every training's folder.
        ours = path.name.endswith('.pth.tar') or path.name == WEIGHTS
        name = path.name if path.is_dir() else path.parent.name if ours else path.stem
    return Path('output') / command / name.replace('/', '_').replace(':', '_')
