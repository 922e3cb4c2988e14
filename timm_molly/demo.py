"""The `timm-molly demo`: one small model trained without and with molly, and what each knows of damaged images."""

from __future__ import annotations

import argparse
import itertools
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from timm_molly.config import split_aa
from timm_molly.functional import blur, noise
from timm_molly.weights import some

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPERATURES = (0.1, 0.2, 0.3, 0.4, 0.5)
METRICS = ('error', 'NLL', 'ECE')
MODEL = 'test_resnet'
MEAN = STD = (0.5, 0.5, 0.5)

# What both trainings have in common, by the names of train.py.
SETTINGS: dict[str, Any] = {
    'model': MODEL,
    'batch_size': 64,
    'opt': 'adamw',
    'lr': 2e-3,
    'weight_decay': 0.05,
    'scale': [0.7, 1.0],
    'mean': list(MEAN),
    'std': list(STD),
    'crop_pct': 1.0,
    'interpolation': 'bilinear',
}

# Metrics by name of the training and of the condition: 'clean', 'noise 0.1' ... 'blur 0.5'.
Results = dict[str, dict[str, dict[str, float]]]


def demo(data_dir: Path | None, output: Path, aa: str, img_size: int, epochs: int, seed: int) -> None:
    """Train `test_resnet` without and with `aa` at the same budget, and compare the two.

    First on images noised and blurred as in training, then, by `timm-molly validate`, under the common corruptions.

    Args:
        data_dir: Image folder with train/ and val/ or validation/, one folder a class; None for scikit-learn's
            handwritten digits.
        output: Folder for the digits, the weights, the plots, the preview and the reports.
        aa: The aa string of the second training.
        img_size: Input size in pixels.
        epochs: Passes over the training images.
        seed: Seed of both trainings.

    Raises:
        ValueError: `aa` has no molly or a malformed one, the folder is not as above, or a number is out of range.
        ImportError: A package of the `demo` extra is missing.
    """
    from timm_molly import preview, register

    try:
        import matplotlib  # noqa: F401
        import sklearn  # noqa: F401
        import tqdm

        from timm_molly.robustness import corruptions, figures, report
    except ImportError as error:
        raise ImportError(f'the demo needs more: pip install "timm-molly[demo]" ({error})') from None
    if split_aa(aa)[0] is None:
        raise ValueError(f'{aa!r} has no molly in it; try --aa molly')
    if epochs < 1:
        raise ValueError(f'epochs must be 1 or more, got {epochs}')
    corruptions.check_size(img_size, corruptions.table_for(img_size))
    register()
    output.mkdir(parents=True, exist_ok=True)
    digits = data_dir is None
    root = write_digits(output / 'digits', img_size) if data_dir is None else data_dir
    # A training set for each, because a loader gives its transform to its data set; everything is made before training,
    # so that what cannot work says so at once.
    variants = {'without molly': None, f'with {aa}': aa}
    train_sets = {name: _open_split(root, ('train',)) for name in variants}
    train_set = train_sets['without molly']
    validation_set = _open_split(root, ('validation', 'val'))
    splits = {Path(each.reader.root).name: {*each.reader.class_to_idx} for each in (train_set, validation_set)}
    for (split, found), (other, wanted) in itertools.permutations(splits.items()):
        if wanted - found:
            raise ValueError(f'{root}: {split}/ lacks the class {some(sorted(wanted - found))}, which {other}/ has')
    num_classes = len(train_set.reader.class_to_idx)
    try:
        loaders = {name: _loader(train_sets[name], img_size, variant, digits) for name, variant in variants.items()}
    except AssertionError as error:  # timm's answer to a policy that it does not know
        raise ValueError(f'timm refuses {aa!r}: {error}') from None
    validation_loader = _loader(validation_set, img_size, None, digits, training=False)

    start = time.perf_counter()
    results: Results = {}
    models: dict[str, nn.Module] = {}
    steps = epochs * sum(len(loader) for loader in loaders.values())
    with tqdm.tqdm(total=steps, unit='step', dynamic_ncols=True, mininterval=0.5) as progress:
        for name, loader in loaders.items():
            progress.set_description(f'train {name}')
            torch.manual_seed(seed)
            models[name] = train(loader, num_classes, epochs, progress.update)
            results[name] = evaluate(models[name], validation_loader)

    print(
        f'\n{MODEL}, {sum(p.numel() for p in models["without molly"].parameters()) / 1e6:.2f} M parameters, '
        f'{num_classes} classes, {len(train_set)} training and {len(validation_set)} validation images of '
        f'{img_size} px, {epochs} epochs, seed {seed}: {time.perf_counter() - start:.0f} s\n\n{table(results)}\n'
    )
    preview.save_figure(draw(results), output / 'mollified.png')
    images = [Path(validation_set.filename(i, absolute=True)) for i in (0, len(validation_set) // 2)]
    preview.preview(images, aa, output / 'preview.png', img_size, num_classes, MEAN, STD)

    settings = {
        'data_dir': str(root),
        'train_split': 'train',
        'val_split': 'validation',
        'img_size': img_size,
        'epochs': epochs,
        'seed': seed,
        'hflip': 0.0 if digits else 0.5,
    }
    folders = [output / name.replace(' ', '-') for name in models]
    for folder, model, variant in zip(folders, models.values(), variants.values(), strict=True):
        _save(model, folder, {**SETTINGS, **settings, 'num_classes': num_classes, 'aa': variant})
    reports = [_report(model, root, folder, img_size) for folder, model in zip(folders, models.values(), strict=True)]
    print(f'\n{report.compare_table(reports, list(models))}\n')
    preview.save_figure(figures.comparison(reports, list(models)), output / 'corrupted.png')
    print(
        f'wrote mollified.png, preview.png, corrupted.png and a report for each model to {output}\n'
        f'share the second: timm-molly push {folders[1]} --report {folders[1]} --repo-id OWNER/NAME'
    )


def train(loader: Any, num_classes: int, epochs: int, step_done: Callable[[], Any]) -> nn.Module:
    """Train the model on a loader as train.py does: the loss is PyTorch's own and knows nothing of molly."""
    import timm
    from timm.optim import create_optimizer_v2

    model: nn.Module = timm.create_model(MODEL, num_classes=num_classes)
    optimizer = create_optimizer_v2(model, SETTINGS['opt'], lr=SETTINGS['lr'], weight_decay=SETTINGS['weight_decay'])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, SETTINGS['lr'], epochs * len(loader), pct_start=0.1)
    criterion = nn.CrossEntropyLoss()
    model.train()
    for _ in range(epochs):
        for x, target in loader:
            optimizer.zero_grad()
            criterion(model(x), target).backward()
            optimizer.step()
            schedule.step()
            step_done()
    return model


def _save(model: nn.Module, output: Path, settings: dict[str, Any]) -> None:
    """Save a model and its settings as `timm-molly push` takes them."""
    import yaml
    from safetensors.torch import save_file

    shutil.rmtree(output, ignore_errors=True)  # a report of an earlier training
    output.mkdir()
    save_file(model.state_dict(), output / 'model.safetensors')
    (output / 'args.yaml').write_text(yaml.safe_dump(settings), encoding='utf-8')


def _report(model: nn.Module, root: Path, output: Path, img_size: int) -> dict[str, Any]:
    """Measure a saved model as `timm-molly validate` does."""
    from timm_molly.robustness import flags, validate

    arguments = [
        *('--data-dir', str(root), '--model', MODEL, '--num-classes', str(model.num_classes)),
        *('--img-size', str(img_size), '--crop-pct', '1.0', '--mean', *map(str, MEAN), '--std', *map(str, STD)),
        *('--checkpoint', str(output / 'model.safetensors'), '-j', '2', '--device', 'cpu', '-o', str(output)),
    ]
    parser = argparse.ArgumentParser()
    flags.add_arguments(parser)
    flags.add_benchmark_arguments(parser)
    return validate.run(parser.parse_args(arguments), shlex.join(['timm-molly', 'validate', *arguments]))


@torch.inference_mode()
def evaluate(model: nn.Module, loader: Any) -> dict[str, dict[str, float]]:
    """Measure error, NLL and ECE (15 equal-width bins) on clean images, and noised and blurred at each temperature."""
    from timm_molly.robustness.metrics import CellMetrics

    model.eval()
    batches = list(loader)
    generator = torch.Generator().manual_seed(0)

    def measure(degrade: Callable[[Tensor], Tensor]) -> dict[str, float]:
        metrics = CellMetrics()
        for x, target in batches:
            metrics.update(model(degrade(x)), target)
        result = metrics.result()
        return {name: result[name.lower()] for name in METRICS}

    results = {'clean': measure(lambda x: x)}
    for t in TEMPERATURES:

        def noised(x: Tensor, t: float = t) -> Tensor:
            return noise(x, torch.full((len(x),), t), torch.randn(x.shape, generator=generator))

        def blurred(x: Tensor, t: float = t) -> Tensor:
            return blur(x, torch.full((len(x),), t))

        results[f'noise {t}'] = measure(noised)
        results[f'blur {t}'] = measure(blurred)
    return results


def table(results: Results) -> str:
    """Print metrics side by side, one row a condition, with means over the temperatures of each degradation."""
    rows = ['clean', *(f'{kind} {t}' for kind in ('noise', 'blur') for t in TEMPERATURES), 'mean of degraded']
    full = {name: {**result, 'mean of degraded': _mean_degraded(result)} for name, result in results.items()}
    names = list(full)
    width = max(len(name) for name in names) + 2
    lines = [' ' * 18 + ''.join(f'{metric:^{width * len(names)}}' for metric in METRICS).rstrip()]
    lines += [' ' * 18 + ''.join(f'{name:>{width}}' for _ in METRICS for name in names)]
    for row in rows:
        cells = ''
        for metric in METRICS:
            for name in names:
                value = full[name][row][metric]
                text = f'{100 * value:.1f} %' if metric == 'error' else f'{value:.3f}'
                cells += f'{text:>{width}}'
        lines.append(f'{row:<18}{cells}')
    return '\n'.join(lines)


def draw(results: Results) -> Figure:
    """Draw each metric against t, noise and blur apart, one line a training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=150, layout='constrained')
    axes = figure.subplots(2, len(METRICS), sharex=True)
    for row, kind in enumerate(('noise', 'blur')):
        for column, metric in enumerate(METRICS):
            ax = axes[row, column]
            for (name, result), colour in zip(results.items(), ('#8a8a8a', '#c2452d'), strict=True):
                values = [result['clean'][metric], *(result[f'{kind} {t}'][metric] for t in TEMPERATURES)]
                scale = 100 if metric == 'error' else 1
                ax.plot((0, *TEMPERATURES), [scale * v for v in values], '-o', color=colour, markersize=3.5, label=name)
            ax.set_ylim(bottom=0)
            ax.grid(alpha=0.25, linewidth=0.6)
            ax.spines[['top', 'right']].set_visible(False)
            ax.set_title(f'{kind}: {metric}' + (' in %' if metric == 'error' else ''), fontsize=10)
    for ax in axes[1]:
        ax.set_xlabel('t (0 is clean)')
    axes[0, 0].legend(frameon=False, fontsize=8)
    return figure


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


def _open_split(root: Path, names: tuple[str, ...]) -> Any:
    from timm.data import create_dataset

    for name in names:
        if (root / name).is_dir():
            try:
                return create_dataset('', root=str(root), split=name)
            except RuntimeError as error:  # timm's word for "no images"
                raise ValueError(str(error)) from None
    raise ValueError(f'{root} has no folder {" or ".join(names)} with one folder of images a class')


def _loader(dataset: Any, img_size: int, aa: str | None, digits: bool, training: bool = True) -> Any:
    from timm.data import create_loader

    return create_loader(
        dataset,
        input_size=(3, img_size, img_size),
        batch_size=min(SETTINGS['batch_size'], len(dataset)),
        is_training=training,
        auto_augment=aa,
        scale=SETTINGS['scale'],
        hflip=0.0 if digits else 0.5,  # a mirrored digit is no digit
        interpolation=SETTINGS['interpolation'],
        crop_pct=SETTINGS['crop_pct'],
        mean=MEAN,
        std=STD,
        num_workers=2,
        device=torch.device('cpu'),
    )


def _mean_degraded(result: dict[str, dict[str, float]]) -> dict[str, float]:
    degraded = [metrics for name, metrics in result.items() if name != 'clean']
    return {metric: sum(m[metric] for m in degraded) / len(degraded) for metric in METRICS}
