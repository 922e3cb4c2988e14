"""The model card: what a config, the training's settings and a report say, and nothing else."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import torch

from timm_molly.config import MollyConfig, split_aa
from timm_molly.errors import UserError
from timm_molly.robustness import render
from timm_molly.robustness.corruptions.names import BAR, COMMON
from timm_molly.robustness.report import CLEAN, Metrics, Report
from timm_molly.training import smoothing_of

Settings = Mapping[str, Any]

PAPER = 'https://arxiv.org/abs/2406.01494'
PROJECT = '`timm-molly`'
METRICS = {'error': 'Error', 'nll': 'Negative log-likelihood', 'ece': 'Expected calibration error (15 bins)'}
# What a reader wants to know of a training; args.yaml has the rest.
RECIPE = {
    'epochs': 'epochs',
    'batch_size': 'batch size',
    'grad_accum_steps': 'gradient accumulation steps',
    'opt': 'optimiser',
    'lr': 'learning rate',
    'lr_base': 'learning rate at the base batch size',
    'weight_decay': 'weight decay',
    'layer_decay': 'layer decay',
    'sched': 'schedule',
    'warmup_epochs': 'warm-up epochs',
    'aa': '--aa',
    'mixup': 'mixup',
    'cutmix': 'cutmix',
    'reprob': 'random erasing',
    'aug_splits': 'augmentation splits',
    'jsd_loss': 'JSD loss',
    'bce_loss': 'BCE loss',
    'smoothing': 'label smoothing',
    'drop': 'dropout',
    'drop_path': 'stochastic depth',
    'kd_model_name': 'distilled from',
    'model_ema_decay': 'EMA decay',
    'amp_dtype': 'mixed precision',
    'seed': 'seed',
}
# Settings that do nothing without another one.
ONLY_WITH = {'model_ema_decay': 'model_ema', 'amp_dtype': 'amp'}
_MARK = re.compile(r'\n<!-- timm-molly: sha256 ([0-9a-f]{64}) -->\n\Z')


def write(
    config: Mapping[str, Any],
    about: Mapping[str, Any],
    settings: Settings,
    report: Report | None,
    figures: Sequence[str],
    parameters: int,
) -> str:
    """Write the card.

    Args:
        config: `config.json`, checked.
        about: What timm-molly noted in it.
        settings: The training's, from `args.yaml`; empty where there is none.
        report: Of `timm-molly validate`, or None.
        figures: Paths of the report's pictures in the repository.
        parameters: Number of them in the model.

    Returns:
        Markdown with metadata, ending with a mark by which `is_generated` knows it again.
    """
    from huggingface_hub import ModelCard, ModelCardData

    molly = split_aa(about['aa'])[0] if 'aa' in about else None
    smoothing = smoothing_of(settings) or 0.0
    name = about['repo_id'].rpartition('/')[2]
    results = evaluation(about, settings, report)
    datasets = [about['dataset_id']] if 'dataset_id' in about else None
    data = ModelCardData(
        license=about.get('license'),
        library_name='timm',
        pipeline_tag='image-classification',
        tags=['image-classification', 'timm', *['timm-molly', 'mollification', 'robustness'] * bool(molly)],
        datasets=datasets,
        base_model=about.get('base_model'),
        model_name=name if results else None,
        eval_results=results or None,
    )
    sections = [
        f'# {name}\n\n{_introduction(config, about, settings, molly)}',
        f'## The model\n\n{_model(config, about, parameters)}',
        *([f'## Mollification\n\n{_mollification(molly, config["num_classes"], smoothing)}'] if molly else []),
        f'## How good it is\n\n{_measured(config, about, report, figures)}',
        f'## How to use it\n\n{_usage(config, about)}',
        *([f'## How it was trained\n\n{_training(settings)}'] if settings else []),
        f'## Limits\n\n{_limits(config, report)}',
        *([f'## Licence\n\n{about["license"]}, as chosen by its publisher.'] if 'license' in about else []),
        f'## Citation\n\n{_citation(molly)}',
    ]
    text = f'---\n{data.to_yaml()}\n---\n\n' + '\n\n'.join(sections) + '\n'
    card = ModelCard(text)  # reads its own metadata again, or raises
    if card.data.to_dict() != data.to_dict():  # type: ignore[no-untyped-call]
        raise UserError('the metadata of the card do not survive being written: an unusual name in it?')
    return f'{text}\n<!-- timm-molly: sha256 {_digest(text)} -->\n'


def is_generated(text: str) -> bool:
    """Tell whether a card is as `write` left it, and not edited since."""
    found = _MARK.search(text)
    return found is not None and found[1] == _digest(text[: found.start()])


def evaluation(about: Settings, settings: Settings, report: Report | None) -> list[Any]:
    """The figures as the Hub's `model-index` has them, one `EvalResult` a metric."""
    from huggingface_hub import EvalResult

    def result(where: str, condition: str, metric: str, value: float, label: str, split: Any) -> EvalResult:
        known = _hub_id(about, settings, where)
        published = report is not None and where == report.corrupted_set  # which the condition names
        return EvalResult(
            task_type='image-classification',
            task_name='Image Classification',
            dataset_type=known or _kind(where, report),
            dataset_name=where if condition == 'clean' or published else f'{where}, {condition}',
            dataset_config=condition,
            dataset_split=split if isinstance(split, str) else None,
            metric_type=metric,
            metric_value=round(value, 6),
            metric_name=label,
        )

    if report is None:
        top1, where = (about.get('validation') or {}).get('top1'), _trained_on(settings)
        if top1 is None or where is None:
            return []
        return [result(where, 'clean', 'accuracy', top1 / 100, 'Accuracy', settings.get('val_split'))]
    return [
        result(_measured_on(report, condition), condition, metric, value, label, report.data.split)
        for condition, cell in conditions(report).items()
        for metric, value, label in _values(cell)
    ]


