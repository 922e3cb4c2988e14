"""Making the folder that becomes a Hub repository, and making it again."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from timm_molly.files import replacing
from timm_molly.hub import card
from timm_molly.hub.folder import (
    ABOUT,
    ABOUT_KEYS,
    CARD,
    CONFIG,
    EVALUATION,
    FIGURES,
    REPORT,
    read_config,
    read_folder,
    read_report,
)
from timm_molly.hub.run import Run, read_hub_folder
from timm_molly.robustness.figures import NAMES
from timm_molly.training import ARGS, WEIGHTS, read_settings
from timm_molly.weights import create_model, one_line

PICTURES = tuple(f'{FIGURES}/{name}.png' for name in NAMES)
# Where timm does not know a network of ours, it names this, which says what to do.
TAG = 'install_timm-molly'


def make(run: Run, about: Mapping[str, Any], report: Path | None, output: Path) -> None:
    """Write a folder with all that is pushed, whole or not at all, and load it as timm does.

    Args:
        run: The model and its training.
        about: What the publisher adds: repo_id, license, dataset_id.
        report: Of `timm-molly validate`, or None.
        output: A folder that is not there yet, or empty.

    Raises:
        ValueError: The report is not of this model, or what timm loads from the folder is not this model.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f'{output} is there already: choose another folder, or delete it')
    near = next(folder for folder in output.absolute().parents if folder.exists())
    with tempfile.TemporaryDirectory(dir=near) as temporary:
        folder = Path(temporary, 'folder')
        folder.mkdir()
        if report is not None:
            check_report(run, read_report(report, run.about['sha256']), report)
            shutil.copyfile(report / REPORT if report.is_dir() else report, folder / REPORT)
        if run.args is not None:
            shutil.copyfile(run.args, folder / ARGS)
        _write_model(run, {**run.about, **about}, folder)
        _write_card(folder, sum(p.numel() for p in run.model.parameters()))
        check(run, folder)
        if output.exists():
            output.rmdir()
        output.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(output)


def make_again(folder: Path, overwrite_card: bool = False) -> list[str]:
    """Write config, card, pictures and evaluation results of a folder again, from its weights, settings and report.

    Args:
        folder: As `make` left it, or with another report or other settings since.
        overwrite_card: Also a card that was edited by hand.

    Returns:
        The files that changed, or went because there is no report any more.

    Raises:
        ValueError: A file is missing or malformed, files do not belong to each other, or the card was edited.
    """
    run, report = read_hub_folder(folder)
    if 'repo_id' not in run.about:
        raise ValueError(f'{folder / CONFIG} does not say which repository it is for; was it made by timm-molly push?')
    if not overwrite_card and (folder / CARD).is_file() and not card.is_generated(read_card(folder / CARD)):
        raise ValueError(f'{folder / CARD} was edited by hand; --overwrite-card writes it again all the same')
    with tempfile.TemporaryDirectory() as temporary:
        again = Path(temporary, 'again')
        make(run, {}, folder / REPORT if report else None, again)
        changed = []
        for name in sorted({*files(again), *files(folder)} - {WEIGHTS}):
            if not (again / name).is_file():
                (folder / name).unlink()
            elif (folder / name).is_file() and (folder / name).read_bytes() == (again / name).read_bytes():
                continue
            else:
                (folder / name).parent.mkdir(exist_ok=True)
                with replacing(folder / name) as new:
                    shutil.copyfile(again / name, new)
            changed.append(name)
    return changed


def files(folder: Path) -> list[str]:
    """Names of those files in a folder that belong to a Hub repository of ours."""
    found = [name for name in (CARD, CONFIG, WEIGHTS, ARGS, REPORT, EVALUATION) if (folder / name).is_file()]
    return found + [name for name in PICTURES if (folder / name).is_file()]


def read_card(path: Path) -> str:
    """Read a card, whatever bytes are in it and with its line ends as they are."""
    return path.read_bytes().decode(errors='replace')


