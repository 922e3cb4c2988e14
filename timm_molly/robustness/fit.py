"""`timm-molly fit`: label powers whose confidence follows what a net still recognises."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from timm_molly.config import split_aa
from timm_molly.files import write_text
from timm_molly.functional import blur_gamma, noise_gamma
from timm_molly.robustness import figures, report
from timm_molly.robustness.measure import check_numbers, data_record, default_output, measure, open_images
from timm_molly.robustness.model import load_model
from timm_molly.robustness.validate import mollification

POWERS = (0.05, 1000.0)
SCHEDULES = {'noise': noise_gamma, 'blur': blur_gamma}


def fit(args: argparse.Namespace) -> str:
    """Measure a model on mollified held-out images, fit the powers, print and draw them, and return the aa string.

    Raises:
        ValueError: What the user has to change.
    """
    if args.data_dir is None and not args.dataset:
        raise ValueError('no data: give --data-dir or --dataset, with images that the model was not trained on')
    check_numbers(args)
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
    # The rest of the recipe stays: the roles, the law of t, and the policy that molly is stacked with.
    strings = [aa for aa in (args.aa, subject.aa) if aa and split_aa(aa)[0]]
    config, rest = split_aa(strings[0] if strings else 'molly')
    assert config is not None
    best = dataclasses.replace(config, **{f'{name}_power': found['power'] for name, found in fitted.items()})
    aa = f'{best}+{rest}' if rest else str(best)
    report.write(made, output)
    kept = ('power', 'rms', 'largest', 'paper_rms')
    powers = {name: {key: found[key] for key in kept} for name, found in fitted.items()}
    write_text(output / 'fit.json', json.dumps({'aa': aa, **powers}, indent=1) + '\n')
    figures.save(figures.fit(made, fitted), output / 'fit.png')
    print(f'\n{report.text(made)}\n')
    for name, found in fitted.items():
        print(f'{name}: {_said(found)}')
    print(f'\n--aa {aa}\n\nwrote {output}/fit.json, fit.png, report.json, .csv, .md and confidence.png')
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
    text = (
        f'k = {found["power"]:g}: rms gap {found["rms"]:.3f}, largest {found["largest"]:.3f} '
        f'(k = 1: rms {found["paper_rms"]:.3f})'
    )
    if found['power'] > 0.9 * POWERS[1]:
        return f'{text}; the net still recognises everything, hard labels are right'
    if found['power'] < 1.1 * POWERS[0]:
        return f'{text}; the net recognises next to nothing, is it trained?'
    return text
