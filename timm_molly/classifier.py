"""A classifier that is ready to be used: the network, and how its images are prepared."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from PIL import Image
from torch import nn
from typing_extensions import Unpack

from timm_molly import training
from timm_molly.config import MollyConfig, split_aa
from timm_molly.errors import HubError, UserError
from timm_molly.files import hint_beside
from timm_molly.hub.folder import ABOUT, CONFIG, TAG, check_arguments, read_folder
from timm_molly.plugin.register import add_models
from timm_molly.training import DATA_KEYS, Training
from timm_molly.weights import Checkpoint, create_model, fingerprint, load_weights, one_line, read_checkpoint

if TYPE_CHECKING:
    from torchvision.transforms import Compose

    from timm_molly.robustness.report import Report

# What of a training's settings is used.
TAKEN = (
    *('model', 'num_classes', 'img_size', 'input_size', 'mean', 'std', 'crop_pct', 'interpolation'),
    *('in_chans', 'gp', 'bn_eps', 'model_kwargs', 'aa'),
)

_logger = logging.getLogger(__name__)


class Preparation(TypedDict, total=False):
    """How images are prepared, by timm's names; what is left out, or None, is the training's or timm's."""

    img_size: int | None
    input_size: Sequence[int] | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    crop_pct: float | None
    crop_mode: str | None
    interpolation: str | None


