"""`timm_molly.fit`: label powers whose confidence follows what a network still recognises."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn
from typing_extensions import Unpack

from timm_molly.classifier import Classifier
from timm_molly.config import MollyConfig, split_aa
from timm_molly.errors import UserError, needs
from timm_molly.files import make_folder, write_json
from timm_molly.preview import save_figure
from timm_molly.robustness import figures
from timm_molly.robustness.conditions import SEED, Mollification
from timm_molly.robustness.evaluate import How, evaluate
from timm_molly.robustness.images import Dataset, Images, folder_name
from timm_molly.robustness.report import Report

try:
    from scipy.optimize import minimize_scalar
except ImportError as error:
    raise needs('fitting', 'robustness', error) from None

POWERS = (0.05, 1000.0)
HARD = 100  # from this power on a label keeps its confidence nearly as far as anything can be recognised
LARGE_GAP = 0.05  # rms, in units of confidence
ADVICE = 'train it with --aa molly-k1000 and fit again'


@dataclass(frozen=True)
class Power:
    """The label power that fits what a network recognises of noised, or of blurred images.

    Attributes:
        degradation: 'noise' or 'blur'.
        num_classes: Number of classes K.
        power: To three digits.
        rms: Root mean square of label confidence - share correct over t in (0, 1], at that power.
        largest: Largest gap likewise.
        paper_rms: `rms` at the paper's power, 1.
    """

    degradation: str
    num_classes: int
    power: float
    rms: float
    largest: float
    paper_rms: float

    def confidence(self, t: ArrayLike, power: float | None = None) -> NDArray[np.float64]:
        """Confidence of the label at t in [0, 1], of any shape, with this power or another."""
        return _confidence(self.degradation, t, self.power if power is None else power, self.num_classes)

    def __str__(self) -> str:
        return (
            f'{self.degradation}: k = {self.power:g}: rms gap {self.rms:.3f}, largest {self.largest:.3f} '
            f'(k = 1: rms {self.paper_rms:.3f})'
        )

    @property
    def doubts(self) -> list[str]:
        """What is odd about the power itself."""
        found, under = [], f'under {self.degradation}'
        if self.power > 0.9 * POWERS[1]:
            found.append(f'{under} the net still recognises everything: hard labels are right')
        elif not self.answers:
            found.append(f'{under} the net recognises next to nothing: is it trained?')
        elif self.power < 1:
            found.append(f"{under} the answer is below the paper's 1: labels even less sure than the paper's")
        if self.rms > LARGE_GAP:
            found.append(f'{under} even the best power is far from what the net recognises, by {self.rms:.3f}')
        return found

    @property
    def answers(self) -> bool:
        """Whether the net recognises enough for an answer."""
        return self.power >= 1.1 * POWERS[0]


@dataclass(frozen=True)
class Fit:
    """Label powers for the data of a report, and how far they are to be trusted.

    Attributes:
        report: What was measured of noised and blurred images.
        powers: By degradation.
        aa: The aa string to train with; None where the figures give no answer.
        doubts: What speaks against it, a clause each.
    """

    report: Report
    powers: Mapping[str, Power]
    aa: str | None
    doubts: tuple[str, ...]

    def __str__(self) -> str:
        lines = [str(power) for power in self.powers.values()]
        lines += [''] * bool(self.doubts) + [f'But: {doubt}' + '.' * (doubt[-1] != '?') for doubt in self.doubts]
        none = 'No --aa to copy: these figures do not answer what labels your data should have.'
        return '\n'.join([*lines, f'\n--aa {self.aa}' if self.aa else f'\n{none}'])

    def save(self, folder: str | Path) -> None:
        """Write the report, fit.json and fit.png.

        Raises:
            UserError: The folder cannot be written, or matplotlib is missing.
        """
        folder = make_folder(Path(folder))
        self.report.save(folder)
        kept = ('power', 'rms', 'largest', 'paper_rms')
        powers = {name: {key: getattr(power, key) for key in kept} for name, power in self.powers.items()}
        write_json(folder / 'fit.json', {'aa': self.aa, **powers})
        save_figure(figures.fit(self.report, self.powers), folder / 'fit.png')


def fit(
    model: nn.Module | Classifier,
    dataset: Dataset | Images,
    aa: str | None = None,
    seed: int = SEED,
    **how: Unpack[How],
) -> Fit:
    """Measure a classifier on noised and blurred held-out images, and fit the label powers to what it recognises.

    It is best trained with `--aa molly-k1000`: hard labels on the same noise and blur.

    Args:
        model: As of `evaluate`.
        dataset: As of `evaluate`; images that the model was not trained on.
        aa: Of its training; None for the one that the classifier names.
        seed: Of the noise.
        **how: As of `evaluate`: batch_size, workers, device, amp, cache, progress.

    Returns:
        `print` shows powers, doubts and the aa string; `save` writes them with pictures.

    Raises:
        UserError: As of `evaluate`; or the model gave logits that are not finite.
    """
    classifier = Classifier.of(model)
    report = evaluate(classifier, dataset, Mollification(aa, seed=seed), **how)
    return fit_report(report, classifier, aa)


def fit_report(report: Report, classifier: Classifier, aa: str | None = None, data_dir: str | None = None) -> Fit:
    """Fit the label powers to a report of mollification.

    Args:
        report: The report.
        classifier: What was measured.
        aa: The aa string of its training; None for the one that the classifier names.
        data_dir: Folder of the images, by which those of the training are known again.

    Raises:
        UserError: The model gave logits that are not finite.
    """
    if report.not_finite:
        raise UserError(f'the model gave logits that are not finite in {", ".join(report.not_finite)}')
    powers = {name: fit_power(name, report) for name in report.names}
    trained = aa or classifier.aa
    # The rest of the recipe stays: the roles, the law of t, and the policy that molly is stacked with.
    config, rest = split_aa(trained) if trained else (None, None)
    found = {f'{name}_power': power.power for name, power in powers.items()}
    best = dataclasses.replace(config or MollyConfig(), **found)  # type: ignore[arg-type]
    known_plain = config is None and bool(trained or (classifier.training and classifier.training.settings))
    answered = not known_plain and all(power.answers for power in powers.values())
    doubts = [
        *_doubts_of_training(config, known_plain),
        *_doubts_of_images(report, classifier, data_dir),
        *(doubt for power in powers.values() for doubt in power.doubts),
    ]
    string = f'{best}+{rest}' if rest else str(best)
    return Fit(report, powers, string if answered else None, tuple(doubts))


def fit_power(degradation: str, report: Report) -> Power:
    """Find the power whose label confidence is nearest to the share of correct answers.

    Minimises the root mean square over t in (0, 1] of confidence(t, k) - correct(t), each t alike.

    Args:
        degradation: 'noise' or 'blur'.
        report: Of mollification.
    """
    num_classes = report.data.num_classes
    cells = report.at(degradation)
    at, share = np.array(list(cells)), np.array([1 - cell.error for cell in cells.values()])

    def gaps(power: float) -> NDArray[np.float64]:
        return np.asarray(_confidence(degradation, at, power, num_classes) - share)

    def rms(power: float) -> float:
        return float(np.sqrt(np.mean(gaps(power) ** 2)))

    # On a coarse grid first: far from the answer the gap hardly depends on the power, and a search could stop there.
    grid = np.geomspace(*POWERS, 200)
    best = int(np.argmin([rms(power) for power in grid]))
    bounds = np.log(grid[max(best - 1, 0)]), np.log(grid[min(best + 1, len(grid) - 1)])
    found = minimize_scalar(lambda log_power: rms(np.exp(log_power)), bounds=bounds, method='bounded')
    power = float(f'{np.exp(found.x):.3g}')
    return Power(degradation, num_classes, power, rms(power), float(np.abs(gaps(power)).max()), rms(1.0))


def _confidence(degradation: str, t: ArrayLike, power: float, num_classes: int) -> NDArray[np.float64]:
    config = MollyConfig(noise_power=power, blur_power=power)
    at = torch.as_tensor(np.asarray(t), dtype=torch.float64)
    return np.asarray(config.confidence(degradation[0], at, num_classes).numpy(), np.float64)


def _doubts_of_training(config: MollyConfig | None, known_plain: bool) -> list[str]:
    """What of the training the answer rests on, and is not so."""
    if known_plain:
        return [f'the net was trained without molly, so it shows what noise does to a net that never saw any; {ADVICE}']
    if config is None:
        return [f'nothing says whether the net was trained with molly (--aa says it); if it was not, {ADVICE}']
    powers = [power for role, power in (('n', config.noise_power), ('b', config.blur_power)) if role in config.roles]
    if min(powers) < HARD:
        return [f'the net was trained with the labels of {config}, not with hard ones; {ADVICE}']
    return []


def _doubts_of_images(report: Report, classifier: Classifier, data_dir: str | None) -> list[str]:
    """Whether these may be images that the net was trained on."""
    settings: Mapping[str, Any] = classifier.training.settings if classifier.training else {}
    where, split = settings.get('data_dir') or settings.get('data'), report.data.split or ''
    same = isinstance(where, str) and data_dir and Path(where).resolve() == Path(data_dir).resolve()
    named = {split.lower(), folder_name(data_dir).lower() if data_dir else ''}
    if named & {'train', 'training'} or (same and split == (settings.get('train_split') or 'train')):
        return ['these may be images that the net was trained on, of which it recognises more than of others']
    return []