def evaluation_file(about: Settings, settings: Settings, report: Report | None) -> str | None:
    """The same figures in the Hub's newer form, which names a data set on the Hub; None where none is known."""
    import yaml

    try:
        from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    except ImportError:  # older than this form
        return None
    if report is None:
        return None
    entries = [
        EvalResultEntry(
            dataset_id=known,
            task_id=f'{"clean" if condition == "clean" else "corrupted"}_{metric}',
            value=round(value, 6),
            notes=f'{label}, {condition}',
        )
        for condition, cell in conditions(report).items()
        if (known := _hub_id(about, settings, _measured_on(report, condition))) is not None
        for metric, value, label in _values(cell)
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False) if entries else None


def conditions(report: Report) -> dict[str, Metrics]:
    """The clean cell and the mean over the common corruptions, by a name that says which, where they are finite."""
    found: dict[str, Metrics] = {'clean': report.clean} if CLEAN in report else {}
    benchmark = report.benchmark
    if not benchmark.mollified:
        listed = ', '.join(map(str, benchmark.severities)).replace('1, 2, 3, 4, 5', '1 to 5')
        severities = f'{"severities" if len(benchmark.severities) > 1 else "severity"} {listed}'
        how = benchmark.table or report.corrupted_set
        for members, mean, of in ((COMMON, report.mean, how), (BAR, report.bar, f'C-bar, {how}')):
            count = sum(name in members for name in report.corruptions)
            if count:
                found[f'{count} corruptions of {of}, {severities}'] = mean
    return {name: cell for name, cell in found.items() if cell.error == cell.error}


def _values(cell: Metrics) -> list[tuple[str, float, str]]:
    return [('accuracy', 1 - cell.error, 'Accuracy'), *((key, cell[key], label) for key, label in METRICS.items())]


def _measured_on(report: Report, condition: str) -> str:
    """The data set by timm's name, or by that of its folder; corrupted images of a published set are that set's."""
    published = report.corrupted_set
    return str(published if published and condition != 'clean' else report.data.dataset)