@dataclass(frozen=True, eq=False)
class Classifier:
    """A network and how its images are prepared. It comes from timm, a training, a folder, the Hub, or any module.

    Attributes:
        model: From normalised images (B, C, H, W), float32, to logits (B, K), whatever its class.
        input_size: Channels, height and width in pixels. Pictures have 1 or 3 channels.
        mean: Mean and
        std: standard deviation of pixels from 0 to 1, one number a channel; one alone is taken for all.
        interpolation: timm's name of the filter for resizing.
        crop_pct: Share of the resized side that the crop keeps, above 0.
        crop_mode: 'center', 'squash' or 'border', as timm has them.
        name: What it is called in tables; the module's class if empty.
        label_names: Names of the classes in the order of the logits, or by their place in it; or None.
        aa: The --aa of its training, where it is known.
        model_args: What besides the name timm made the model with.
        training: What its training left, where it comes from one.
        about: What the config of its folder for the Hub notes.
        report: Of `timm-molly validate` on these weights, where its folder has one.

    Raises:
        UserError: A value is not as above.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
        >>> Classifier(network, input_size=(3, 8, 8), mean=(0.5,), std=(0.5,)).num_classes
        10
    """

    model: nn.Module
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = 'bicubic'
    crop_pct: float = 1.0
    crop_mode: str = 'center'
    name: str = ''
    label_names: Sequence[str] | Mapping[str, str] | None = None
    aa: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    training: Training | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    report: Report | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise UserError(f'model must be a torch.nn.Module, got {type(self.model).__name__}')
        for name in ('input_size', 'mean', 'std'):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, 'name', self.name or type(self.model).__name__)
        if len(self.input_size) != 3 or not all(isinstance(n, int) and n > 0 for n in self.input_size):
            raise UserError(f'input_size must be channels, height and width, got {self.input_size}')
        for name in ('mean', 'std'):
            values = getattr(self, name)
            _check_numbers(name, values, self.input_size[0])
            object.__setattr__(self, name, values * self.input_size[0] if len(values) == 1 else values)
        if not self.crop_pct > 0:
            raise UserError(f'crop_pct must be above 0, got {self.crop_pct}')
        if self.aa:
            split_aa(self.aa)

    def __repr__(self) -> str:
        return (
            f'Classifier({self.name}, input {" x ".join(map(str, self.input_size))}, '
            f'{self.num_classes} classes, molly={self.molly}, report={self.report!r})'
        )

    @cached_property
    def num_classes(self) -> int:
        """Number of logits K: what a timm model says, or else found by trying the network.

        Raises:
            UserError: It gives no logits for images of this size.
        """
        classes = getattr(self.model, 'num_classes', None)
        return classes if isinstance(classes, int) and classes > 0 else self.try_out()

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next((p.device for p in self.model.parameters()), torch.device('cpu'))

    @property
    def sha256(self) -> str:
        """Fingerprint of the weights and their names, the same wherever the model is."""
        return fingerprint(self.model)

    @property
    def molly(self) -> MollyConfig | None:
        """Settings of mollification of its training; None for one without, or where nothing says it."""
        return split_aa(self.aa)[0] if self.aa else None

    @property
    def img_mode(self) -> str:
        """Pillow's mode of the images that it takes, 'RGB' or 'L'.

        Raises:
            UserError: It takes images of another number of channels, which no picture has.
        """
        _check_channels(self.input_size[0])
        return 'RGB' if self.input_size[0] == 3 else 'L'

    @property
    def data_config(self) -> dict[str, Any]:
        """How images are prepared, as timm's functions take it."""
        return {key: getattr(self, key) for key in DATA_KEYS}

    @property
    def transform(self) -> Compose:
        """From a PIL image to the network's input (C, H, W), float32, as in timm's validation."""
        from timm.data import create_transform

        return create_transform(**self.data_config, is_training=False)

    def pixels(self, crop_pct: float | None = None) -> Sequence[Any]:
        """The steps of `transform` that resize and crop a PIL image, before it becomes numbers.

        Args:
            crop_pct: In place of the classifier's own.
        """
        from timm.data import create_transform

        config = {**self.data_config, 'crop_pct': crop_pct or self.crop_pct}
        steps: Sequence[Any] = create_transform(**config, is_training=False, use_prefetcher=True).transforms[:-1]
        return steps

    @torch.inference_mode()
    def try_out(self) -> int:
        """Count the logits that the network gives for an image of zeros.

        Raises:
            UserError: It cannot take one of this size, or gives no logits (1, K).
        """
        size = ' x '.join(map(str, self.input_size))
        try:
            with evaluating(self.model):
                logits = self.model(torch.zeros(1, *self.input_size, device=self.device))
        except Exception as error:  # whatever a network may say
            raise UserError(
                f'{self.name} cannot take images of {size}: {one_line(error)} (--img-size, --model-kwargs img_size=...)'
            ) from None
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        classes = getattr(self.model, 'num_classes', None)  # which only timm's own models are sure to have
        if not isinstance(found, tuple) or len(found) != 2 or not found[1] or classes not in (None, found[1]):
            said = '' if classes is None else f' of {classes} classes'
            raise UserError(f'{self.name} gives no logits (B, K){said} but {found}, so it is no classifier')
        return int(found[1])

    def predict(self, image: Image.Image) -> torch.Tensor:
        """Return the probabilities (K,), float32, of an image; `label_names` are those of the classes.

        Raises:
            UserError: It is not a PIL image.
        """
        if not isinstance(image, Image.Image):
            raise UserError(f'predict takes a PIL image (PIL.Image.open(path)), got {type(image).__name__}')
        with torch.inference_mode(), evaluating(self.model):
            x = self.transform(image.convert(self.img_mode))[None].to(self.device)
            probabilities: torch.Tensor = self.model(x).float().softmax(1)[0]
        return probabilities

    @classmethod
    def of(cls, model: nn.Module | Classifier) -> Classifier:
        """Take a classifier as it is, and a timm model with the preparation that its config says.

        Raises:
            UserError: It is a module of another library, which does not say how its images are prepared.
        """
        if isinstance(model, Classifier):
            return model
        if not isinstance(model, nn.Module):
            raise UserError(f'model must be a torch.nn.Module or a timm_molly.Classifier, got {type(model).__name__}')
        cfg = getattr(model, 'pretrained_cfg', None)
        if not cfg or not cfg.get('input_size'):
            raise UserError(
                f'{type(model).__name__} does not say how its images are prepared, as timm models do: give '
                'timm_molly.Classifier(model, input_size=(3, 32, 32), mean=(0.5,), std=(0.5,)), with what it was '
                'trained with'
            )
        from timm.data import resolve_model_data_config

        config = resolve_model_data_config(model, use_test_size=True)
        return cls(model, **{key: config[key] for key in DATA_KEYS}, name=_name(model), label_names=_labels(model))

    @classmethod
    def from_timm(
        cls,
        name: str,
        pretrained: bool = True,
        num_classes: int | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        trust_pickle: bool = False,
        **preparation: Unpack[Preparation],
    ) -> Classifier:
        """Make a model of timm's, or of the Hub by timm's name for it ('hf-hub:...').

        Args:
            name: timm's name.
            pretrained: Load its weights.
            num_classes: K; the model's own if None.
            model_kwargs: What else `timm.create_model` gets.
            trust_pickle: Run code that its weights may have pickled.
            **preparation: In place of what timm says of its images.

        Raises:
            UserError: timm cannot make it, or it cannot take such images.
        """
        from timm.data import resolve_data_config

        add_models()  # also where autoload is off
        given = _given(preparation)
        arguments = {**training.model_arguments(given), **(model_kwargs or {})}
        _check_given(given, arguments['in_chans'])
        model = create_model(name, {**arguments, 'num_classes': num_classes, 'pretrained': pretrained}, trust_pickle)
        config = resolve_data_config(given, model=model, use_test_size=True)
        of_images = {key: config[key] for key in DATA_KEYS}
        return cls(model.eval(), **of_images, name=name, label_names=_labels(model), model_args=arguments)

    @classmethod
    def from_run(
        cls,
        path: str | Path,
        name: str | None = None,
        use_ema: bool | None = None,
        num_classes: int | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        trust_pickle: bool = False,
        **preparation: Unpack[Preparation],
    ) -> Classifier:
        """Load a checkpoint of a training, with the network and the images as in that training's own validation.

        They are those of the settings that train.py left in the checkpoint, or in `args.yaml` beside it. Without
        either, or where they are of another network than `name`, timm's guess for the network.

        Args:
            path: Folder of the training, or a checkpoint: .pth, .pth.tar, .safetensors.
            name: timm's name of the network, needed where no settings say it.
            use_ema: Take the EMA weights; None takes them where there are any.
            num_classes: K, in place of the settings'.
            model_kwargs: What else `timm.create_model` gets, over the settings'.
            trust_pickle: Run code that the checkpoint may have pickled.
            **preparation: In place of what the settings say of the images.

        Raises:
            UserError: A file is missing or malformed, or the weights do not fit.
        """
        source = training.find_checkpoint(Path(path))
        checkpoint = read_checkpoint(source, use_ema, trust_pickle)
        settings = _settings(name, checkpoint, source)
        loaded = cls.from_checkpoint(checkpoint, source, settings, name, num_classes, model_kwargs, **preparation)
        if settings:
            given = _given(preparation)
            taken = {key: value for key, value in settings.items() if key not in given}
            taken['num_classes'] = None if num_classes else loaded.num_classes
            taken['model'] = None if name else settings.get('model')
            if {'img_size', 'input_size'} & given.keys():  # two ways to say the same
                taken['img_size'] = taken['input_size'] = None
            _say_taken(taken, model_kwargs or {}, f'{source}, EMA weights' if checkpoint.ema else source)
        else:
            _say_guessed(_given(preparation), loaded)
        return loaded

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        source: Path,
        settings: Mapping[str, Any],
        name: str | None = None,
        num_classes: int | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        **preparation: Unpack[Preparation],
    ) -> Classifier:
        """Make the classifier of a checkpoint that was read; otherwise as `from_run`.

        Args:
            checkpoint: What was read of it.
            source: Its file.
            settings: Of the training; empty where nothing tells them.
            name: As of `from_run`.
            num_classes: As of `from_run`.
            model_kwargs: As of `from_run`.
            **preparation: As of `from_run`.
        """
        add_models()  # also where autoload is off
        given = _given(preparation)
        trained = name or settings.get('model')
        if not isinstance(trained, str):
            raise UserError(f'which model? Add --model: {source} does not say it')
        merged = _merged(settings, given)
        arguments = _arguments(trained, merged, model_kwargs or {}, source)
        _check_given(given, arguments['in_chans'])
        num_classes = num_classes or merged.get('num_classes')
        if settings and not num_classes:  # train.py fills it in after it wrote args.yaml
            num_classes = training.count_classes(trained, checkpoint)
        model = create_model(trained, {'num_classes': num_classes, **arguments, 'pretrained': False})
        _load(model, checkpoint, trained, source)
        aa = settings.get('aa')
        names = training.label_names(settings, getattr(model, 'num_classes', None)) if settings else _labels(model)
        return cls(
            model.eval(),
            **_image_settings(model, arguments['in_chans'], settings, merged, given, source),
            name=trained,
            label_names=names,
            aa=aa if isinstance(aa, str) and aa else None,
            model_args=arguments,
            training=Training(source, checkpoint.ema, settings, checkpoint.epoch, checkpoint.metric),
        )

    @classmethod
    def from_folder(cls, folder: str | Path) -> Classifier:
        """Load a model from a folder as `timm-molly push` makes it, or as timm writes for the Hub.

        Configs are checked, and nothing is unpickled.

        Raises:
            UserError: A file is missing, malformed, or does not belong to the others.
        """
        found = read_folder(Path(folder))
        cfg, about = found.config['pretrained_cfg'], found.config[ABOUT]
        return cls(
            found.model,
            **{key: cfg[key] for key in DATA_KEYS},
            name=found.config['architecture'].removesuffix(f'.{TAG}'),
            label_names=found.config.get('label_names'),
            aa=about.get('aa'),
            model_args=found.config['model_args'],
            about=about,
            report=found.report,
        )

    @classmethod
    def from_hub(cls, repo_id: str, revision: str | None = None, token: str | None = None) -> Classifier:
        """Load a model from a repository on the Hub, or without a network from the Hub's cache.

        Files are compared with the Hub's checksums, configs are checked, and nothing is unpickled.

        Args:
            repo_id: Owner and name.
            revision: Branch, tag or commit.
            token: For a private repository; the logged-in user's if None.

        Raises:
            UserError: There is no such model, or a file of it is malformed, damaged or does not belong to the others.
            HubError: The Hub cannot be reached and the model is not in the cache.
        """
        from timm_molly.hub.download import download

        return cls.from_folder(download(repo_id, revision, token))


