"""The flags of `timm-molly validate` and `timm-molly fit`, those of timm's validate.py by the same names."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from timm_molly.classifier import Classifier
    from timm_molly.robustness.measurement import Measurement

# Of how images are prepared, by the names of `classifier.Preparation`.
IMAGES = ('img_size', 'input_size', 'mean', 'std', 'crop_pct', 'crop_mode', 'interpolation')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name a model, data and a device, as timm's validate.py has them."""
    parser.add_argument('--data-dir', metavar='DIR', help='path to the data set of clean images')
    parser.add_argument('--dataset', metavar='NAME', default='', help='type/name as for timm (default: image folder)')
    parser.add_argument('--split', metavar='NAME', default='validation', help='(default: %(default)s)')
    parser.add_argument('--dataset-download', action='store_true', help='for torch/, tfds/ and hfds/ data sets')
    parser.add_argument('--class-map', metavar='FILE', default='', help='class to index mapping')
    parser.add_argument('--input-key', metavar='KEY', help='of the images, for hfds/ and wds/ data sets')
    parser.add_argument('--target-key', metavar='KEY', help='of the labels')
    parser.add_argument('--num-samples', metavar='N', type=int, help='of streamed data sets that do not say it')
    parser.add_argument('--model', '-m', metavar='NAME', help="timm's name, hf-hub:... or local-dir:...")
    parser.add_argument('--checkpoint', metavar='FILE', type=Path, help="train.py's or .safetensors; or its folder")
    parser.add_argument('--pretrained', action='store_true', help='pretrained weights (default without --checkpoint)')
    parser.add_argument('--use-ema', action='store_true', help="the checkpoint's EMA weights")
    parser.add_argument('--trust-pickle', action='store_true', help='load a checkpoint that runs code of its own')
    parser.add_argument('--model-kwargs', metavar='KEY=VALUE', nargs='*', default=[], help='as for train.py')
    parser.add_argument('--num-classes', metavar='K', type=int)
    parser.add_argument('--img-size', metavar='N', type=int, help='input side in pixels (default: of the training)')
    parser.add_argument('--input-size', metavar='N', nargs=3, type=int, help='such as 3 224 224')
    parser.add_argument('--crop-pct', metavar='F', type=float, help='(default: of the training; official sets 1.0)')
    parser.add_argument('--crop-mode', choices=('squash', 'border', 'center'))
    names = ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')
    parser.add_argument('--interpolation', choices=names, default='')
    parser.add_argument('--mean', metavar='F', nargs='+', type=float)
    parser.add_argument('--std', metavar='F', nargs='+', type=float)
    parser.add_argument('-b', '--batch-size', metavar='N', type=int, default=256, help='(default: %(default)s)')
    parser.add_argument('-j', '--workers', metavar='N', type=int, default=4, help='(default: %(default)s)')
    parser.add_argument('--device', default='', help='(default: cuda where there is one)')
    parser.add_argument('--channels-last', action='store_true', help='memory format, faster on some machines')
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument('--amp-dtype', default='float16', choices=('float16', 'bfloat16'))
    parser.add_argument('--seed', metavar='N', type=int, default=42, help='of the corruptions (default: %(default)s)')
    parser.add_argument('--aa', help="the training's, of which the label schedule is shown (default: the checkpoint's)")
    parser.add_argument('-o', '--output', metavar='DIR', type=Path, help='(default: a folder named after the model)')


def add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose what to measure."""
    parser.add_argument(
        '--corrupted-dir', metavar='DIR', type=Path, help='ImageNet-C, Tiny-ImageNet-C, CIFAR-C or C-bar'
    )
    parser.add_argument('--subset', choices=('robustbench',), help='its 5,000 validation images of ImageNet alone')
    parser.add_argument(
        '--table',
        choices=('imagenet-c', 'tiny-imagenet-c', 'cifar-c'),
        help='strengths on the fly (default: by image size)',
    )
    parser.add_argument(
        '--corruptions',
        metavar='NAME',
        nargs='+',
        default=['common'],
        help='names, or common, held-out, all (both), noise, blur, weather, digital, bar (C-bar) (default: common)',
    )
    parser.add_argument('--severities', metavar='N', nargs='+', type=int, choices=range(1, 6), default=range(1, 6))
    parser.add_argument(
        '--calibrate', metavar='SPLIT', help='held-out images to fit a temperature on: NLL and ECE after it, too'
    )
    parser.add_argument('--mollification', action='store_true', help='noise and blur of molly in place of corruptions')


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
    from timm_molly.classifier import Classifier, Preparation
    from timm_molly.errors import UserError
    from timm_molly.plain import keywords

    if args.checkpoint is not None and args.pretrained:
        raise UserError('--pretrained and --checkpoint both name weights; leave one out')
    if args.use_ema and args.checkpoint is None:
        raise UserError('--use-ema needs --checkpoint')
    preparation = cast(Preparation, {key: value for key, value in vars(args).items() if key in IMAGES})
    kwargs = keywords(args.model_kwargs)
    if args.checkpoint is not None:
        return Classifier.from_run(
            args.checkpoint, args.model, args.use_ema, args.num_classes, kwargs, args.trust_pickle, **preparation
        )
    if args.model is None:
        raise UserError('which model? Add --model')
    return Classifier.from_timm(args.model, True, args.num_classes, kwargs, args.trust_pickle, **preparation)


def default_output(args: argparse.Namespace, command: str) -> Path:
    """Name the folder of a run after its checkpoint or model."""
    from timm_molly.training import WEIGHTS

    name: str = args.model or ''
    if args.checkpoint is not None:
        path = args.checkpoint.resolve()
        # train.py's checkpoints have the same names in every training's folder.
        ours = path.name.endswith('.pth.tar') or path.name == WEIGHTS
        name = path.name if path.is_dir() else path.parent.name if ours else path.stem
    return Path('output') / command / name.replace('/', '_').replace(':', '_')