def _trained_on(settings: Settings) -> str | None:
    """The data set by timm's name, or by that of its folder."""
    root = settings.get('data_dir') or settings.get('data')
    return str(settings.get('dataset') or (root and PurePath(str(root)).name) or '') or None


def _kind(dataset: str, report: Report | None) -> str:
    """What `model-index` calls the type: the name of a published set, or what reads folders of images."""
    if report is not None and dataset == report.corrupted_set:
        return dataset.lower()
    return dataset.partition('/')[2] if '/' in dataset else 'imagefolder'


def _hub_id(about: Settings, settings: Settings, dataset: str) -> str | None:
    """The Hub's name of a data set, where it says it itself or the publisher said it of the one trained on.

    That one is known by its name in timm, or by that of its folder.
    """
    if dataset.startswith('hfds/'):
        return dataset.removeprefix('hfds/')
    return about.get('dataset_id') if _trained_on(settings) == dataset else None


def _introduction(config: Settings, about: Settings, settings: Settings, molly: MollyConfig | None) -> str:
    where = _trained_on(settings)
    text = (
        f'An image classifier of {config["num_classes"]} classes: the network `{_base(config)}` of {_library(config)}'
    )
    text += f', trained on {_code(where)}' if where else ''
    if molly:
        text += (
            f' with *mollification* (`--aa {about["aa"]}`), a method that is meant to make it hold up under noise and '
            f'blur and know how sure it can be ([Heinonen et al., 2025]({PAPER}))'
        )
    elif 'aa' in about or 'aa' in settings:
        text += ', without mollification'
    return f'{text}.'


def _model(config: Settings, about: Settings, parameters: int) -> str:
    cfg = config['pretrained_cfg']
    channels, height, width = cfg['input_size']
    rows = [
        ('network', f'`{_base(config)}`'),
        ('parameters', f'{parameters / 1e6:.2f} M'),
        ('classes', str(config['num_classes'])),
        ('input', f'{height} x {width} pixels, {channels} channels'),
        ('preparation', f'{cfg["interpolation"]}, {cfg["crop_mode"]} crop {cfg["crop_pct"]:g}'),
        ('mean, standard deviation', f'{_numbers(cfg["mean"])}; {_numbers(cfg["std"])}'),
    ]
    weights = 'an exponential moving average (EMA) of those in training' if about.get('ema') else 'as trained'
    rows.append(('weights', weights + (f', after epoch {about["epoch"]}, counted from 0' if 'epoch' in about else '')))
    arguments = {k: v for k, v in config['model_args'].items() if k not in ('num_classes', 'in_chans', 'global_pool')}
    if arguments:
        rows.append(('arguments', ', '.join(f'{key}={value}' for key, value in arguments.items())))
    if 'base_model' in about:
        rows.append(('started from', f'[{about["base_model"]}](https://huggingface.co/{about["base_model"]})'))
    return _list(rows)


def _mollification(molly: MollyConfig, num_classes: int, smoothing: float) -> str:
    words = {'x': 'clean', 'n': 'noise', 'b': 'blur', 'e': 'nothing but noise'}
    shares = {role: f'{molly.roles.count(role)}/{len(molly.roles)}' for role in words if role in molly.roles}
    weights = {'n': f'sin²(πt/2)^{molly.noise_power:g}', 'b': f't^{molly.blur_power:g}', 'e': '1', 'x': '0'}
    half = torch.tensor(0.5)
    if molly.weighted:
        effect, kept = 'its loss counted 1 - γ times, with its label as it was', 'weight of the loss'
        left = {role: molly.weight(role, half) for role in shares}
    else:
        effect, kept = f'its label became (1 - γ) · label + γ / {num_classes}', 'confidence of the label'
        left = {role: molly.confidence(role, half, num_classes, smoothing) for role in shares}
    if smoothing:
        effect += f", after timm's label smoothing of {smoothing:g}"
    drawn = [
        (words[role], share, weights[role].removesuffix('^1'), f'{left[role]:.3f}') for role, share in shares.items()
    ]
    return (
        f'Each training image drew one of the following and a strength t ~ Beta({molly.alpha:g}, {molly.beta:g}), '
        f'and {effect}. The smallest blur is {molly.min_scale:g} pixels wide.\n\n'
        + _table(('image', 'share', 'γ', f'{kept} at t = 0.5'), drawn)
    )


