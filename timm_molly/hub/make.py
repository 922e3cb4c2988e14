"""Making the folder that becomes a Hub repository, and making it again."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from timm_molly.classifier import Classifier
from timm_molly.errors import PackageError, UserError
from timm_molly.files import replacing, write_json, write_text, writing
from timm_molly.hub import card
from timm_molly.hub.folder import (
    ABOUT,
    ABOUT_KEYS,
    CARD,
    CONFIG,
    EVALUATION,
    FIGURES,
    REPORT,
    TAG,
    read_config,
    read_folder,
    read_report,
)
from timm_molly.robustness import figures
from timm_molly.robustness.report import Report
from timm_molly.tables import aligned, number
from timm_molly.training import ARGS, WEIGHTS, read_settings
from timm_molly.weights import create_model, one_line

PICTURES = tuple(f'{FIGURES}/{name}.png' for name in figures.NAMES)


def make(classifier: Classifier, output: Path, report: Report | None = None, args: Path | None = None) -> None:
    """Write a folder with all that is pushed, whole or not at all, and load it as timm does.

    Args:
        classifier: What is published, with what is known of it in `about`: repo_id, sha256, ...
        output: A folder that is not there yet, or empty.
        report: Of `timm-molly validate` on its weights.
        args: args.yaml of its training.

    Raises:
        UserError: The report measured otherwise than the training, what timm loads from the folder is not this model,
            or the folder cannot be written.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f'{output} is there already: choose another folder (-o), or delete it')
    if report is not None:
        check_report(classifier, report)
    near = next(folder for folder in output.absolute().parents if folder.exists())
    with writing(output), tempfile.TemporaryDirectory(dir=near) as temporary:
        folder = Path(temporary, 'folder')
        folder.mkdir()
        settings = {}
        if args is not None:
            shutil.copyfile(args, folder / ARGS)
            settings = read_settings(args)
        _write_model(classifier, folder)
        _write_card(classifier, folder, settings, report)
        check(classifier, folder)
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
        UserError: A file is missing or malformed, files do not belong to each other, or the card was edited.
    """
    classifier = Classifier.from_folder(folder)
    args = folder / ARGS if (folder / ARGS).is_file() else None
    if 'repo_id' not in classifier.about:
        raise UserError(f'{folder / CONFIG} does not say which repository it is for; was it made by timm-molly push?')
    if not overwrite_card and (folder / CARD).is_file() and not card.is_generated(read_card(folder / CARD)):
        raise UserError(f'{folder / CARD} was edited by hand; --overwrite-card writes it again all the same')
    with tempfile.TemporaryDirectory() as temporary:
        again = Path(temporary, 'again')
        make(classifier, again, classifier.report, args)
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
    """List the models in the folders of a folder with their figures: `timm-molly models FOLDER`.

    Raises:
        UserError: There is none, or one is malformed.
    """
    folders = sorted(path.parent for path in root.glob(f'*/{CONFIG}'))
    if not folders:
        raise UserError(
            f'{root} has no models, which are folders with a {CONFIG} as timm-molly push --dry-run makes them: '
            f'name a folder of such folders'
        )
    rows = [['', 'network', 'classes', '--aa', 'clean: error %', 'NLL', 'ECE', 'corrupted: error %', 'NLL', 'ECE']]
    for folder in folders:
        config = read_config(folder / CONFIG)
        about = config[ABOUT]
        row = [folder.name, config['architecture'].partition('.')[0], str(config['num_classes']), about.get('aa', '-')]
        report = read_report(folder / REPORT, about.get('sha256', '')) if (folder / REPORT).is_file() else None
        found = card.conditions(report) if report else {}
        clean, corrupted = found.pop('clean', None), next(iter(found.values()), None)
        for cell in (clean, corrupted):
            row += [number(metric, cell[metric]) for metric in ('error', 'nll', 'ece')] if cell else ['-'] * 3
        rows.append(row)
    return aligned(rows)


def _write_model(classifier: Classifier, folder: Path) -> None:
    """Write weights and config as timm does, from a cfg that says nothing of weights that the model started from."""
    from timm.models._hub import has_hf_hub, save_for_hf

    if not has_hf_hub():
        raise PackageError('timm cannot work with this huggingface_hub: pip install -U timm')
    model: Any = classifier.model
    cfg, about = model.pretrained_cfg, classifier.about
    name = cfg['architecture'].partition('.')[0]
    kept = ('first_conv', 'classifier', 'fixed_input_size', 'min_input_size')
    same_size = tuple(cfg['input_size']) == classifier.input_size
    model.pretrained_cfg = {
        'architecture': f'{name}.{TAG}' if card.is_ours(name) else name,
        'num_classes': model.num_classes,
        **classifier.data_config,
        **{key: cfg[key] for key in kept if cfg.get(key) is not None},
        'pool_size': cfg.get('pool_size') if same_size else None,
    }
    notes = {key: about[key] for key in ABOUT_KEYS if key in about}
    extra = {'label_names': classifier.label_names, ABOUT: notes}
    try:
        save_for_hf(model, str(folder), extra, dict(classifier.model_args), safe_serialization=True)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f'timm cannot save {name}: {one_line(error)}') from None
    (folder / WEIGHTS).chmod(0o644)  # safetensors lets nobody else read them


def _write_card(classifier: Classifier, folder: Path, settings: Mapping[str, Any], report: Report | None) -> None:
    """Write the card, the report with its pictures, and the evaluation results."""
    config = read_config(folder / CONFIG)
    about, pictures = config[ABOUT], []
    if report is not None:
        write_json(folder / REPORT, report.to_dict())
        (folder / FIGURES).mkdir()
        pictures = [f'{FIGURES}/{name}.png' for name in figures.save_all(report, folder / FIGURES)]
    parameters = sum(p.numel() for p in classifier.model.parameters())
    write_text(folder / CARD, card.write(config, about, settings, report, pictures, parameters))
    evaluation = card.evaluation_file(about, settings, report)
    if evaluation is not None:
        (folder / EVALUATION).parent.mkdir()
        write_text(folder / EVALUATION, evaluation)


def check_report(classifier: Classifier, report: Report) -> None:
    """Check that a report measured with images normalised as for the training.

    Raises:
        UserError: It did not.
    """
    for key in ('mean', 'std'):
        measured, trained = list(getattr(report.model, key)), list(getattr(classifier, key))
        if measured != trained:
            raise UserError(
                f'the report measured with {key} {measured}, but the training normalised with {trained}: '
                f'measure again with --{key} {" ".join(map(str, trained))}'
            )


def timm_reads_folders() -> bool:
    """Whether timm takes safetensors in a `local-dir:` folder: from 1.0.26 on. From 1.0.16 on it unpickles them."""
    from timm.version import __version__ as version

    return tuple(map(int, version.split('.')[:3])) >= (1, 0, 26)


def check(classifier: Classifier, folder: Path) -> None:
    """Load the folder as `timm_molly.load` and as timm do, and compare with the model that was trained.

    Raises:
        UserError: They give other logits, or none.
    """
    loaded = [read_folder(folder).model]
    if timm_reads_folders():
        with tempfile.TemporaryDirectory() as temporary:
            # By a name that is none to timms that take it for an address, with # and ? in it.
            place = Path(temporary, 'folder')
            place.symlink_to(folder.absolute())
            loaded.append(create_model(f'local-dir:{place}', {'pretrained': True}).eval())
    x = torch.randn(1, *classifier.input_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        try:
            expected = classifier.model(x)
        except Exception as error:  # whatever a model may say
            size = classifier.input_size
            raise UserError(f'{classifier.name} cannot take images of {size}: {one_line(error)}') from None
        if not all(torch.equal(model(x), expected) for model in loaded):
            config = json.loads((folder / CONFIG).read_text())
            raise UserError(
                f'what timm makes of the config is not the trained model, with model_args {config.get("model_args")}: '
                f'was the model changed after timm.create_model?'
            )
