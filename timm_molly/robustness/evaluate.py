"""`timm_molly.evaluate`: a classifier measured under conditions, cell by cell."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor, nn

from timm_molly.classifier import Classifier, evaluating
from timm_molly.errors import UserError
from timm_molly.progress import bar
from timm_molly.robustness.cache import Store
from timm_molly.robustness.conditions import SEED, Condition, Conditions, common, held_out
from timm_molly.robustness.corruptions import transforms
from timm_molly.robustness.images import Dataset, Images, check_apart, images_of, same_labels
from timm_molly.robustness.loading import Loader, cores
from timm_molly.robustness.metrics import Calibration
from timm_molly.robustness.report import (
    BenchmarkRecord,
    Cell,
    DataRecord,
    ModelRecord,
    Place,
    Report,
    Scaled,
    Temperatures,
    packages,
    plain,
)
from timm_molly.robustness.temperature import NoTemperatureError, fit_temperature
from timm_molly.weights import one_line

if TYPE_CHECKING:
    import tqdm

_logger = logging.getLogger(__name__)

WAIT = 1.0  # seconds, until it is asked again whether other processes have finished


class RunHow(TypedDict, total=False):
    """How a network is run: arguments of `evaluate` and `temperature`."""

    batch_size: int
    workers: int
    device: torch.device | str | None
    amp: torch.dtype | None
    progress: bool


class How(RunHow, total=False):
    """How a measurement is run: arguments of `evaluate`."""

    cache: str | Path | None
    command: str


@dataclass(frozen=True)
class Running:
    """A measurement that runs."""

    classifier: Classifier
    batch_size: int
    workers: int
    amp: torch.dtype | None

    @property
    def device(self) -> torch.device:
        return self.classifier.device


def evaluate(
    model: nn.Module | Classifier,
    dataset: Dataset | Images | None = None,
    conditions: Conditions | None = None,
    *,
    batch_size: int = 256,
    workers: int = 4,
    device: torch.device | str | None = None,
    amp: torch.dtype | None = None,
    calibrate: Dataset | Images | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
    command: str = '',
) -> Report:
    """Measure error, NLL, calibration and ranking of a classifier on clean and on corrupted images.

    By default under 15 common corruptions at five severities. An image's corruption depends on its place in the data
    set, the corruption, the severity and the seed alone.

    Args:
        model: A timm model, or a `Classifier`, which says of any other module how its images are prepared.
        dataset: By index (image, label): a PIL image or a uint8 array (H, W, 3), and a class from 0 on, such as a list,
            or a torchvision data set without transform. None for a published set without its clean images.
        conditions: `robustness.common(...)`, `bar(...)`, `Corruptions`, `Published` or `Mollification`.
        batch_size: Images a batch.
        workers: Processes that read and corrupt images, no more than there are cores; 0 for this one.
        device: Where it runs; the model's own if None. The model is where it was afterwards.
        amp: dtype of mixed precision, torch.bfloat16 say; None for none.
        calibrate: Held-out images, as `dataset`, on which two temperatures are fitted: what would NLL and ECE be with
            them? One for the clean images, one for the same noised and blurred as in training (`report.scaled`).
        cache: Folder in which each cell is kept when it is finished: the same call goes on where one was interrupted,
            and processes with the same call and folder share the cells.
        progress: Show a progress bar on stderr.
        command: Command line that the report names.

    Returns:
        The report: `report.clean.error`, `report.mean.ece`, `report['fog', 3].nll`, `report.save(...)`; `print` shows
        its table.

    Raises:
        UserError: The model, the images or a number will not do, or the folder holds another measurement.

    Example:
        >>> import numpy as np
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
        >>> classifier = Classifier(network, input_size=(3, 32, 32), mean=(0.5,), std=(0.5,))
        >>> pictures = [(np.full((32, 32, 3), 25 * i, np.uint8), i) for i in range(10)]
        >>> report = evaluate(classifier, pictures, common(severities=(3,)), workers=0, progress=False)
        >>> len(report.corruptions), report['fog', 3].images
        (15, 10)
    """
    classifier = Classifier.of(model)
    for name, value, low in (('batch_size', batch_size, 1), ('workers', workers, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise UserError(f'{name} must be {low} or more, got {value!r}')
    images = None if dataset is None else images_of(dataset, classifier.img_mode)
    if images is not None and not images.streamed and not len(images):
        raise UserError('the data set has no images')
    if images is not None and images.own_classes is not None:
        _note_classes(len(images.own_classes), classifier)
    with placed(classifier.model, device), evaluating(classifier.model):
        classifier.try_out()
        plan, benchmark = (conditions or common()).lay_out(images, classifier)
        same_labels([(condition, condition.images) for condition in plan])
        running = Running(classifier, batch_size, min(workers, cores()), amp)
        record = model_record(running)
        settings = {'model': plain(record), 'benchmark': plain_benchmark(benchmark), 'data': _place(images, conditions)}
        kept = None if calibrate is None else _held_out(calibrate, images, classifier)
        settings |= {'calibrate': kept.place()} if kept is not None else {}
        with closing(Store(cache, {**settings, 'packages': packages()}, classifier)) as store:
            temperatures = None if kept is None else _temperatures(store, running, kept, progress)
            _fill(store, running, plan, progress, temperatures)
    cells = {condition.place: store.cells[condition.place] for condition in plan}
    first, *others = plan
    for condition in others:
        if cells[condition.place].labels != cells[first.place].labels:
            raise UserError(f'{first} and {condition} have different labels, so they are not the same images')
    data = data_record(classifier, images, plan, cells)
    return Report(record, benchmark, data, cells, packages(), command, temperatures)


def _note_classes(classes: int, classifier: Classifier) -> None:
    """Say where a data set has another number of classes than the classifier."""
    if classes != classifier.num_classes:
        _logger.warning(
            'note: the data set names %d classes, %s has %d: are they the same ones, in the same order?',
            classes,
            classifier.name,
            classifier.num_classes,
        )


def model_record(running: Running) -> ModelRecord:
    """What the report says of the model."""
    classifier, amp = running.classifier, running.amp
    training = classifier.training
    return ModelRecord(
        name=classifier.name,
        checkpoint='/'.join(training.checkpoint.resolve().parts[-2:]) if training else None,
        ema=bool(training and training.ema),
        aa=classifier.aa,
        parameters=sum(p.numel() for p in classifier.model.parameters()),
        num_classes=classifier.num_classes,
        sha256=classifier.sha256,
        input_size=classifier.input_size,
        mean=classifier.mean,
        std=classifier.std,
        crop_pct=classifier.crop_pct,
        crop_mode=classifier.crop_mode,
        interpolation=classifier.interpolation,
        device=running.device.type,
        amp=str(amp).removeprefix('torch.') if amp else None,
    )


def data_record(
    classifier: Classifier, images: Images | None, plan: Sequence[Condition], cells: dict[Place, Cell]
) -> DataRecord:
    """What the report says of the images."""
    first = cells[plan[0].place]
    return DataRecord(
        dataset=images.name if images is not None else None,
        split=images.split if images is not None else None,
        images=first.images,
        num_classes=classifier.num_classes,
        class_map=plan[0].images.mapped,
        labels=first.labels,
        subset=plan[0].images.subset,
    )


def plain_benchmark(record: BenchmarkRecord) -> dict[str, Any]:
    """The record as JSON has it."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in record.to_dict().items()}