def _measured(config: Settings, about: Settings, report: Report | None, figures: Sequence[str]) -> str:
    parts = []
    if about.get('validation'):
        names = {'top1': 'top-1 accuracy {:.2f} %', 'top5': 'top-5 accuracy {:.2f} %', 'loss': 'loss {:.4f}'}
        shown = [names[key].format(value) for key, value in about['validation'].items() if key in names]
        parts.append(f'In its own validation after this epoch, `train.py` measured {", ".join(shown)}.')
    if report is None:
        return '\n\n'.join([*parts, 'Robustness and calibration were not measured.'])
    model = report.model
    version = report.packages.get('timm-molly')
    parts.append(
        f'Measured with `timm-molly validate`{f" {version}" if version else ""} on '
        f'{_escape(render.subject(report))}. `report.json` has every figure. '
        f'NLL is in nats, ECE has 15 equal-width bins, confidence is the mean of the largest probability.'
    )
    cfg = config['pretrained_cfg']
    different = [
        f'{key} {_shown(getattr(model, key))} in place of {_shown(cfg[key])}'
        for key in ('input_size', 'crop_pct', 'crop_mode', 'interpolation')
        if getattr(model, key) != cfg[key]
    ]
    if different:
        parts.append(f"It was measured with {', '.join(different)}, the training's.")
    if report.benchmark.crop_pct is not None:
        parts.append(f'The corrupted images are as they are stored, with crop {report.benchmark.crop_pct:g}.')
    if model.amp:
        parts.append(f'It was measured in mixed precision, {model.amp}.')
    parts += render.notes(report)
    parts.append(render.markdown(report))
    parts += [f'![{path.rpartition("/")[2].removesuffix(".png").replace("-", " ")}]({path})' for path in figures]
    return '\n\n'.join(parts)


def _usage(config: Settings, about: Settings) -> str:
    ours = is_ours(config['architecture'])
    install = 'pip install timm timm-molly' if ours else 'pip install timm'
    why = (
        f'`{_base(config)}` is a network for small images from {PROJECT}, which adds it to timm where it is installed; '
        f'without it timm says `Unknown model ({config["architecture"]})`.\n\n'
    )
    labels = config.get('label_names')
    name = "model.pretrained_cfg['label_names'][int(p.argmax())]" if isinstance(labels, list) else 'int(p.argmax())'
    size = config['pretrained_cfg']['input_size']
    mode = {1: 'L', 3: 'RGB'}.get(size[0])
    prepared = (
        'transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)\n'
        f"x = transform(Image.open('photo.jpg').convert('{mode}'))"
    )
    if mode is None:
        prepared = f'x = torch.randn{tuple(size)}  # in place of an image that is normalised as said above'
    return f"""```
{install}
```

{why if ours else ''}```python
import timm
import torch
{'' if mode is None else 'from PIL import Image' + chr(10)}
model = timm.create_model('hf-hub:{about['repo_id']}', pretrained=True).eval()
{prepared}
with torch.inference_mode():
    p = model(x[None]).softmax(1)[0]
print({name}, float(p.max()))
```

With {PROJECT}, `timm_molly.load('{about['repo_id']}')` gives the model, its transform, its report and the settings
that it was trained with in one call. To fine-tune it with timm's `train.py` on a folder of images of your own:

```
pip install timm-molly
python train.py --data-dir path/to/images --model hf-hub:{about['repo_id']} --pretrained \\
  --num-classes 10 --aa molly --smoothing 0
```"""


