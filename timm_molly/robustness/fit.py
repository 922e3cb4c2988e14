"""`timm-molly fit`: label powers whose confidence follows what a net still recognises."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from timm_molly.config import MollyConfig, split_aa
from timm_molly.files import write_text
from timm_molly.functional import blur_gamma, noise_gamma
from timm_molly.robustness import figures, report
from timm_molly.robustness.measure import check_inputs, data_record, default_output, folder_name, measure, open_images
from timm_molly.robustness.model import Subject, load_model
from timm_molly.robustness.validate import mollification

POWERS = (0.05, 1000.0)
HARD = 100  # from this power on a label keeps its confidence nearly as far as anything can be recognised
LARGE_GAP = 0.05  # rms, in units of confidence
SCHEDULES = {'noise': noise_gamma, 'blur': blur_gamma}


def fit(args: argparse.Namespace) -> str | None:
    """Measure a model on mollified held-out images, fit the powers, print and draw them, and return the aa string.

    There is none where the figures give no answer: for a net that was trained without molly, or recognises next to
    nothing.

    Raises:
        ValueError: What the user has to change.
    """
    if args.data_dir is None and not args.dataset:
        raise ValueError('no data: give --data-dir or --dataset, with images that the model was not trained on')
    check_inputs(args)
    subject = load_model(args)
    images = open_images(args, subject)
    cells, what = mollification(images, subject, args.aa, args.seed)
    output = args.output or default_output(args, 'fit')
    results = measure(args, output, subject, cells, what)
    command = ' '.join(['timm-molly', *sys.argv[1:]])
    made = report.build(subject.record, what, data_record(args, subject, results), results, command)
    if made['not_finite']:
        raise ValueError(f'the model gave logits that are not finite in {", ".join(made["not_finite"])}')
    fitted = {name: fit_power(name, made, subject.num_classes) for name in made['cells']}
    trained = args.aa or subject.aa
    # The rest of the recipe stays: the roles, the law of t, and the policy that molly is stacked with.
    config, rest = split_aa(trained) if trained else (None, None)
    best = dataclasses.replace(
        config or MollyConfig(), **{f'{name}_power': found['power'] for name, found in fitted.items()}
    )
    known_plain = config is None and bool(trained or subject.settings)
    answered = not known_plain and all(found['power'] >= 1.1 * POWERS[0] for found in fitted.values())
    aa = (f'{best}+{rest}' if rest else str(best)) if answered else None
    doubts = [*_doubts_of_training(config, known_plain), *_doubts_of_images(args, subject), *_doubts_of_fit(fitted)]
    report.write(made, output)
    kept = ('power', 'rms', 'largest', 'paper_rms')
    powers = {name: {key: found[key] for key in kept} for name, found in fitted.items()}
    write_text(output / 'fit.json', json.dumps({'aa': aa, **powers}, indent=1) + '\n')
    figures.save(figures.fit(made, fitted), output / 'fit.png')
    print(f'\n{report.text(made)}\n')
    for name, found in fitted.items():
        print(f'{name}: {_said(found)}')
    print(''.join(f'\nBut: {doubt}.' for doubt in doubts))
    print(f'\n--aa {aa}' if aa else '\nNo --aa to copy: these figures do not answer what labels your data should have.')
    print(f'\nwrote {output}/fit.json, fit.png, report.json, .csv, .md and confidence.png')
    return aa


def fit_power(name: str, made: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """Find the power whose label confidence is nearest to the share of correct answers.

    Minimises the root mean square over t in (0, 1] of 1 - gamma(t, k) (K - 1) / K - correct(t), each t alike.

    Args:
        name: 'noise' or 'blur'.
        made: A report of kind 'mollification'.
        num_classes: K.

    Returns:
        'power' (to three digits), 'rms' and 'largest' gap at that power, 'paper_rms' at power 1, and for drawing
        't', 'confidence' and 'paper'.
    """
    t, correct, _ = figures.curve(made, name)
    measured = np.array(t) > 0
    at, share = torch.tensor(t, dtype=torch.float64)[measured], np.array(correct)[measured]

    def confidence(power: float, at: torch.Tensor = at) -> Any:
        return (1 - SCHEDULES[name](at, power) * (num_classes - 1) / num_classes).numpy()

    def rms(power: float) -> float:
        return float(np.sqrt(np.mean((confidence(power) - share) ** 2)))

    # On a coarse grid first: far from the answer the gap hardly depends on the power, and a search could stop there.
    grid = np.geomspace(*POWERS, 200)
    best = int(np.argmin([rms(power) for power in grid]))
    bounds = np.log(grid[max(best - 1, 0)]), np.log(grid[min(best + 1, len(grid) - 1)])
    found = minimize_scalar(lambda log_power: rms(np.exp(log_power)), bounds=bounds, method='bounded')
    power = float(f'{np.exp(found.x):.3g}')
    fine = torch.linspace(0, 1, 101, dtype=torch.float64)
    return {
        'power': power,
        'rms': rms(power),
        'largest': float(np.abs(confidence(power) - share).max()),
        'paper_rms': rms(1.0),
        't': fine.tolist(),
        'confidence': confidence(power, fine).tolist(),
        'paper': confidence(1.0, fine).tolist(),
    }


def _said(found: Mapping[str, Any]) -> str:
    return (
        f'k = {found["power"]:g}: rms gap {found["rms"]:.3f}, largest {found["largest"]:.3f} '
        f'(k = 1: rms {found["paper_rms"]:.3f})'
    )


def _doubts_of_training(config: MollyConfig | None, known_plain: bool) -> list[str]:
    """What of the training the answer rests on, and is not so."""
    advice = 'train it with --aa molly-k1000 and fit again'
    if known_plain:
        return [f'the net was trained without molly, so it shows what noise does to a net that never saw any; {advice}']
    if config is None:
        return [f'nothing says whether the net was trained with molly (--aa says it); if it was not, {advice}']
    powers = [power for role, power in (('n', config.noise_power), ('b', config.blur_power)) if role in config.roles]
    if min(powers) < HARD:
        return [f'the net was trained with the labels of {config}, not with hard ones; {advice}']
    return []


def _doubts_of_images(args: argparse.Namespace, subject: Subject) -> list[str]:
    """Whether these may be images that the net was trained on, of which it recognises more than of others."""
    settings = subject.settings
    split = settings.get('train_split') or 'train'
    where = settings.get('data_dir') or settings.get('data')
    same = isinstance(where, str) and args.data_dir and Path(where).resolve() == Path(args.data_dir).resolve()
    named = {args.split.lower(), folder_name(args.data_dir).lower() if args.data_dir else ''}
    if named & {'train', 'training'} or (same and args.split == split):
        return ['these may be images that the net was trained on, of which it recognises more than of others']
    return []


def _doubts_of_fit(fitted: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is odd about the powers themselves."""
    doubts = []
    for name, found in fitted.items():
        power = found['power']
        if power > 0.9 * POWERS[1]:
            doubts.append(f'under {name} the net still recognises everything: hard labels are right')
        elif power < 1.1 * POWERS[0]:
            doubts.append(f'under {name} the net recognises next to nothing: is it trained?')
        elif power < 1:
            doubts.append(f"under {name} the answer is below the paper's 1: labels even less sure than the paper's")
        if found['rms'] > LARGE_GAP:
            doubts.append(
                f'under {name} even the best power is far from what the net recognises, by {found["rms"]:.3f}'
            )
    return doubts