def load(place: str | Path, revision: str | None = None, token: str | None = None) -> Classifier:
    """Load a classifier from wherever it is: the Hub, a folder made for it, or a training's folder.

    Args:
        place: A folder with `config.json` and `model.safetensors`; a folder or a checkpoint that `train.py` wrote; or
            a repository's owner/name.
        revision: Branch, tag or commit of the repository.
        token: For a private repository; the logged-in user's if None.

    Returns:
        With `model`, `transform`, `label_names`, `molly` (settings of its training) and `report`, and `predict(image)`.

    Raises:
        UserError: There is no such model, or a file of it is malformed, damaged or does not belong to the others.
        HubError: The Hub cannot be reached and the model is not in the cache.
    """
    path = Path(place)
    if path.exists():
        if revision or token:
            raise UserError(f'{place} is a folder, which has no revision and needs no token')
        pushed = (path / CONFIG).is_file()
        trained = path.is_file() or (training.is_run(path) and not pushed)
        if not (pushed or trained):
            raise UserError(
                f'{path} has neither {CONFIG}, as timm-molly push writes it, nor a checkpoint of train.py: '
                f'is the model in a folder below it?'
            )
        return Classifier.from_run(path) if trained else Classifier.from_folder(path)
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # type: ignore[attr-defined]

    missing = f'there is no folder {place} here{hint_beside(path)}'
    try:
        validate_repo_id(str(place))
    except HFValidationError:
        prefix = '; leave out hf-hub:' if str(place).startswith('hf-hub:') else ''
        raise UserError(f'{missing}, and that cannot be the name of a repository (owner/name){prefix}') from None
    if path.parent.is_dir():
        _logger.warning('note: %s, so it is looked for on the Hub', missing)
    try:
        return Classifier.from_hub(str(place), revision, token)
    except HubError as error:
        raise HubError(f'{missing}, and on the Hub: {error}') from error


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and each of its parts back as it was."""
    training_parts = [part for part in model.modules() if part.training]
    model.eval()
    try:
        yield
    finally:
        for part in training_parts:
            part.training = True


def _given(preparation: Mapping[str, Any]) -> dict[str, Any]:
    """What of a preparation is given."""
    return {key: value for key, value in preparation.items() if value not in (None, '', ())}


def _check_given(given: Mapping[str, Any], in_chans: int) -> None:
    if 'input_size' in given:
        _check_channels(given['input_size'][0])
    for key in ('mean', 'std'):
        if key in given:
            _check_numbers(key, given[key], in_chans)
    if 'crop_pct' in given and not given['crop_pct'] > 0:
        raise UserError(f'crop_pct must be above 0, got {given["crop_pct"]}')


def _check_channels(in_chans: int) -> None:
    if in_chans not in (1, 3):
        raise UserError(f'images have 1 or 3 channels, got {in_chans} (input_size)')


def _check_numbers(name: str, values: Sequence[float], in_chans: int) -> None:
    if len(values) not in (1, in_chans):
        raise UserError(f'{name} needs 1 or {in_chans} numbers, one a channel, got {len(values)}')
    if not all(math.isfinite(value) for value in values) or (name == 'std' and min(values) <= 0):
        raise UserError(f'{name} needs finite numbers{" above 0" if name == "std" else ""}, got {tuple(values)}')


def _settings(name: str | None, checkpoint: Checkpoint, source: Path) -> Mapping[str, Any]:
    """Settings of the training that a checkpoint is of; empty where nothing says them, or they are of another model."""
    args = source.with_name(training.ARGS)
    settings = checkpoint.settings or (training.read_settings(args) if args.is_file() else {})
    trained = settings.get('model')
    if name and isinstance(trained, str) and trained.partition('.')[0] != name.partition('.')[0]:
        _logger.warning('note: %s is of a training of %s, so that its settings are not used', source, trained)
        return {}
    return settings


def _merged(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, and over them what was given."""
    kept = dict(settings)
    if 'img_size' in given or 'input_size' in given:  # two ways to say the same
        kept['img_size'] = kept['input_size'] = None
    if 'input_size' in given:
        kept['in_chans'] = None
    return {**kept, **given}


