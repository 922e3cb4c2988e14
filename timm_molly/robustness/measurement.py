"""A measurement of files: which images, under what, and how, as `timm-molly validate`, `fit` and a study say it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from timm_molly.classifier import Classifier
from timm_molly.errors import UserError
from timm_molly.files import hint_beside
from timm_molly.robustness.conditions import Conditions, Corruptions, Mollification, Published, check_seed
from timm_molly.robustness.corruptions.names import COMMON, SEVERITIES
from timm_molly.robustness.evaluate import RunHow, evaluate, temperature
from timm_molly.robustness.images import Images, check_classes, class_folders, open_dataset, seen_in_training
from timm_molly.robustness.report import Report
from timm_molly.robustness.subset import Subset

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What `timm-molly validate` measures, by the names of its flags, most of which are those of timm's validate.py.

    Attributes:
        data_dir: Folder of the clean images.
        dataset: timm's type/name of a data set; '' for an image folder.
        split: timm's name of the split.
        dataset_download: Let timm download it.
        class_map: File that maps class folders to indices.
        input_key: Of the images and
        target_key: of the labels in hfds/ and wds/ data sets.
        num_samples: Of streamed data sets that do not say it.
        corrupted_dir: Folder of a published set.
        subset: 'robustbench' for its 5,000 images of ImageNet; None for all.
        table: Strengths on the fly; None by image size.
        corruptions: Names or groups.
        severities: Some of 1 to 5.
        mollification: Noise and blur of molly in place of corruptions.
        aa: The training's aa string; None for the one that the checkpoint says.
        crop_pct: Of the images of a published set, 1.0 if None.
        seed: Of what is drawn.
        calibrate: timm's name of the split of held-out images that temperatures are fitted on; None for none.
        batch_size: Images a batch.
        workers: Processes that read images.
        device: '' for a GPU where there is one, under torchrun that of the rank.
        channels_last: Memory format of the weights.
        amp: Mixed precision, in
        amp_dtype: this dtype.
    """

    data_dir: str | None = None
    dataset: str = ''
    split: str = 'validation'
    dataset_download: bool = False
    class_map: str = ''
    input_key: str | None = None
    target_key: str | None = None
    num_samples: int | None = None
    corrupted_dir: str | None = None
    subset: str | None = None
    table: str | None = None
    corruptions: tuple[str, ...] = ('common',)
    severities: tuple[int, ...] = SEVERITIES
    mollification: bool = False
    aa: str | None = None
    crop_pct: float | None = None
    seed: int = 42
    calibrate: str | None = None
    batch_size: int = 256
    workers: int = 4
    device: str = ''
    channels_last: bool = False
    amp: bool = False
    amp_dtype: str = 'float16'

    def check(self) -> Conditions:
        """Check what can be checked before a model is loaded, and return what is measured under.

        Raises:
            UserError: A value is out of its range, does not go with another, or names images that are not there.
        """
        for name, value, low in (('batch_size', self.batch_size, 1), ('workers', self.workers, 0)):
            if value < low:
                raise UserError(f'{name} must be {low} or more, got {value}')
        if self.data_dir and not self.dataset and not Path(self.data_dir).is_dir():
            raise UserError(f'no such folder: {self.data_dir}{hint_beside(self.data_dir)} (--data-dir)')
        if self.amp_dtype not in ('float16', 'bfloat16'):
            raise UserError(f'amp_dtype must be float16 or bfloat16, got {self.amp_dtype!r}')
        check_seed(self.seed)
        self._check_combination()
        if self.mollification:
            return Mollification(self.aa, seed=self.seed)
        if self.corrupted_dir is None:
            return Corruptions(self.corruptions, self.severities, self.table, self.seed)
        crop_pct = self.crop_pct or 1.0
        return Published(self.corrupted_dir, self.corruptions, self.severities, crop_pct, self.class_map, self.subset)

    def images(self, classifier: Classifier, split: str | None = None) -> Images | None:
        """Open the clean images and check that their classes are the classifier's; None where none are named.

        Args:
            classifier: What takes them.
            split: timm's name of another split than the measured one.

        Raises:
            UserError: They cannot be opened, or have other classes.
        """
        if not self.data_dir and not self.dataset:
            return None
        split = split or self.split
        images = open_dataset(
            classifier.img_mode,
            name=self.dataset,
            root=self.data_dir,
            split=split,
            download=self.dataset_download,
            class_map=self.class_map,
            input_key=self.input_key,
            target_key=self.target_key,
            num_samples=self.num_samples,
            is_training=False,
        )
        if images.has_16_bits:
            _logger.warning(
                "note: 16-bit grey images are scaled to 8 bits here. timm's own training cuts them off at 255, which "
                'leaves next to nothing but white: save them with 8 bits before you train'
            )
        if self.dataset or self.class_map or self.data_dir is None:
            check_classes(images, classifier, self.data_dir, {})
        else:
            check_classes(images, classifier, f'split {split!r} of {self.data_dir}', class_folders(self.data_dir))
        return Subset(images, self.subset) if self.subset and split == self.split else images

    def run(
        self, classifier: Classifier, cache: Path | None = None, command: str = '', progress: bool = True
    ) -> Report:
        """Measure a classifier.

        Args:
            classifier: It is moved to the device, and back afterwards.
            cache: Folder in which finished cells are kept.
            command: Command line that the report names.
            progress: Show a progress bar on stderr.

        Raises:
            UserError: As `check` and `evaluate`.
        """
        conditions = self.check()
        if self.calibrate and self.aa:
            classifier = replace(classifier, aa=self.aa)
        if self.channels_last:
            classifier.model.to(memory_format=torch.channels_last)  # its first convolution turns the images
        images = self.images(classifier)
        held_out = self.images(classifier, self.calibrate) if self.calibrate else None
        for what, of in (('these images', images), ('the images of the temperature', held_out)):
            if of is not None and seen_in_training(classifier, self.data_dir, of.split):
                where = f'{self.data_dir or of.name}{f", split {of.split}" if of.split else ""}'
                _logger.warning('note: the model may have been trained on %s: %s', what, where)
        return evaluate(
            classifier,
            images,
            conditions,
            calibrate=held_out,
            cache=cache,
            command=command,
            **self._how(progress),
        )

    def temperature(self, classifier: Classifier, progress: bool = True) -> float | None:
        """Fit one temperature to the images themselves, as `evaluate.temperature` does."""
        images = self.images(classifier)
        if images is None:
            return None
        return temperature(replace(classifier, aa=self.aa or classifier.aa), images, **self._how(progress))

    def _how(self, progress: bool) -> RunHow:
        return {
            'batch_size': self.batch_size,
            'workers': self.workers,
            'device': self.device
            or (f'cuda:{os.environ.get("LOCAL_RANK", 0)}' if torch.cuda.is_available() else 'cpu'),
            'amp': getattr(torch, self.amp_dtype) if self.amp else None,
            'progress': progress,
        }

    def words(self) -> list[str]:
        """The flags of `timm-molly validate` that say it."""
        found: list[str] = []
        for each in fields(self):
            value = getattr(self, each.name)
            if value != each.default:
                values = value if isinstance(value, tuple) else [] if value is True else [value]
                found += [f'--{each.name.replace("_", "-")}', *map(str, values)]
        return found

    def _check_combination(self) -> None:
        """Raise UserError for values that do not go together."""
        if self.data_dir is None and not self.dataset and (self.corrupted_dir is None or self.mollification):
            raise UserError('no data: give --data-dir, or --corrupted-dir with an official set')
        if self.calibrate and self.data_dir is None and not self.dataset:
            raise UserError('--calibrate needs --data-dir: held-out images are a split of the clean ones')
        if self.calibrate == self.split:
            raise UserError(
                f'--calibrate {self.calibrate} is the split that is measured. Hold out another, in a folder beside it'
            )
        if self.data_dir and any((Path(self.data_dir) / name).is_dir() for name in COMMON):
            raise UserError(f'{self.data_dir} is a set of corrupted images: give it as --corrupted-dir')
        if self.corrupted_dir is not None and (self.table or self.mollification):
            raise UserError('--corrupted-dir has corruptions of its own; leave --table and --mollification out')
        chosen: Sequence[object] = (self.table, self.corruptions != ('common',), set(self.severities) != {*SEVERITIES})
        if self.mollification and any(chosen):
            raise UserError('--mollification makes no corruptions; leave --table, --corruptions and --severities out')
