"""`timm-molly demo`: train a small model without and with molly, and compare."""

from __future__ import annotations

import argparse
import itertools
import shlex
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_molly.errors import UserError, needs

if TYPE_CHECKING:
    from torch import nn

    from timm_molly.classifier import Classifier
    from timm_molly.robustness.report import Report

HELP = 'train a small model without and with molly, and compare'
DESCRIPTION = (
    'Train a small timm model twice at the same budget, without and with molly, on handwritten '
    'digits or on an image folder, and compare error, NLL and ECE on clean and degraded images.'
)

MODEL = 'test_resnet'
TEMPERATURES = (0.1, 0.2, 0.3, 0.4, 0.5)
# What both trainings have in common, by the names of train.py.
SETTINGS: dict[str, Any] = {
    'model': MODEL,
    'batch_size': 64,
    'opt': 'adamw',
    'lr': 2e-3,
    'weight_decay': 0.05,
    'scale': [0.7, 1.0],
    'mean': [0.5, 0.5, 0.5],
    'std': [0.5, 0.5, 0.5],
    'crop_pct': 1.0,
    'interpolation': 'bilinear',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        '--data-dir',
        metavar='DIR',
        type=Path,
        help='image folder with train/ and val/ or validation/ (default: handwritten digits)',
    )
    parser.add_argument(
        '--output',
        metavar='DIR',
        type=Path,
        default=Path('output/demo'),
        help='where results go (default: %(default)s)',
    )
    parser.add_argument('--aa', default='molly', help='the second training (default: %(default)s)')
    parser.add_argument('--img-size', type=int, default=32, metavar='N', help='input size (default: %(default)s)')
    parser.add_argument('--epochs', type=int, default=10, metavar='N', help='(default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='(default: %(default)s)')


def run(args: argparse.Namespace) -> None:
    """Run the command: first on images noised and blurred as in training, then under the common corruptions."""
    check(args)
    from timm_molly.classifier import Classifier
    from timm_molly.files import make_folder
    from timm_molly.plugin.register import register
    from timm_molly.preview import preview, save_figure
    from timm_molly.robustness.compare import compare
    from timm_molly.robustness.conditions import Mollification
    from timm_molly.robustness.evaluate import evaluate
    from timm_molly.robustness.figures import comparison
    from timm_molly.robustness.images import open_dataset

    register()
    output = make_folder(args.output)
    root = write_digits(output / 'digits', args.img_size) if args.data_dir is None else args.data_dir
    names = {'without molly': None, f'with {args.aa}': args.aa}
    loaders, images, num_classes = make_loaders(root, names, args)

    start = time.perf_counter()
    models = train_both(loaders, num_classes, args)
    parameters = sum(p.numel() for p in next(iter(models.values())).parameters())
    sizes = f'{len(next(iter(loaders.values())).dataset)} training and {len(images)} validation images'
    seconds = time.perf_counter() - start
    print(
        f'\n{MODEL}, {parameters / 1e6:.2f} M parameters, {num_classes} classes, {sizes} of {args.img_size} px, '
        f'{args.epochs} epochs, seed {args.seed}: {seconds:.0f} s\n'
    )
    folders = [output / name.replace(' ', '-') for name in names]
    for folder, model, aa in zip(folders, models.values(), names.values(), strict=True):
        save(model, folder, {**SETTINGS, **_settings(args, root), 'num_classes': num_classes, 'aa': aa})
    classifiers = [Classifier.from_run(folder) for folder in folders]
    taught = Mollification(args.aa, TEMPERATURES)
    opened = open_dataset('RGB', name='', root=str(root), split='validation')
    mollified = [evaluate(each, opened, taught, workers=0, progress=False) for each in classifiers]
    print(f'{compare(mollified, list(names)).table}\n')
    save_figure(comparison(mollified, list(names)), output / 'mollified.png')
    pictures = [Path(images.filename(i, absolute=True)) for i in (0, len(images) // 2)]
    mean, std = SETTINGS['mean'], SETTINGS['std']
    save_figure(preview(pictures, args.aa, args.img_size, num_classes, mean, std), output / 'preview.png')

    reports = [_measured(each, root, folder) for each, folder in zip(classifiers, folders, strict=True)]
    print(f'\n{compare(reports, list(names)).table}\n')
    save_figure(comparison(reports, list(names)), output / 'corrupted.png')
    second = shlex.quote(str(folders[1]))
    print(
        f'wrote mollified.png, preview.png, corrupted.png and a report for each model to {output}\n'
        f'share the second: timm-molly push {second} --report {second} --repo-id OWNER/NAME'
    )


def check(args: argparse.Namespace) -> None:
    """Check flags and packages before anything is made.

    Raises:
        UserError: One will not do (which).
    """
    try:
        import matplotlib  # noqa: F401
        import tqdm  # noqa: F401

        if args.data_dir is None:
            import sklearn  # noqa: F401

        from timm_molly.robustness import conditions, figures  # noqa: F401
    except ImportError as error:
        raise needs('the demo', 'demo', error) from None
    from timm_molly.robustness.corruptions.strengths import check_size, table_for

    conditions.Mollification(args.aa)
    if args.epochs < 1:
        raise UserError(f'epochs must be 1 or more, got {args.epochs}')
    check_size(args.img_size, table_for(args.img_size))


def make_loaders(
    root: Path, names: Mapping[str, str | None], args: argparse.Namespace
) -> tuple[dict[str, Any], Any, int]:
    """Make a training loader for each aa string, and return them by name, the validation set, and the classes.

    Everything is made before training, so that what cannot work says so at once.

    Raises:
        UserError: The folder has no such images, splits have different classes, or timm refuses an aa string.
    """
    from timm_molly.weights import some

    # A training set for each, because a loader gives its transform to its data set.
    sets = {name: _open_split(root, ('train',)) for name in names}
    train_set = next(iter(sets.values()))
    validation_set = _open_split(root, ('validation', 'val'))
    splits = {Path(each.reader.root).name: {*each.reader.class_to_idx} for each in (train_set, validation_set)}
    for (split, found), (other, wanted) in itertools.permutations(splits.items()):
        if wanted - found:
            raise UserError(f'{root}: {split}/ lacks the class {some(sorted(wanted - found))}, which {other}/ has')
    try:
        loaders = {name: _loader(sets[name], args, aa) for name, aa in names.items()}
    except AssertionError as error:  # timm's answer to a policy that it does not know
        raise UserError(f'timm refuses {args.aa!r}: {error}') from None
    return loaders, validation_set, len(train_set.reader.class_to_idx)


def train_both(loaders: Mapping[str, Any], num_classes: int, args: argparse.Namespace) -> dict[str, nn.Module]:
    """Train a model on each loader at the same budget, and show progress."""
    import torch

    from timm_molly.progress import bar

    models = {}
    steps = args.epochs * sum(len(loader) for loader in loaders.values())
    with bar(total=steps, unit='step') as progress:
        for name, loader in loaders.items():
            progress.set_description(f'train {name}')
            torch.manual_seed(args.seed)
            models[name] = train(loader, num_classes, args.epochs, progress.update)
    return models


def train(loader: Any, num_classes: int, epochs: int, step_done: Callable[[], Any]) -> nn.Module:
    """Train the model on a loader as train.py does: the loss is PyTorch's own and knows nothing of molly."""
    import timm
    import torch
    from timm.optim import create_optimizer_v2

    model: nn.Module = timm.create_model(MODEL, num_classes=num_classes)
    optimizer = create_optimizer_v2(model, SETTINGS['opt'], lr=SETTINGS['lr'], weight_decay=SETTINGS['weight_decay'])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, SETTINGS['lr'], epochs * len(loader), pct_start=0.1)
    criterion = torch.nn.CrossEntropyLoss()
    model.train()
    for _ in range(epochs):
        for x, target in loader:
            optimizer.zero_grad()
            criterion(model(x), target).backward()
            optimizer.step()
            schedule.step()
            step_done()
    return model


def save(model: nn.Module, folder: Path, settings: Mapping[str, Any]) -> None:
    """Save a model and its settings as `timm-molly push` takes them."""
    import yaml
    from safetensors.torch import save_file

    from timm_molly.files import make_folder, write_text
    from timm_molly.training import ARGS, WEIGHTS

    shutil.rmtree(folder, ignore_errors=True)  # a report of an earlier training
    make_folder(folder)
    save_file(model.state_dict(), folder / WEIGHTS)
    write_text(folder / ARGS, yaml.safe_dump(dict(settings)))


def write_digits(folder: Path, img_size: int) -> Path:
    """Write scikit-learn's handwritten digits as an image folder, every fourth for validation; return the folder."""
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = folder.with_name(f'{folder.name}-{img_size}px')
    data = load_digits()
    for i, (image, label) in enumerate(zip(data.images, data.target, strict=True)):
        path = folder / ('train' if i % 4 else 'validation') / str(label) / f'{i:04d}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = Image.fromarray((image * (255 / 16)).astype('uint8'))
        pixels.resize((img_size, img_size), Image.Resampling.BICUBIC).save(path)
    return folder


def _settings(args: argparse.Namespace, root: Path) -> dict[str, Any]:
    """What this training has of its own, by the names of train.py."""
    return {
        'data_dir': str(root),
        'train_split': 'train',
        'val_split': 'validation',
        'img_size': args.img_size,
        'epochs': args.epochs,
        'seed': args.seed,
        'hflip': _hflip(args),
    }


def _hflip(args: argparse.Namespace) -> float:
    return 0.0 if args.data_dir is None else 0.5  # a mirrored digit is no digit


def _measured(classifier: Classifier, root: Path, folder: Path) -> Report:
    """Measure a saved model as `timm-molly validate` does."""
    from timm_molly.robustness.measurement import Measurement

    measurement = Measurement(data_dir=str(root), workers=2, device='cpu')
    words = ['timm-molly', 'validate', '--checkpoint', str(folder), *measurement.words(), '-o', str(folder)]
    report = measurement.run(classifier, folder, shlex.join(words))
    report.save(folder)
    return report


def _open_split(root: Path, names: tuple[str, ...]) -> Any:
    from timm.data import create_dataset

    for name in names:
        if (root / name).is_dir():
            try:
                return create_dataset('', root=str(root), split=name)
            except RuntimeError as error:  # timm's word for "no images"
                raise UserError(str(error)) from None
    raise UserError(f'{root} has no folder {" or ".join(names)} with one folder of images a class')


def _loader(dataset: Any, args: argparse.Namespace, aa: str | None) -> Any:
    import torch
    from timm.data import create_loader

    return create_loader(
        dataset,
        input_size=(3, args.img_size, args.img_size),
        batch_size=min(SETTINGS['batch_size'], len(dataset)),
        is_training=True,
        auto_augment=aa,
        scale=SETTINGS['scale'],
        hflip=_hflip(args),
        interpolation=SETTINGS['interpolation'],
        crop_pct=SETTINGS['crop_pct'],
        mean=SETTINGS['mean'],
        std=SETTINGS['std'],
        num_workers=2,
        device=torch.device('cpu'),
    )