@contextmanager
def placed(model: nn.Module, device: torch.device | str | None) -> Iterator[None]:
    """Move a module to a device, and back afterwards.

    Raises:
        UserError: The device cannot be used.
    """
    if device is None:
        yield
        return
    before = next((p.device for p in model.parameters()), torch.device('cpu'))
    try:
        model.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:  # the latter from PyTorch without CUDA
        raise UserError(f'device {device} cannot be used: {one_line(error)} (--device)') from None
    try:
        yield
    finally:
        model.to(before)


def _place(images: Images | None, conditions: Conditions | None) -> dict[str, Any]:
    """What tells the images from others."""
    root = getattr(conditions, 'root', None)
    return {
        **(images.place() if images is not None else {}),
        'corrupted_dir': str(Path(root).resolve()) if root else None,
    }


def _held_out(dataset: Dataset | Images, measured: Images | None, classifier: Classifier) -> Images:
    """Take held-out images, and check that they are not measured."""
    images = images_of(dataset, classifier.img_mode)
    if measured is not None:
        check_apart(measured, images)
    return images


def temperature(
    model: nn.Module | Classifier,
    dataset: Dataset | Images,
    *,
    batch_size: int = 256,
    workers: int = 4,
    device: torch.device | str | None = None,
    amp: torch.dtype | None = None,
    progress: bool = True,
) -> float | None:
    """Fit one temperature for all logits of a classifier, to images noised and blurred as in its training.

    Args:
        model: This and the others as of `evaluate`.
        dataset: Images that it was not trained on.
        batch_size: Images a batch.
        workers: Processes that read images, no more than there are cores; 0 for this one.
        device: Where it runs.
        amp: dtype of mixed precision.
        progress: Show a progress bar on stderr.

    Returns:
        The temperature; None where none can be fitted, as of a network that is right on all of the images.

    Raises:
        UserError: The model or the images will not do.
    """
    classifier = Classifier.of(model)
    images = images_of(dataset, classifier.img_mode)
    with placed(classifier.model, device), evaluating(classifier.model):
        try:
            return _fit(Running(classifier, batch_size, min(workers, cores()), amp), images, progress).trained
        except NoTemperatureError:
            return None


