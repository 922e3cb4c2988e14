"""The report of a measured classifier: typed, saved as JSON and loaded again. What can be computed from it is."""

from __future__ import annotations

import importlib.metadata
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch

from timm_molly.config import MollyConfig
from timm_molly.errors import UserError, hint
from timm_molly.files import make_folder, read_json, write_json, write_text
from timm_molly.plain import from_plain, short
from timm_molly.robustness import render
from timm_molly.robustness.corruptions.names import ALL, BAR, COMMON, GROUPS, SEVERITIES
from timm_molly.robustness.mce import mean_corruption_error, relative_mean_corruption_error
from timm_molly.training import is_run

SCHEMA = 'timm-molly/robustness'
VERSION = 1
FILE = 'report.json'
MAX_BYTES = 2**24
PACKAGES = ('timm-molly', 'timm', 'torch', 'torchvision', 'numpy', 'pillow', 'imagecorruptions-imaug', 'opencv-python')
BIN_COUNT = 15

# Where a cell is: ('clean', 0), ('fog', 3), or ('noise', 0.25) for noise of mollification at t.
Place = tuple[str, float]
CLEAN: Place = ('clean', 0)


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Figures of a classifier; NaN where the logits of an image were not finite.

    Attributes:
        error: Share of images that are taken for another class, in [0, 1].
        nll: Mean of -log p(label), in nats.
        brier: Mean of sum_k (p_k - [k is the label])**2, in [0, 2].
        ece: Expected calibration error of 15 equal-width bins, in [0, 1].
        confidence: Mean of the largest probability, in [0, 1].
        adaptive_ece: As ece, of 15 bins of as many images each.
        aurc: Area under the risk-coverage curve, in [0, 1].
        e_aurc: By how much it exceeds that of the best ranking.

    The last three are NaN in reports of before they were measured.
    """

    error: float
    nll: float
    brier: float
    ece: float
    confidence: float
    adaptive_ece: float = math.nan
    aurc: float = math.nan
    e_aurc: float = math.nan

    @classmethod
    def mean(cls, of: Iterable[Metrics]) -> Metrics:
        """Average each figure; NaN where one has none, or where there are none."""
        rows = list(of)
        return cls(**{name: fmean(getattr(row, name) for row in rows) if rows else math.nan for name in METRICS})

    def __getitem__(self, metric: str) -> float:
        """A figure by its name, for tables and plots that go over `METRICS`."""
        if metric not in METRICS:
            raise KeyError(metric)
        return float(getattr(self, metric))

    def figures(self) -> dict[str, float | None]:
        """The figures for JSON, None for NaN; of those that not every report has, the ones that are known."""
        known = {name: None if math.isnan(self[name]) else self[name] for name in METRICS}
        return {name: value for name, value in known.items() if value is not None or name not in RANKING}


METRICS = tuple(each.name for each in fields(Metrics))
RANKING = ('adaptive_ece', 'aurc', 'e_aurc')
LIMITS = {**dict.fromkeys(METRICS, 1.0), 'nll': math.inf, 'brier': 2.0}


@dataclass(frozen=True)
class Bins:
    """The 15 equal-width bins (low, high] of the confidence, which reliability is drawn from.

    Attributes:
        images: Number of images in each.
        correct: Number of those that are right.
        confidence: Sum of their confidences.
    """

    images: tuple[float, ...]
    correct: tuple[float, ...]
    confidence: tuple[float, ...]


@dataclass(frozen=True)
class Scaled:
    """Figures after the logits were divided by a temperature.

    Attributes:
        nll: As of `Metrics`.
        ece: As of `Metrics`.
    """

    nll: float
    ece: float


@dataclass(frozen=True, kw_only=True)
class Cell(Metrics):
    """What was measured of one corruption at one severity, or of one degradation at one t.

    Attributes:
        images: Number of images.
        bins: By confidence; None where logits were not finite.
        labels: sha256 of the labels in order, by which cells of the same images are known.
        not_finite: Number of images whose logits were not finite.
        scaled: After each of the report's temperatures, 'clean' and 'trained', where they were fitted.
    """

    images: int
    bins: Bins | None
    labels: str
    not_finite: int = 0
    scaled: Mapping[str, Scaled] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The cell for JSON."""
        counted = {'not_finite': self.not_finite} if self.not_finite else {}
        bins = {key: list(row) for key, row in asdict(self.bins).items()} if self.bins else None
        scaled = {'scaled': {by: asdict(each) for by, each in self.scaled.items()}} if self.scaled else {}
        return {'images': self.images, **counted, **self.figures(), **scaled, 'bins': bins, 'labels': self.labels}

    @classmethod
    def from_dict(cls, found: object, where: object) -> Cell:
        """Read a cell.

        Raises:
            UserError: It is not one, or its figures cannot be.
        """
        if not isinstance(found, Mapping):
            raise UserError(f'{where} must be a mapping, got {short(found)}')
        values = {**found}
        if values.get('bins') is None:  # of logits that were not finite
            values |= {name: 0.0 for name in METRICS if values.get(name, 0) is None}
        cell = from_plain(cls, values, where)
        if cell.bins is None:
            nan: dict[str, Any] = dict.fromkeys(METRICS, math.nan)
            return replace(cell, **nan)
        for name, limit in LIMITS.items():
            # Sums of floats may end a little beyond.
            if not -1e-9 <= cell[name] <= limit + 1e-9 and not (name in RANKING and math.isnan(cell[name])):
                raise UserError(f'{where}: {name} must be from 0 to {limit:g}, got {cell[name]}')
        for row in (cell.bins.images, cell.bins.correct, cell.bins.confidence):
            if len(row) != BIN_COUNT or min(row) < 0:
                raise UserError(f'{where}: bins must be {BIN_COUNT} numbers from 0 on each, got {short(row)}')
        if cell.images < 1:
            raise UserError(f'{where}: images must be 1 or more, got {cell.images}')
        return cell