def _arguments(name: str, settings: Mapping[str, Any], kwargs: Mapping[str, Any], source: object) -> dict[str, Any]:
    """What `timm.create_model` gets besides the name, the number of classes and the weights."""
    inherited, own = training.inherited_arguments(name), training.plain(settings.get('model_kwargs') or {})
    check_arguments(inherited, f'{name}: model_args')
    check_arguments(own, f'{source}: model_kwargs')
    found = {**inherited, **training.model_arguments(settings), **kwargs}
    return {key: value for key, value in found.items() if key != 'num_classes'}  # of the model that it started from


def _load(model: nn.Module, checkpoint: Checkpoint, name: str, source: object) -> None:
    try:
        load_weights(model, checkpoint.state, name, source)
    except UserError as error:
        classes = training.count_classes(name, checkpoint)
        if classes in (None, getattr(model, 'num_classes', None)):
            raise
        raise UserError(f'{error}. Its last layer has {classes} classes: add --num-classes {classes}') from None


def _image_settings(
    model: nn.Module,
    in_chans: int,
    settings: Mapping[str, Any],
    merged: Mapping[str, Any],
    given: Mapping[str, Any],
    source: Path,
) -> dict[str, Any]:
    """A value of each of `DATA_KEYS`: the training's, what was given in its place, or timm's guess."""
    if settings:
        found = training.image_settings(model, in_chans, merged, source)
        return {**found, 'crop_mode': given.get('crop_mode') or found['crop_mode']}
    from timm.data import resolve_data_config

    config = resolve_data_config(dict(given), model=model, use_test_size=True)
    return {key: config[key] for key in DATA_KEYS}