def table(root: Path) -> str:
    """List the models in the folders of a folder with their figures: `timm-molly models`.

    Raises:
        ValueError: There is none, or one is malformed.
    """
    from timm_molly.robustness.report import aligned

    folders = sorted(path.parent for path in root.glob(f'*/{CONFIG}'))
    if not folders:
        raise ValueError(
            f'{root} has no models, which are folders with a {CONFIG} as timm-molly push --dry-run makes them: '
            f"name a folder of such folders, hub_cards of timm-molly's repository, say"
        )
    head = ['', 'network', 'classes', '--aa', 'clean: error %', 'NLL', 'ECE', 'corrupted: error %', 'NLL', 'ECE']
    rows = [head]
    for folder in folders:
        config = read_config(folder / CONFIG)
        about = config[ABOUT]
        row = [folder.name, config['architecture'].partition('.')[0], str(config['num_classes']), about.get('aa', '-')]
        report = read_report(folder / REPORT, about.get('sha256', '')) if (folder / REPORT).is_file() else None
        found = card.conditions(report) if report else {}
        clean, corrupted = found.pop('clean', None), next(iter(found.values()), None)
        for cell in (clean, corrupted):
            row += [f'{100 * cell["error"]:.1f}', f'{cell["nll"]:.3f}', f'{cell["ece"]:.3f}'] if cell else ['-'] * 3
        rows.append(row)
    return aligned(rows)


def _write_model(run: Run, about: Mapping[str, Any], folder: Path) -> None:
    """Write weights and config as timm does, from a cfg that says nothing of weights that the model started from."""
    from timm.models._hub import has_hf_hub, save_for_hf

    if not has_hf_hub():
        raise ImportError('timm cannot work with this huggingface_hub: pip install -U timm')
    model, cfg = run.model, run.model.pretrained_cfg
    name = run.architecture.partition('.')[0]
    kept = ('first_conv', 'classifier', 'fixed_input_size', 'min_input_size')
    same_size = tuple(cfg['input_size']) == tuple(run.data_config['input_size'])
    model.pretrained_cfg = {
        'architecture': f'{name}.{TAG}' if card.is_ours(name) else name,
        'num_classes': model.num_classes,
        **run.data_config,
        **{key: cfg[key] for key in kept if cfg.get(key) is not None},
        'pool_size': cfg.get('pool_size') if same_size else None,
    }
    extra = {'label_names': run.label_names, ABOUT: {key: about[key] for key in ABOUT_KEYS if key in about}}
    try:
        save_for_hf(model, str(folder), extra, dict(run.model_args), safe_serialization=True)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f'timm cannot save {name}: {one_line(error)}') from None
    (folder / WEIGHTS).chmod(0o644)  # safetensors lets nobody else read them


def _write_card(folder: Path, parameters: int) -> None:
    from timm_molly.robustness import report as R

    config = read_config(folder / CONFIG)
    about, settings = config[ABOUT], read_settings(folder / ARGS) if (folder / ARGS).is_file() else {}
    report, figures = None, []
    if (folder / REPORT).is_file():
        report = R.read(folder / REPORT)
        (folder / FIGURES).mkdir()
        figures = [f'{FIGURES}/{name}.png' for name in R.draw(report, folder / FIGURES)]
    (folder / CARD).write_text(
        card.write(config, about, settings, report, figures, parameters), encoding='utf-8', newline='\n'
    )
    evaluation = card.evaluation_file(about, settings, report)
    if evaluation is not None:
        (folder / EVALUATION).parent.mkdir()
        (folder / EVALUATION).write_text(evaluation, encoding='utf-8')


def check_report(run: Run, report: Mapping[str, Any], source: Path) -> None:
    """Raise ValueError where a report measured with images normalised otherwise than for the training."""
    for key in ('mean', 'std'):
        measured, trained = report['model'][key], list(run.data_config[key])
        if measured != trained:
            raise ValueError(
                f'{source} measured with {key} {measured}, but the training normalised with {trained}: '
                f'measure again with --{key} {" ".join(map(str, trained))}'
            )


def check(run: Run, folder: Path) -> None:
    """Load the folder as `timm_molly.hub.load` and as timm do, and compare with the model that was trained.

    Raises:
        ValueError: They give other logits, or none.
    """
    from timm.models import _hub

    loaded = [read_folder(folder).model]
    if hasattr(_hub, 'load_model_config_from_path'):  # not in timm 1.0.15
        with tempfile.TemporaryDirectory() as temporary:
            # By a name that is none to timms that take it for an address, with # and ? in it.
            place = Path(temporary, 'folder')
            place.symlink_to(folder.absolute())
            loaded.append(create_model(f'local-dir:{place}', {'pretrained': True}).eval())
    size = run.data_config['input_size']
    x = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        try:
            expected = run.model(x)
        except Exception as error:  # whatever a model may say
            raise ValueError(f'{run.architecture} cannot take images of {tuple(size)}: {one_line(error)}') from None
        if not all(torch.equal(model(x), expected) for model in loaded):
            config = json.loads((folder / CONFIG).read_text())
            raise ValueError(
                f'what timm makes of the config is not the trained model, with model_args {config.get("model_args")}: '
                f'was the model changed after timm.create_model?'
            )