def _training(settings: Settings) -> str:
    rows = [(label, _code(settings[key])) for key, label in RECIPE.items() if _is_on(settings, key)]
    text = "`args.yaml` has every setting, by its name in timm's `train.py`"
    if 'checkpoint_hist' in settings:  # train.py's own, not those of another script
        text += ', so that `python train.py --config args.yaml --data-dir ... --output ...` trains such a model again'
    return f'{text}. Those that matter most:\n\n{_list(rows)}'


def _is_on(settings: Settings, key: str) -> bool:
    value = settings.get(key)
    if value is None or (key in ONLY_WITH and not settings.get(ONLY_WITH[key])):
        return False
    if key == 'lr_base' and settings.get('lr') is not None:  # which takes its place
        return False
    # Without smoothing is news: timm's default is 0.1.
    return key in ('seed', 'smoothing') or value not in (0, False, '', [])


def _limits(config: Settings, report: Report | None) -> str:
    lines = [f'It knows {config["num_classes"]} classes and answers with one of them whatever the picture shows.']
    images = report.data.images if report else 0
    for name, cell in (conditions(report) if report else {}).items():
        correct, confidence = 1 - cell.error, cell.confidence
        said = f'{"more" if confidence > correct else "less"} sure of itself than it is right'
        if abs(confidence - correct) < render.margin(correct, images):
            said = f'as sure of itself as it is right, as far as {images} images show'
        where = 'On clean images' if name == 'clean' else f'Under {_escape(name)},'
        lines.append(f'{where} it is {said}: mean confidence {confidence:.3f}, share correct {correct:.3f}.')
    if report:
        lines.append('The figures are of the images named above; on other images and other damage they will differ.')
    else:
        lines.append('How it does on noisy, blurred or otherwise damaged images was not measured.')
    return '\n'.join(f'- {line}' for line in lines)


def _citation(molly: MollyConfig | None) -> str:
    heinonen = """@inproceedings{heinonen2025robust,
  title     = {Robust Classification by Coupling Data Mollification with Label Smoothing},
  author    = {Heinonen, Markus and Tran, Ba-Hien and Kampffmeyer, Michael and Filippone, Maurizio},
  booktitle = {International Conference on Artificial Intelligence and Statistics},
  year      = {2025}
}
"""
    wightman = """@misc{rw2019timm,
  title        = {PyTorch Image Models},
  author       = {Wightman, Ross},
  year         = {2019},
  howpublished = {\\url{https://github.com/huggingface/pytorch-image-models}},
  doi          = {10.5281/zenodo.4414861}
}
"""
    return f'```bibtex\n{heinonen if molly else ""}{wightman}```'


def is_ours(architecture: str) -> bool:
    """Tell whether timm knows an architecture from timm-molly."""
    from timm_molly import models

    return architecture.partition('.')[0] in models.__all__


def _base(config: Settings) -> str:
    return str(config['architecture'].partition('.')[0])


def _library(config: Settings) -> str:
    return PROJECT if is_ours(config['architecture']) else '[timm](https://github.com/huggingface/pytorch-image-models)'


def _shown(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _numbers(values: Sequence[float]) -> str:
    return ', '.join(f'{value:g}' for value in values)


def _code(value: Any) -> str:
    text = ' '.join(str(value).split()).replace('`', "'").replace('|', '\\|')
    return f'`{text}`'


def _escape(text: str) -> str:
    """Keep Markdown from reading names as its own signs."""
    return re.sub(r'([\\`*_\[\]<>|#])', r'\\\1', ' '.join(text.split()))


def _list(rows: Sequence[tuple[str, str]]) -> str:
    return '\n'.join(f'- **{what}:** {value}' for what, value in rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return '\n'.join(f'| {" | ".join(row)} |' for row in (head, ['---'] * len(head), *rows))