def _temperatures(store: Store, running: Running, images: Images, progress: bool) -> Temperatures:
    """Fit temperatures on held-out images, or take those that the store has."""
    return store.temperatures(lambda: _fit(running, images, progress))


def _fit(running: Running, images: Images, progress: bool) -> Temperatures:
    """Fit temperatures on held-out images."""
    plan, config = held_out(images, running.classifier, SEED)
    logits: dict[str, list[Tensor]] = {condition.name: [] for condition in plan}
    labels = []
    with _working(running, plan, plan, progress) as bar:
        bar.set_postfix_str('for the temperature', refresh=False)
        for condition, of, target in logits_of(running, plan, bar):
            logits[condition.name].append(of.float().cpu())
            if condition.name == 'clean':
                labels.append(target.cpu())
    target = torch.cat(labels)
    found = {name: fit_temperature(torch.cat(of), target) for name, of in logits.items()}
    return Temperatures(**found, aa=str(config), split=images.split, images=len(target))


def _fill(
    store: Store, running: Running, plan: Sequence[Condition], progress: bool, temperatures: Temperatures | None
) -> None:
    """Measure the cells that are not there yet, and show progress."""
    while todo := [condition for condition in plan if not store.load(condition)]:
        finished = len(store.cells)
        with _working(running, plan, todo, progress) as bar:
            for condition, cell in measure(running, todo, bar, temperatures, store.claim):
                store.keep(condition, cell)
        if store.claimed:
            raise UserError('the data set has no images')
        if len(store.cells) == finished:  # other processes have what is left
            time.sleep(WAIT)
    store.clear_locks()