@dataclass(frozen=True)
class ModelRecord:
    """What was measured.

    Attributes:
        name: timm's name of the network, or its class.
        checkpoint: Last two parts of the checkpoint's path, or None.
        ema: Whether these are EMA weights.
        aa: The --aa of the training, where it is known.
        parameters: Number of them.
        num_classes: Number of logits K.
        sha256: Fingerprint of the weights.
        input_size: Channels, height and width.
        mean: Mean and
        std: standard deviation, a number a channel or one for all, that images were normalised with.
        crop_pct: Share of the resized side that the crop keeps.
        crop_mode: timm's name of the way of cropping.
        interpolation: timm's name of the filter for resizing.
        device: Type of the device.
        amp: dtype of mixed precision, or None.
    """

    name: str
    checkpoint: str | None
    ema: bool
    aa: str | None
    parameters: int
    num_classes: int
    sha256: str
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: str
    interpolation: str
    device: str
    amp: str | None

    @property
    def label(self) -> str:
        """A name for tables and legends."""
        return f'{self.name} {self.checkpoint}' if self.checkpoint else self.name


@dataclass(frozen=True)
class BenchmarkRecord:
    """What it was measured on, by kind.

    Attributes:
        kind: 'on the fly' (corrupted as read), 'official' (a published set) or 'mollification'.
        table: Strengths of corruption on the fly.
        name: Folder of a published set, and
        crop_pct: the crop of its images.
        roles: Degradations of mollification, 'b', 'n' or 'bn', and
        min_scale: its smallest blur in pixels.
        seed: Of what is drawn.
        image_size: Height and width in pixels.
        corruptions: Names, in order.
        severities: In order.
        taught: aa string of the label schedule that is shown beside, or None, and
        smoothing: label smoothing of that training, None where it is not known.
    """

    kind: Literal['on the fly', 'official', 'mollification']
    table: str | None = None
    name: str | None = None
    crop_pct: float | None = None
    roles: str | None = None
    min_scale: float | None = None
    seed: int | None = None
    image_size: tuple[int, int] | None = None
    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = ()
    taught: str | None = None
    smoothing: float | None = None

    @property
    def mollified(self) -> bool:
        """Whether it is noise and blur of mollification."""
        return self.kind == 'mollification'

    def to_dict(self) -> dict[str, Any]:
        """The record for JSON, without what is of other kinds."""
        values = {key: value for key, value in asdict(self).items() if value not in (None, ())}
        if self.mollified:
            values['taught'] = self.taught
        return values


