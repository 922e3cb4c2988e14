"""`timm_molly.evaluate`: a classifier measured under conditions, cell by cell."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
import tqdm
from torch import nn

from timm_molly.classifier import Classifier, evaluating
from timm_molly.errors import UserError
from timm_molly.files import make_folder, read_json, write_json
from timm_molly.robustness.conditions import Condition, Conditions, common
from timm_molly.robustness.corruptions import transforms
from timm_molly.robustness.images import Dataset, Images, images_of, same_labels
from timm_molly.robustness.loading import Loader
from timm_molly.robustness.metrics import Calibration
from timm_molly.robustness.report import (
    BenchmarkRecord,
    Cell,
    DataRecord,
    ModelRecord,
    Place,
    Report,
    differences,
    packages,
    plain,
)
from timm_molly.weights import one_line

SETTINGS = 'settings.json'


class How(TypedDict, total=False):
    """How a measurement is run: arguments of `evaluate`."""

    batch_size: int
    workers: int
    device: torch.device | str | None
    amp: torch.dtype | None
    cache: str | Path | None
    progress: bool
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
    cache: str | Path | None = None,
    progress: bool = True,
    command: str = '',
) -> Report:
    """Measure error, NLL, Brier score, ECE and confidence of a classifier on clean and on corrupted images.

    By default under 15 common corruptions at five severities. An image's corruption depends on its place in the data
    set, the corruption, the severity and the seed alone.

    Args:
        model: A timm model, or a `Classifier`, which says of any other module how its images are prepared.
        dataset: By index (image, label): a PIL image or a uint8 array (H, W, 3), and a class from 0 on, such as a list,
            or a torchvision data set without transform. None for a published set without its clean images.
        conditions: `robustness.common(...)`, `Corruptions`, `Published` or `Mollification`.
        batch_size: Images a batch.
        workers: Processes that read and corrupt images; 0 for this one.
        device: Where it runs; the model's own if None. The model is where it was afterwards.
        amp: dtype of mixed precision, torch.bfloat16 say; None for none.
        cache: Folder in which each cell is kept when it is finished: the same call goes on where one was interrupted.
        progress: Show a progress bar on stderr.
        command: Command line that the report names.

    Returns:
        The report: `report.clean.error`, `report.mean.ece`, `report['fog', 3].nll`, `report.save(...)`; `print` shows
        its table.

    Raises:
        UserError: The model, the images or a number will not do, or the folder holds another measurement.

    Example:
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
    with placed(classifier.model, device), evaluating(classifier.model):
        classifier.try_out()
        plan, benchmark = (conditions or common()).lay_out(images, classifier)
        same_labels([(condition, condition.images) for condition in plan])
        running = Running(classifier, batch_size, workers, amp)
        record = model_record(running)
        settings = {'model': plain(record), 'benchmark': plain_benchmark(benchmark), 'data': _place(images, conditions)}
        store = Store(cache, {**settings, 'packages': packages()}, classifier)
        _fill(store, running, plan, progress)
    cells = {condition.place: store.cells[condition.place] for condition in plan}
    first, *others = plan
    for condition in others:
        if cells[condition.place].labels != cells[first.place].labels:
            raise UserError(f'{first} and {condition} have different labels, so they are not the same images')
    return Report(record, benchmark, data_record(classifier, images, plan, cells), cells, packages(), command)