@contextmanager
def _working(
    running: Running, plan: Sequence[Condition], todo: Sequence[Condition], progress: bool
) -> Iterator[tqdm.tqdm[Any]]:
    """Show what is done of a plan, leave the workers their cores, and say what to do where memory ends."""
    images = [0 if condition.images.streamed else len(condition.images) for condition in plan]
    missing = [0 if condition.images.streamed else len(condition.images) for condition in todo]
    total, initial = sum(images) or None, sum(images) - sum(missing)
    shown = bar(total=total, initial=initial, unit='img', disable=not progress)
    with shown, _threads(running.workers), _said(running.workers):
        try:
            yield shown
        except (ConnectionError, EOFError):
            # The signal of a worker's death comes later than its broken pipe: let it come here.
            time.sleep(1 if running.workers else 0)
            raise


class Counter:
    """Counts the logits of one condition, as they are and after temperatures."""

    def __init__(self, num_classes: int, temperatures: Temperatures | None) -> None:
        self.metric, self.labels = Calibration(num_classes), hashlib.sha256()
        by = {'clean': temperatures.clean, 'trained': temperatures.trained} if temperatures else {}
        self.scaled = {name: (t, Calibration(num_classes)) for name, t in by.items()}

    def add(self, logits: Tensor, target: Tensor) -> None:
        self.metric.update(logits, target)
        for t, metric in self.scaled.values():
            metric.update(logits.double() / t, target)
        self.labels.update(target.cpu().numpy().tobytes())

    def cell(self) -> Cell:
        cell = self.metric.cell(self.labels.hexdigest())
        if cell.not_finite:
            return cell
        after = {name: metric.compute() for name, (_, metric) in self.scaled.items()}
        scaled = {name: Scaled(float(of['nll']), float(of['ece'])) for name, of in after.items()}
        return replace(cell, scaled=scaled)


def measure(
    running: Running,
    plan: Sequence[Condition],
    bar: Any,
    temperatures: Temperatures | None = None,
    claim: Callable[[Condition], bool] = lambda condition: True,
) -> Iterator[tuple[Condition, Cell]]:
    """Yield each condition that is claimed when its turn comes, with its cell as it finishes."""
    current: tuple[Condition, Counter] | None = None
    for condition, logits, target in logits_of(running, plan, bar, claim):
        if current is None or current[0] is not condition:
            if current is not None:
                yield current[0], current[1].cell()
            current = condition, Counter(running.classifier.num_classes, temperatures)
        current[1].add(logits, target)
    if current is not None:
        yield current[0], current[1].cell()


@torch.inference_mode()
def logits_of(
    running: Running,
    plan: Sequence[Condition],
    bar: Any,
    claim: Callable[[Condition], bool] = lambda condition: True,
) -> Iterator[tuple[Condition, Tensor, Tensor]]:
    """Yield each condition with logits (B, K) and labels (B,), batch by batch."""
    classifier = running.classifier
    if running.workers and any(condition.name == 'glass_blur' and condition.corrupt for condition in plan):
        transforms.warm_up()
    loader = Loader(plan, running.batch_size, running.workers, classifier.data_config, running.device, claim)
    amp = torch.autocast(running.device.type, running.amp) if running.amp else nullcontext()
    for condition, x, target in loader:
        bar.set_description(str(condition), refresh=False)
        for label in (int(target.min()), int(target.max())):
            if not 0 <= label < classifier.num_classes:
                raise UserError(
                    f'{condition} has label {label}, none of the {classifier.num_classes} classes of the model'
                )
        with amp:
            logits = classifier.model(x)
        yield condition, logits, target
        bar.update(len(x))


@contextmanager
def _threads(workers: int) -> Iterator[None]:
    """Leave the workers' cores to them: threads that wait for one that has none stop the whole."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - workers))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _said(workers: int) -> Iterator[None]:
    """Say what to do where there is too little memory."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        # PyTorch raises it wherever the program is when a worker dies.
        if workers and (not isinstance(error, RuntimeError) or 'DataLoader worker' in str(error)):
            raise UserError(f'a worker process died, of too little memory? Try a smaller -j ({error})') from None
        if 'out of memory' in str(error):
            raise UserError(f'{one_line(error)}: try a smaller -b') from None
        raise