@dataclass(frozen=True)
class DataRecord:
    """The images.

    Attributes:
        dataset: Their name: timm's, that of the folder, or of the Python class; None where there are no clean ones.
        split: timm's name of the split.
        images: Number of them in each cell.
        num_classes: Number of classes K.
        class_map: Whether a class map said which classes the folders are.
        labels: sha256 of the labels in order.
        subset: The part of them that was measured, by name; None for all.
    """

    dataset: str | None
    split: str | None
    images: int
    num_classes: int
    class_map: bool
    labels: str
    subset: str | None = None


@dataclass(frozen=True)
class Temperatures:
    """What all logits can be divided by, fitted by NLL on held-out images.

    Attributes:
        clean: Fitted on the clean ones, and
        trained: on the same as training saw them: clean, noised and blurred by the law of
        aa: this aa string.
        split: timm's name of the held-out split, or None.
        images: Number of them.
    """

    clean: float
    trained: float
    aa: str
    split: str | None
    images: int


@dataclass(frozen=True)
class Report:
    """What was measured of a classifier.

    `report.clean`, `report.mean`, `report.groups['noise']`, `report.corruptions['fog']` and `report['fog', 3]` hold
    figures by name (`error`, `nll`, `brier`, `ece`, `confidence`); `print(report)` shows the table.

    Attributes:
        model: What was measured.
        benchmark: On what.
        data: With which images.
        cells: What came out, by place: ('clean', 0), ('fog', 3), ('noise', 0.25).
        packages: Versions of those that a figure could depend on.
        command: The command line that made it, '' for none.
        temperatures: Fitted on held-out images, where there were any.
    """

    model: ModelRecord
    benchmark: BenchmarkRecord
    data: DataRecord
    cells: Mapping[Place, Cell]
    packages: Mapping[str, str]
    command: str = ''
    temperatures: Temperatures | None = None

    def __getitem__(self, place: Place) -> Cell:
        try:
            return self.cells[place]
        except KeyError:
            name = place[0] if isinstance(place, tuple) and place else place
            levels = ', '.join(f'{level:g}' for of, level in self.cells if of == name)
            near = f': {name} was measured at {levels}' if levels else hint(str(name), [of for of, _ in self.cells])
            raise KeyError(f'no figures of {place!r}{near}') from None

    def __contains__(self, place: object) -> bool:
        return place in self.cells

    def __iter__(self) -> Iterator[Place]:
        return iter(self.cells)

    def __len__(self) -> int:
        return len(self.cells)

    def __str__(self) -> str:
        return render.text(self)

    def __repr__(self) -> str:
        return f'<Report of {render.title(self)}>'

    @property
    def clean(self) -> Cell:
        """What was measured of the clean images.

        Raises:
            UserError: They were not measured, as of a published set without them.
        """
        if CLEAN not in self.cells:
            raise UserError(f'{render.title(self)}: the clean images were not measured')
        return self.cells[CLEAN]

    @property
    def corrupted_set(self) -> str | None:
        """Name of a published set: its folder's, or after its images where that is no more than 'corrupted'."""
        name, images = self.benchmark.name, self.data.dataset
        return f'{images}-corrupted' if name == 'corrupted' and images else name

    @cached_property
    def names(self) -> list[str]:
        """Corruptions or degradations, in order."""
        return list(dict.fromkeys(name for name, _ in self.cells if name != 'clean'))

    def at(self, name: str) -> dict[float, Cell]:
        """The cells of a corruption by severity, or of a degradation by t; of 'clean' by 0."""
        return {level: cell for (each, level), cell in self.cells.items() if each == name}

    @cached_property
    def corruptions(self) -> dict[str, Metrics]:
        """Means over the severities by corruption."""
        return {name: Metrics.mean(self.at(name).values()) for name in self.names}

    @cached_property
    def groups(self) -> dict[str, Metrics]:
        """Means over the common corruptions of a group (noise, blur, weather, digital) that were measured."""
        members = {group: [name for name in of if name in self.corruptions] for group, of in GROUPS.items()}
        return {group: Metrics.mean(map(self.corruptions.__getitem__, of)) for group, of in members.items() if of}

    @cached_property
    def mean(self) -> Metrics:
        """Mean over the common corruptions that were measured; NaN where none was."""
        return Metrics.mean(self.corruptions[name] for name in COMMON if name in self.corruptions)

    @cached_property
    def bar(self) -> Metrics:
        """Mean over the corruptions of C-bar that were measured, which go into no other mean; NaN where none was."""
        return Metrics.mean(self.corruptions[name] for name in BAR if name in self.corruptions)

    def scaled(self, by: str) -> Report:
        """The report after one temperature, with its NLL and ECE. The other figures that it changes are NaN.

        Args:
            by: What it was fitted on, 'clean' or 'trained' (`Temperatures`).

        Raises:
            UserError: No temperature was fitted.
        """
        if self.temperatures is None or by not in render.SCALED:
            raise UserError(f'{render.title(self)}: no temperature {by!r} was fitted (--calibrate)')
        gone: dict[str, Any] = dict.fromkeys(('brier', 'confidence', 'adaptive_ece', 'aurc', 'e_aurc'), math.nan)
        none = Scaled(math.nan, math.nan)
        cells = {
            place: replace(cell, **gone, **asdict(cell.scaled.get(by, none)), bins=None, scaled={})
            for place, cell in self.cells.items()
        }
        return replace(self, cells=cells, temperatures=None)

    @property
    def has_mce(self) -> bool:
        """Whether mCE has a meaning: all severities with the strengths of ImageNet-C, and ImageNet's 1000 classes."""
        whole = self.benchmark.severities == SEVERITIES and self.data.num_classes == 1000 and not self.data.class_map
        return whole and (self.benchmark.table == 'imagenet-c' or self.benchmark.kind == 'official')

    @property
    def mce(self) -> float | None:
        """Mean corruption error, AlexNet's being 1; None where it has no meaning or a corruption has no error."""
        errors = {name: metrics.error for name, metrics in self.corruptions.items()}
        if not self.has_mce or not {*COMMON} <= errors.keys():
            return None
        return _known(mean_corruption_error(errors))

    @property
    def relative_mce(self) -> float | None:
        """Relative mCE, AlexNet's being 1; None as `mce`, and without the clean images."""
        if self.mce is None or CLEAN not in self.cells:
            return None
        errors = {name: metrics.error for name, metrics in self.corruptions.items()}
        return _known(relative_mean_corruption_error(errors, self.clean.error))

    @property
    def not_finite(self) -> list[str]:
        """Cells in which logits were not finite: 'fog 3'."""
        return [place_name(place) for place, cell in self.cells.items() if math.isnan(cell.error)]

    @cached_property
    def taught(self) -> dict[str, dict[float, float]] | None:
        """Confidence of the label by degradation and t, 0 for clean, as `benchmark` says; None without a schedule."""
        if self.benchmark.taught is None:
            return None
        config = MollyConfig.from_string(self.benchmark.taught)
        t = torch.tensor([0.0, *self.at(self.names[0])], dtype=torch.float64)
        how = self.data.num_classes, self.benchmark.smoothing or 0.0
        return {
            name: dict(zip(t.tolist(), config.confidence(name[0], t, *how).tolist(), strict=True))
            for name in self.names
        }

    def to_dict(self) -> dict[str, Any]:
        """The report as report.json has it, means included."""
        levels: dict[str, dict[str, Any]] = {}
        for (name, level), cell in self.cells.items():
            if name != 'clean':
                levels.setdefault(name, {})[f'{level:g}'] = cell.to_dict()
        values = {
            'schema': SCHEMA,
            'version': VERSION,
            'model': plain(self.model),
            'benchmark': json.loads(json.dumps(self.benchmark.to_dict())),
            'data': {key: value for key, value in plain(self.data).items() if key != 'subset' or value},
            'packages': dict(self.packages),
            'command': self.command,
            'clean': self.cells[CLEAN].to_dict() if CLEAN in self.cells else None,
            'cells': levels,
            'not_finite': self.not_finite,
            **({'temperatures': plain(self.temperatures)} if self.temperatures else {}),
        }
        if self.benchmark.mollified:
            shown = {name: {f'{t:g}': c for t, c in by.items()} for name, by in (self.taught or {}).items()}
            return {**values, 'taught': shown if self.taught is not None else None}
        summary: dict[str, Any] = {
            'corruptions': {name: metrics.figures() for name, metrics in self.corruptions.items()},
            'groups': {name: metrics.figures() for name, metrics in self.groups.items()},
            'mean': self.mean.figures(),
            **({'bar': self.bar.figures()} if {*BAR} & self.corruptions.keys() else {}),
        }
        if self.temperatures:
            summary['scaled'] = {by: _scaled_summary(self.scaled(by)) for by in render.SCALED}
        mce = {'mCE': self.mce, 'relative_mCE': self.relative_mce} if self.has_mce else {}
        return {**values, 'summary': {**summary, **mce}}

    @classmethod
    def from_dict(cls, found: object, where: object = 'the report') -> Report:
        """Read a report from plain values. Means in it are passed over: they follow from the cells.

        Raises:
            UserError: It is no report, of another version, or not whole (what).
        """
        if not isinstance(found, Mapping) or found.get('schema') != SCHEMA:
            raise UserError(f'{where} is not a report of timm-molly validate')
        if found.get('version') != VERSION:
            raise UserError(
                f'{where} has version {found.get("version")} of the schema; this timm-molly reads {VERSION}'
            )
        try:
            report = cls(
                from_plain(ModelRecord, found.get('model'), 'model'),
                from_plain(BenchmarkRecord, found.get('benchmark'), 'benchmark'),
                from_plain(DataRecord, found.get('data'), 'data'),
                _cells(found),
                **vars(from_plain(_Rest, found, 'it')),
            )
            report.check()
        except UserError as error:
            raise UserError(f'{where} is not a whole report: {error}') from None
        return report

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Load a report.json, or the one in a folder.

        Raises:
            UserError: There is none, or it is not a whole report of this version.
        """
        path = Path(path)
        if is_run(path) and not any((path / name).exists() for name in (FILE, 'config.json')):  # of the Hub's folders
            raise UserError(
                f'{path} is a training, not a report: measure it with timm-molly validate {path} --data-dir IMAGES'
            )
        path = path / FILE if path.is_dir() else path
        if path.is_file() and path.suffix != '.json':
            raise UserError(f'{path} is no {FILE}: give that file, or the folder that it is in')
        return cls.from_dict(read_json(path, 'report', MAX_BYTES), path)

    def save(self, folder: str | Path, pictures: bool = True, said: str = '') -> list[str]:
        """Save report.json, .csv, .md, .html and the pictures, each whole or not at all; return the pictures' names.

        Args:
            folder: It is made where it is not there yet.
            pictures: Draw too, and write the page, which need matplotlib and Bokeh.
            said: What else the pages say.

        Raises:
            UserError: The folder cannot be written, or a package is missing.
        """
        from timm_molly.robustness import figures, html

        folder = make_folder(Path(folder))
        write_json(folder / FILE, self.to_dict())
        write_text(folder / 'report.csv', render.csv(self))
        names = figures.save_all(self, folder) if pictures else []
        if pictures:
            write_text(folder / 'report.html', html.page([self], [self.model.label], said))
        write_text(folder / 'report.md', render.page(self, names, said))
        return names

    def check(self) -> None:
        """Check that the cells are those that the benchmark says.

        Raises:
            UserError: They are not.
        """
        if self.data.images < 1 or self.data.num_classes < 1 or self.model.num_classes < 1:
            raise UserError(f'images and classes must be 1 or more, got {self.data.images}, {self.data.num_classes}')
        found = {*self.cells} - {CLEAN}
        if self.benchmark.mollified:
            if self.benchmark.taught is not None:
                MollyConfig.from_string(self.benchmark.taught)
            if not 0 <= (self.benchmark.smoothing or 0) <= 1:
                raise UserError(f'label smoothing must be in [0, 1], got {self.benchmark.smoothing}')
            names = [name for name in ('noise', 'blur') if name[0] in (self.benchmark.roles or '')]
            wanted = {(name, t) for name in names for t in {level for _, level in found}}
        else:
            unknown = {*self.benchmark.corruptions} - {*ALL}
            if unknown or not {*self.benchmark.severities} <= {*SEVERITIES}:
                raise UserError(f'no such corruptions or severities: {short(self.benchmark.to_dict())}')
            wanted = {(name, float(s)) for name in self.benchmark.corruptions for s in self.benchmark.severities}
        if found != wanted or not wanted:
            different = sorted(map(place_name, found ^ wanted))
            raise UserError(f'its cells are not those of its benchmark: {", ".join(different[:5]) or "there are none"}')
        if any(cell.images != self.data.images for cell in self.cells.values()):
            raise UserError(f'a cell has other than {self.data.images} images')


@dataclass(frozen=True)
class _Rest:
    packages: dict[str, str]
    command: str
    temperatures: Temperatures | None = None


def place_name(place: Place) -> str:
    """A place in words: 'clean', 'fog 3', 'noise 0.25'."""
    name, level = place
    return name if name == 'clean' else f'{name} {level:g}'


def packages() -> dict[str, str]:
    """Versions of the packages that a figure could depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if 'timm' in sys.modules:  # which may be a checkout, beside train.py
        found['timm'] = sys.modules['timm'].__version__
    return found