class Store:
    """Finished cells, in a folder where there is one, so that an interrupted measurement goes on where it stopped.

    Args:
        folder: The folder, or None.
        settings: Plain values that tell this measurement from others.
        classifier: What is measured.

    Raises:
        UserError: The folder holds another measurement, or cannot be written.
    """

    def __init__(self, folder: str | Path | None, settings: dict[str, Any], classifier: Classifier) -> None:
        self.cells: dict[Place, Cell] = {}
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            self._claim(self.folder, settings, probe(classifier))
            make_folder(self.folder / 'cells')

    def load(self, condition: Condition) -> bool:
        """Tell whether a cell is there; a damaged one is not."""
        if self.folder is None:
            return False
        try:
            path = self._path(condition)
            self.cells[condition.place] = Cell.from_dict(read_json(path), path)
        except UserError:
            return False
        return True

    def keep(self, condition: Condition, cell: Cell) -> None:
        """Keep a finished cell."""
        self.cells[condition.place] = cell
        if self.folder is not None:
            write_json(self._path(condition), cell.to_dict())

    def _path(self, condition: Condition) -> Path:
        assert self.folder is not None
        return self.folder / 'cells' / f'{condition}.json'.replace(' ', '-')

    @staticmethod
    def _claim(folder: Path, settings: dict[str, Any], answer: list[float]) -> None:
        """Take a folder for a measurement, or go on with it if that has the same settings."""
        path = make_folder(folder) / SETTINGS
        if not path.is_file():
            if (folder / 'cells').exists():
                raise UserError(f'{folder} holds cells of a run but not its settings.json: choose another --output')
            write_json(path, {**settings, 'answer': answer})
            return
        try:
            found = dict(read_json(path))
            # A network of other code with the same weights; earlier versions did not note it.
            before = np.asarray(found.pop('answer', answer), float)
            size = max(map(abs, answer), default=0.0)  # devices differ in the last digits
            same = before.shape == (len(answer),) and np.allclose(before, answer, rtol=0, atol=0.01 * size)
            different = differences(found, settings) + ([] if same else ['model: its logits are others'])
        except (UserError, TypeError, ValueError) as error:
            raise UserError(f'{path} is damaged ({error}): delete {folder}, or choose another --output') from None
        if different:
            raise UserError(f'{folder} holds another run ({"; ".join(different)}): choose another --output')


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
    )


@torch.inference_mode()
def probe(classifier: Classifier) -> list[float]:
    """Return a few logits for an image of noise, by which a network is known again."""
    x = torch.randn(1, *classifier.input_size, generator=torch.Generator().manual_seed(0)).to(classifier.device)
    logits = classifier.model(x)[0, :8].double().nan_to_num()
    return [float(f'{value:.4g}') for value in logits.tolist()]


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


def _fill(store: Store, running: Running, plan: Sequence[Condition], progress: bool) -> None:
    """Measure the cells that are not there yet, and show progress."""
    todo = [condition for condition in plan if not store.load(condition)]
    if not todo:
        return
    images = [0 if condition.images.streamed else len(condition.images) for condition in plan]
    missing = [0 if condition.images.streamed else len(condition.images) for condition in todo]
    total, initial = sum(images) or None, sum(images) - sum(missing)
    bar = tqdm.tqdm(total=total, initial=initial, unit='img', dynamic_ncols=True, mininterval=0.5, disable=not progress)
    with bar, _threads(running.workers), _said(running.workers):
        try:
            for condition, cell in measure(running, todo, bar):
                store.keep(condition, cell)
        except (ConnectionError, EOFError):
            # The signal of a worker's death comes later than its broken pipe: let it come here.
            time.sleep(1 if running.workers else 0)
            raise


@torch.inference_mode()
def measure(running: Running, plan: Sequence[Condition], bar: Any) -> Iterator[tuple[Condition, Cell]]:
    """Yield each condition with its cell as it finishes."""
    classifier = running.classifier
    if running.workers and any(condition.name == 'glass_blur' and condition.corrupt for condition in plan):
        transforms.warm_up()
    loader = Loader(plan, running.batch_size, running.workers, classifier.data_config, running.device)
    amp = torch.autocast(running.device.type, running.amp) if running.amp else nullcontext()
    current: Condition | None = None
    metric, labels = Calibration(classifier.num_classes), hashlib.sha256()
    for condition, x, target in loader:
        if condition is not current:
            if current is not None:
                yield current, metric.cell(labels.hexdigest())
            current, labels = condition, hashlib.sha256()
            metric.reset()
            bar.set_description(str(condition))
        for label in (int(target.min()), int(target.max())):
            if not 0 <= label < classifier.num_classes:
                raise UserError(
                    f'{condition} has label {label}, none of the {classifier.num_classes} classes of the model'
                )
        with amp:
            logits = classifier.model(x)
        metric.update(logits, target)
        labels.update(target.cpu().numpy().tobytes())
        bar.update(len(x))
    if current is None:
        raise UserError('the data set has no images')
    yield current, metric.cell(labels.hexdigest())


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
