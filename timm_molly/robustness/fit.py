"""`timm_molly.fit`: how much surer a network is than right, and the label smoothing that would close the gap."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
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
from timm_molly.robustness.evaluate import How, evaluate, temperature
from timm_molly.robustness.images import Dataset, Images, seen_in_training
from timm_molly.robustness.render import margin
from timm_molly.robustness.report import Report
from timm_molly.tables import aligned
from timm_molly.training import smoothing_of

try:
    from scipy.optimize import minimize_scalar
    from scipy.stats import beta
except ImportError as error:
    raise needs('fitting', 'robustness', error) from None

POWERS = (0.05, 1000.0)
HARD = 100  # from this power on a label keeps its confidence nearly as far as anything can be recognised
SMALL = 0.02  # of a gap, in units of confidence; larger where few images leave more to chance
YOUNG = 0.5  # of clean images right: below it, a network may have just begun to learn
POOR = 0.05  # of the gap that the best powers leave, or that chance makes
SHOWN = (0.2, 0.4, 0.6, 0.8, 1.0)  # t in the table


@dataclass(frozen=True)
class Gap:
    """Confidence and accuracy of a network under noise, or under blur, at rising t.

    Attributes:
        degradation: 'noise' or 'blur'.
        num_classes: Number of classes K.
        t: In [0, 1], 0 for the clean images.
        confidence: Mean confidence c at each t.
        correct: Share of correct answers a at each t.
        share: Of the t that training draws, those nearest to each; they sum to 1, and say how much each gap counts.
        power: Label power whose smoothing gamma(t) comes nearest to closing the gap.
    """

    degradation: str
    num_classes: int
    t: tuple[float, ...]
    confidence: tuple[float, ...]
    correct: tuple[float, ...]
    share: tuple[float, ...]
    power: float

    @property
    def smoothing(self) -> NDArray[np.float64]:
        """The label smoothing that would close the gap at each t: `max(0, (c - a) / (c - 1 / K))`, at most 1.

        Smoothing by gamma turns a confidence c into `(1 - gamma) c + gamma / K`, which this makes equal to a.
        """
        gap, room = self.left(0.0), self._room
        found: NDArray[np.float64] = np.divide(gap, room, out=np.zeros_like(gap), where=room > 0)
        return np.asarray(found.clip(0, 1), np.float64)

    def left(self, gamma: ArrayLike) -> NDArray[np.float64]:
        """What a smoothing would leave of the gap at each t: `c - a - gamma (c - 1 / K)`."""
        gap = np.subtract(self.confidence, self.correct, dtype=np.float64)
        return np.asarray(gap - np.asarray(gamma, np.float64) * self._room, np.float64)

    @property
    def density(self) -> NDArray[np.float64]:
        """How often training draws t near each."""
        return np.asarray(self.share) / np.diff(_bounds(self.t))

    def gamma(self, t: ArrayLike, power: float | None = None) -> NDArray[np.float64]:
        """Smoothing at t of a label power, of the fitted one by default."""
        return _gamma(self.degradation, t, self.power if power is None else power)

    @property
    def _room(self) -> NDArray[np.float64]:
        return np.asarray(self.confidence) - 1 / self.num_classes


@dataclass(frozen=True)
class Fit:
    """The gap between a network's confidence and its accuracy, and what would close it.

    Attributes:
        report: What was measured of clean, noised and blurred images.
        gaps: By degradation.
        case: 'none' (no gap), 'constant' (the same smoothing would close it at every t), 'varying' (a smoothing that
            depends on t comes nearer), 'unsure' (the network is less sure than it is right) or 'mixed' (neither leaves
            less than half of it).
        left: What is left of the gap, as root mean square over the t that training draws: as it is ('none'), with one
            smoothing ('constant'), and with the powers ('varying').
        added: Smoothing that would close the gap at every t best, on top of the training's own.
        aa: The aa string to train with; None where the figures give no answer.
        smoothing: The --smoothing to train with; None likewise, and where the training's own is not known.
        temperature: The one that all logits can be divided by instead; None where none can be fitted.
        doubts: What speaks against it, a clause each.
        again: The aa string of a training without smoothing to fit next: with hard labels, where this one cannot tell,
            with ones that keep more confidence, where its own leave the network unsure, with the same, where it has not
            learnt yet; None where none is so.
        because: What `again` is for, a sentence.
    """

    report: Report
    gaps: Mapping[str, Gap]
    case: str
    left: Mapping[str, float]
    added: float
    aa: str | None
    smoothing: float | None
    temperature: float | None
    doubts: tuple[str, ...]
    again: str | None
    because: str | None

    @property
    def drawn(self) -> bool:
        """Whether there are labels that would close the gap, to print and to draw."""
        return self.case in ('constant', 'varying') and self.aa is not None

    def __str__(self) -> str:
        return f'{self._table()}\n\n{self._said()}'

    def save(self, folder: str | Path) -> None:
        """Write the report, fit.json (what is found, by the names of the attributes) and fit.png.

        Raises:
            UserError: The folder cannot be written, or matplotlib is missing.
        """
        folder = make_folder(Path(folder))
        self.report.save(folder, said=self._said())
        kept = {
            name: getattr(self, name)
            for name in ('case', 'aa', 'smoothing', 'temperature', 'added', 'again', 'because')
        }
        gaps = {
            name: {**{key: list(getattr(gap, key)) for key in ('t', 'confidence', 'correct')}, 'power': gap.power}
            | {'smoothing': [round(float(value), 6) for value in gap.smoothing]}
            for name, gap in self.gaps.items()
        }
        write_json(folder / 'fit.json', {**kept, 'left': dict(self.left), **gaps})
        save_figure(figures.fit(self.report, self), folder / 'fit.png')

    def _table(self) -> str:
        rows = [['', '', 'clean', *(f't = {t:g}' for t in SHOWN)]]
        for name, gap in self.gaps.items():
            lines: dict[str, ArrayLike] = {'confidence': gap.confidence, 'share correct': gap.correct}
            lines |= {'smoothing that closes it': gap.smoothing} if self.drawn else {}
            for label, values in lines.items():
                at = dict(zip(gap.t, np.asarray(values), strict=True))
                found = [f'{at[t]:.2f}' if t in at else '' for t in (0.0, *SHOWN)]
                rows.append([name if label == 'confidence' else '', label, *found])
        return aligned(rows)

    def _said(self) -> str:
        doubts = '\n'.join(f'But: {doubt}.' for doubt in self.doubts)
        return '\n\n'.join(part for part in (self._verdict(), doubts, self._advice()) if part)

    def _verdict(self) -> str:
        keep = '' if self.again else ' Keep its labels; after a longer training, fit again.'
        under = f'under {" and ".join(self.gaps)} as molly makes {"them" if len(self.gaps) > 1 else "it"}'
        if self.case == 'none' and self.left['none'] <= SMALL and not _few(self.report):
            return f'No gap: {under} the net is as sure as it is right, to {self.left["none"]:.3f}.{keep}'
        if self.case == 'none':
            left, images = self.left['none'], self.report.data.images
            return (
                f'No gap that {images} images can show: {under} confidence and share correct differ by {left:.3f} (rms '
                f'over the t that molly draws), and chance alone makes up to {_chance(self.report):.3f}.{keep}'
            )
        if self.case == 'unsure':
            by = f'by {-_mean(self.gaps):.3f} on average'
            return f'{under.capitalize()} the net is less sure than it is right, {by}.'
        if self.case == 'mixed':
            return (
                f'{under.capitalize()} confidence and share correct differ by {self.left["none"]:.3f} (rms over the t '
                f'that molly draws), in a way that neither one smoothing nor label powers would mend.'
            )
        of = f'a gap of {self.left["none"]:.3f} (rms over the t that molly draws)'
        begin = f'{under.capitalize()} the net is surer than it is right: {of}.'
        if not self.drawn:
            return begin
        powers = ', '.join(f'{gap.power:g} for {name}' for name, gap in self.gaps.items())
        constant = f'One smoothing of {self.added:.2g} at every t would leave {self.left["constant"]:.3f} of it'
        varying = f'label powers of {powers} {self.left["varying"]:.3f}'
        if self.case == 'varying':
            return f'{begin} {constant}, {varying}: the labels should depend on t.'
        if self.left['constant'] > self.left['varying']:
            small, images = self.left['constant'] <= SMALL, self.report.data.images
            varying = 'which is little' if small else f'no more than chance makes among {images} images'
        return f'{begin} {constant}, {varying}: the net is as much too sure at every t.'

    def _advice(self) -> str:
        if self.again:
            line = f'--aa {self.again} --smoothing 0'
            return f'Do this next: train with {line}, fit that, and compare their errors. {self.because}'
        by = self.temperature or 1.0
        divide = f'Do this next: divide the logits by {by:.3g}, the temperature that fits the same images best.'
        if self.aa is not None:
            flags = f'--aa {self.aa}'
            if self.smoothing is not None:
                flags += f' --smoothing {self.smoothing:g}'
            elif self.case == 'constant':
                flags += f', and with {self.added:.2g} more --smoothing than this time'
            if self.case == 'constant' and by > 1:
                return f'{divide} Training with {flags} would close the gap too, but in our study with a higher NLL.'
            return f'Train with: {flags}'
        if self.case == 'unsure' and by < 1:
            return divide
        longer = ' Training longer may help.' if self.case == 'unsure' else ''
        return f'No line to copy: these figures do not say what labels your data should have.{longer}'


def fit(
    model: nn.Module | Classifier,
    dataset: Dataset | Images,
    aa: str | None = None,
    seed: int = SEED,
    **how: Unpack[How],
) -> Fit:
    """Measure how sure and how right a classifier is of noised and blurred held-out images, and what closes the gap.

    It tells most of a network trained with hard labels on the same noise and blur: `--aa molly-k100 --smoothing 0`. It
    looks at confidence alone: of two trainings keep the one with fewer errors, which `compare` shows.

    Args:
        model: As of `evaluate`.
        dataset: As of `evaluate`; images that the model was not trained on.
        aa: Of its training; None for the one that the classifier names.
        seed: Of the noise.
        **how: As of `evaluate`: batch_size, workers, device, amp, cache, progress.

    Returns:
        `print` shows the gap, doubts and what to train with; `save` writes them with pictures.

    Raises:
        UserError: As of `evaluate`; or the model gave logits that are not finite.
    """
    classifier = Classifier.of(model)
    if aa:
        classifier = dataclasses.replace(classifier, aa=aa)
    report = evaluate(classifier, dataset, Mollification(aa, seed=seed), **how)
    running: Any = {key: value for key, value in how.items() if key not in ('cache', 'command')}
    return fit_report(report, classifier, temperature(classifier, dataset, **running))


def fit_report(
    report: Report, classifier: Classifier, temperature: float | None = None, data_dir: str | None = None
) -> Fit:
    """Say what closes the gap that a report of mollification shows.

    Args:
        report: The report.
        classifier: What was measured; `aa` is that of its training.
        temperature: Fitted on the same images.
        data_dir: Folder of the images, by which those of the training are known again.

    Raises:
        UserError: The model gave logits that are not finite.
    """
    if report.not_finite:
        raise UserError(f'the model gave logits that are not finite in {", ".join(report.not_finite)}')
    config, rest = split_aa(classifier.aa) if classifier.aa else (None, None)
    gaps = {name: fit_gap(name, report, config or MollyConfig()) for name in report.names}
    added = _constant(gaps)
    left = {
        'none': _rms(gaps, lambda gap: 0.0),
        'constant': _rms(gaps, lambda gap: added),
        'varying': _rms(gaps, lambda gap: gap.gamma(gap.t)),
    }
    case = _case(left, gaps, max(SMALL, _chance(report)))
    settings: Mapping[str, Any] = classifier.training.settings if classifier.training else {}
    smoothing = own = smoothing_of(settings)
    if own is not None and case == 'constant':
        smoothing = round(1 - (1 - own) * (1 - added), 2)
    best = config or MollyConfig()
    plain = config is None and bool(classifier.aa or settings)
    untold = _untold(config, plain, case)
    right = next(iter(gaps.values())).correct[0]
    guesses = right <= 1 / report.data.num_classes + _chance(report)
    again = best if guesses else _again(best, bool(untold), case, own)
    if case == 'varying':
        powers = {f'{name}_power': gap.power for name, gap in gaps.items()}
        best = dataclasses.replace(best, weighted=False, **powers)  # type: ignore[arg-type]
    doubts = ([untold] if untold else []) + _doubts_of_images(report, classifier, data_dir)
    if right < YOUNG and not guesses and case != 'none':
        doubts.append(
            f'only {100 * right:.1f} % of the clean images are right: after a longer training this may differ'
        )
    if case != 'none' and _few(report):
        doubts.append(f'{report.data.images} images are few: chance alone makes up to {_chance(report):.3f}')
    if case == 'varying' and left['varying'] > POOR:
        doubts.append(f'even the best powers leave a gap of {left["varying"]:.3f}')
    answered = not untold and not guesses and case not in ('unsure', 'mixed')
    because = 'It shows what your data need.' if untold else 'Its labels keep more confidence.' if again else None
    if guesses:
        because = 'This one is hardly better than guessing, so train longer.'
    return Fit(
        report=report,
        gaps=gaps,
        case=case,
        left=left,
        added=added,
        aa=_line(best, rest) if answered else None,
        smoothing=smoothing if answered else None,
        temperature=temperature,
        doubts=tuple(doubts),
        again=_line(again, rest) if again else None,
        because=because,
    )


def fit_gap(degradation: str, report: Report, config: MollyConfig) -> Gap:
    """Take the gap under one degradation, and find the power whose smoothing leaves least of it.

    Args:
        degradation: 'noise' or 'blur'.
        report: Of mollification.
        config: Of the training; a gap counts as often as it draws such t, for no label changes what is never drawn.
    """
    cells = {**report.at('clean'), **report.at(degradation)}
    confidence = tuple(cell.confidence for cell in cells.values())
    correct = tuple(1 - cell.error for cell in cells.values())
    share = tuple(np.diff(beta.cdf(_bounds(tuple(cells)), config.alpha, config.beta)).tolist())
    gap = Gap(degradation, report.data.num_classes, tuple(cells), confidence, correct, share, 1.0)

    def left(power: float) -> float:
        return _rms({degradation: gap}, lambda gap: gap.gamma(gap.t, power))

    # On a coarse grid first: far from the answer the gap hardly depends on the power, and a search could stop there.
    grid = np.geomspace(*POWERS, 200)
    best = int(np.argmin([left(power) for power in grid]))
    bounds = np.log(grid[max(best - 1, 0)]), np.log(grid[min(best + 1, len(grid) - 1)])
    found = minimize_scalar(lambda log_power: left(np.exp(log_power)), bounds=bounds, method='bounded')
    return dataclasses.replace(gap, power=float(f'{np.exp(found.x):.3g}'))


def _bounds(t: tuple[float, ...]) -> NDArray[np.float64]:
    """The ends of what is nearest to each t."""
    return np.asarray([0, *(np.add(t[1:], t[:-1]) / 2), 1], np.float64)


def _constant(gaps: Mapping[str, Gap]) -> float:
    """The smoothing, the same at every t, that leaves the smallest root mean square of the gap."""
    share = np.concatenate([each.share for each in gaps.values()])
    gap = np.concatenate([each.left(0.0) for each in gaps.values()])
    room = np.concatenate([each.left(0.0) - each.left(1.0) for each in gaps.values()])
    return float(np.clip(share * gap @ room / max(share * room @ room, 1e-12), 0, 0.99))


def _case(left: Mapping[str, float], gaps: Mapping[str, Gap], small: float) -> str:
    if left['none'] <= small:
        return 'none'
    clean = next(iter(gaps.values())).left(0.0)[0]  # at t = 0, which all share
    if -_mean(gaps) > left['none'] / 2 and clean <= small:
        return 'unsure'
    if min(left['constant'], left['varying']) > left['none'] / 2:
        return 'mixed'
    return 'constant' if left['constant'] <= max(small, left['varying']) else 'varying'


def _chance(report: Report) -> float:
    """What chance makes of a gap."""
    return margin(0.5, report.data.images)


def _few(report: Report) -> bool:
    return _chance(report) > POOR


def _mean(gaps: Mapping[str, Gap]) -> float:
    return float(np.mean([np.dot(gap.share, gap.left(0.0)) for gap in gaps.values()]))


def _rms(gaps: Mapping[str, Gap], gamma: Callable[[Gap], ArrayLike]) -> float:
    """Root mean square, over the t of training, of what a smoothing leaves of the gaps."""
    return float(np.sqrt(np.mean([np.dot(gap.share, gap.left(gamma(gap)) ** 2) for gap in gaps.values()])))


def _gamma(degradation: str, t: ArrayLike, power: float) -> NDArray[np.float64]:
    config = MollyConfig(noise_power=power, blur_power=power)
    at = torch.as_tensor(np.asarray(t), dtype=torch.float64)
    return np.asarray(config.gamma(degradation[0], at).numpy(), np.float64)


def _untold(config: MollyConfig | None, plain: bool, case: str) -> str | None:
    """Why a training cannot tell what labels the data need; None where it can."""
    if plain:
        return 'the net was trained without molly, so it shows what noise does to a net that never saw any'
    if config is None:
        return 'nothing says whether the net was trained with molly (--aa says it)'
    if case in ('varying', 'mixed') and config.weighted:
        return f'the net was trained with {config}, which leaves out of the loss what is ruined'
    if case in ('varying', 'mixed') and not _hard(config):
        return f'the net was trained with the labels of {config}, not with hard ones'
    return None


def _again(config: MollyConfig, untold: bool, case: str, smoothing: float | None) -> MollyConfig | None:
    """What to train with, without smoothing, and fit next; None where this training has told all it can."""
    hard = dataclasses.replace(config, weighted=False, noise_power=HARD, blur_power=HARD)
    if untold:
        return hard
    if case != 'unsure' or (_hard(config) and not smoothing):
        return None
    if smoothing:  # the same without it
        return config
    if _power(config) >= 2:  # not step by step: each is a training
        return hard
    return dataclasses.replace(config, noise_power=2 * config.noise_power, blur_power=2 * config.blur_power)


def _line(config: MollyConfig, rest: str | None) -> str:
    """The aa string with which the rest of a recipe stays."""
    return f'{config}+{rest}' if rest else str(config)


def _hard(config: MollyConfig) -> bool:
    """Whether labels keep their confidence."""
    return config.weighted or _power(config) >= HARD


def _power(config: MollyConfig) -> float:
    """The smallest label power of the roles that there are."""
    return min(power for role, power in (('n', config.noise_power), ('b', config.blur_power)) if role in config.roles)


def _doubts_of_images(report: Report, classifier: Classifier, data_dir: str | None) -> list[str]:
    """Whether these may be images that the net was trained on."""
    if seen_in_training(classifier, data_dir, report.data.split):
        return ['these may be images that the net was trained on, of which it is righter than of others']
    return []