def differences(a: Any, b: Any, prefix: str = '') -> list[str]:
    """Say where two nested records of plain values differ: 'benchmark.table: "cifar-c", "imagenet-c"'."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = sorted({*a, *b})
        return [line for key in keys for line in differences(a.get(key), b.get(key), f'{prefix}{key}.')]
    return [] if a == b else [f'{prefix[:-1]}: {_json(a)}, {_json(b)}']


def plain(record: Any) -> dict[str, Any]:
    """A dataclass as JSON has it, tuples as lists."""
    return dict(json.loads(json.dumps(asdict(record))))


def _cells(found: Mapping[str, Any]) -> dict[Place, Cell]:
    levels = found.get('cells')
    if not isinstance(levels, Mapping) or not all(isinstance(of, Mapping) for of in levels.values()):
        raise UserError(f'cells must be a mapping of mappings, got {short(levels)}')
    cells = {} if found.get('clean') is None else {CLEAN: Cell.from_dict(found['clean'], 'clean')}
    for name, of in levels.items():
        for level, cell in of.items():
            try:
                place = str(name), float(level)
            except ValueError:
                raise UserError(f'{name} has {level!r}, which is no severity and no t') from None
            cells[place] = Cell.from_dict(cell, place_name(place))
    return cells


def _scaled_summary(report: Report) -> dict[str, Any]:
    """NLL and ECE of the means, of a report after a temperature."""

    def two(metrics: Metrics) -> dict[str, float | None]:
        return {name: _known(metrics[name]) for name in ('nll', 'ece')}

    return {
        'corruptions': {name: two(metrics) for name, metrics in report.corruptions.items()},
        'groups': {name: two(metrics) for name, metrics in report.groups.items()},
        'mean': two(report.mean),
        **({'bar': two(report.bar)} if {*BAR} & report.corruptions.keys() else {}),
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _json(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