def _say_taken(settings: Mapping[str, Any], kwargs: Mapping[str, Any], source: object) -> None:
    """Say what was taken from a training's settings, as flags."""
    words: list[str] = []
    for key in TAKEN:
        value = settings.get(key)
        if value in (None, ''):
            continue
        if isinstance(value, Mapping):
            value = [f'{k}={v}' for k, v in value.items() if k not in kwargs]
        values = value if isinstance(value, (list, tuple)) else [value]
        words += [f'--{key.replace("_", "-")}', *map(str, values)] if values else []
    if words:
        _logger.info('as in the training of %s: %s', source, ' '.join(words))


def _say_guessed(given: Mapping[str, Any], guessed: Classifier) -> None:
    """Say what of the images neither a training nor its user told."""
    size = ' x '.join(map(str, guessed.input_size))
    guesses = [f'input {size} (--img-size)'] if not {'img_size', 'input_size'} & given.keys() else []
    guesses += [f'{key} {getattr(guessed, key)} (--{key})' for key in ('mean', 'std') if key not in given]
    if guesses and guessed.training:
        _logger.warning(
            'note: nothing says how the images of %s were prepared; a guess, from %s in timm: %s',
            guessed.training.checkpoint,
            guessed.name,
            ', '.join(guesses),
        )


def _name(model: nn.Module) -> str:
    cfg: Mapping[str, Any] = getattr(model, 'pretrained_cfg', {})
    return '.'.join(part for part in (cfg.get('architecture'), cfg.get('tag')) if part) or type(model).__name__


def _labels(model: nn.Module) -> Sequence[str] | Mapping[str, str] | None:
    names: Sequence[str] | Mapping[str, str] | None = (getattr(model, 'pretrained_cfg', None) or {}).get('label_names')
    return names
