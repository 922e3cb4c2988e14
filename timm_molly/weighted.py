"""Labels and losses of images that count with a weight, so that a loss comes out weighted whatever it computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import functional as F

from timm_molly.errors import UserError
from timm_molly.functional import check_unit_interval, describe


class Weighted(Tensor):
    """Labels (B, K) or losses (B, K), (B, 1) or (B,) of B images, each of which counts with a weight.

    What a loss computes of them image by image stays `Weighted`; where it averages or sums over the images, the value
    of each is multiplied by its weight. So the mean is `sum_i weight_i * loss_i / B`, exactly and with its gradient,
    for every loss that is a mean over images. An operation that mixes images in another way is refused.

    Attributes:
        weight: Of the images (B,), floating point in [0, 1].

    Example:
        >>> labels = Weighted.of(torch.eye(3), torch.tensor([1.0, 0.5, 0.0]))
        >>> torch.nn.functional.cross_entropy(torch.zeros(3, 3), labels)  # log 3 times 1, 0.5 and 0
        tensor(0.5493)
    """

    weight: Tensor

    @classmethod
    def of(cls, values: Tensor, weight: Tensor) -> Weighted:
        """Give values a weight for each image.

        Raises:
            ValueError: A shape, dtype or value is not as above.
        """
        if not isinstance(values, Tensor) or values.ndim not in (1, 2):
            raise ValueError(f'values must be (B,) or (B, K), got {describe(values)}')
        check_unit_interval('weight', weight, len(values))
        weighted = values.as_subclass(cls)
        weighted.weight = weight
        return weighted

    def turn(self, values: Tensor) -> None:
        """Make a plain tensor `Weighted` where it lies, with these weights."""
        values.__class__ = Weighted
        values.weight = self.weight  # type: ignore[attr-defined]

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, '__name__', str(func))
        if name in ('__get__', '__set__', '__repr__', '__len__', 'size', 'dim', 'is_floating_point', 'as_subclass'):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if name in ('mean', 'sum'):
            return _reduce(func, name, *args, **kwargs)
        if name in _LOSSES:
            return _loss(func, *args, **kwargs)
        if name in _MOVING | _EACH or (name == 'squeeze' and args[1:] in ((1,), (-1,))):
            return _image_by_image(func, name, args, kwargs)
        if name == '__getitem__' and isinstance(args[1], (slice, Tensor)):
            with torch._C.DisableTorchFunctionSubclass():
                return Weighted.of(func(*args), args[0].weight[args[1]])
        _refuse(name)


_LOSSES = ('cross_entropy', 'binary_cross_entropy_with_logits', 'binary_cross_entropy')
_MOVING = {'to', 'cuda', 'cpu', 'float', 'double', 'half', 'bfloat16', 'clone', 'contiguous', 'detach', 'type_as'}
# Functions and operators that compute each entry by itself.
_EACH = {
    *(
        'neg',
        'abs',
        'exp',
        'log',
        'log1p',
        'sqrt',
        'square',
        'sigmoid',
        'logsigmoid',
        'log_sigmoid',
        'softplus',
        'relu',
    ),
    *('add', 'sub', 'rsub', 'mul', 'div', 'true_divide', 'pow', 'clamp', 'clamp_min', 'clamp_max', 'clip', 'where'),
    *('__neg__', '__add__', '__radd__', '__sub__', '__rsub__', '__mul__', '__rmul__', '__pow__', '__rpow__'),
    *('__truediv__', '__div__', '__rdiv__', '__rtruediv__', 'multiply', 'subtract', 'divide', 'negative', 'maximum'),
    *('minimum', 'add_', 'sub_', 'mul_', 'div_', '__iadd__', '__isub__', '__imul__', '__itruediv__', '__idiv__'),
}


def _image_by_image(func: Callable[..., Any], name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """Carry an operation out whose result keeps the images where they are."""
    weighted = [value for value in (*args, *kwargs.values()) if isinstance(value, Weighted)]
    first = weighted[0]
    with torch._C.DisableTorchFunctionSubclass():
        result = func(*args, **kwargs)
    kept = result.ndim == first.ndim or name == 'squeeze'
    if not kept or len(result) != len(first) or any(each.weight is not first.weight for each in weighted):
        _refuse(f'{name} of {describe(first)} to {describe(result)}')
    if not result.is_floating_point():
        _refuse(f'{name} to {describe(result)}')
    return Weighted.of(result, first.weight)


def _reduce(func: Callable[..., Any], name: str, values: Weighted, *args: Any, **kwargs: Any) -> Tensor:
    """Take a mean or sum over the classes, which stays weighted, or over all."""
    dim = kwargs.get('dim', args[0] if args else None)
    with torch._C.DisableTorchFunctionSubclass():
        if dim in (1, -1, (1,), (-1,), [1], [-1]) and values.ndim == 2:
            return Weighted.of(func(values, *args, **kwargs), values.weight)
        if args or kwargs:
            _refuse(f'{name} over dim {dim}')
        weight = values.weight.to(values.device)
        result: Tensor = func(values * (weight if values.ndim == 1 else weight[:, None]))
        return result.as_subclass(Tensor)


def _loss(func: Callable[..., Any], input: Tensor, target: Weighted, *args: Any, **kwargs: Any) -> Tensor:
    """Compute one of torch's losses of weighted labels."""
    if isinstance(input, Weighted) or not isinstance(target, Weighted):
        _refuse(f'{func.__name__} of weighted logits')
    names: tuple[str, ...] = ('weight', 'size_average', 'ignore_index', 'reduce', 'reduction', 'label_smoothing')
    if func is not F.cross_entropy:
        names = ('weight', 'size_average', 'reduce', 'reduction', 'pos_weight')
    options = {**dict(zip(names, args, strict=False)), **kwargs}
    reduction = options.pop('reduction', 'mean')
    if options.get('size_average') is not None or options.get('reduce') is not None:
        _refuse(f'{func.__name__} with size_average or reduce')
    if target.shape != input.shape:
        raise ValueError(f'logits must be shaped as the labels {tuple(target.shape)}, got {describe(input)}')
    with torch._C.DisableTorchFunctionSubclass():
        each = func(input, target.as_subclass(Tensor), reduction='none', **options)
    loss = Weighted.of(each, target.weight)
    return loss if reduction == 'none' else loss.sum() if reduction == 'sum' else loss.mean()


def _refuse(operation: str) -> NoReturn:
    raise UserError(  # no TypeError, which operators turn into NotImplemented
        f'weighted labels (molly-w) do not support {operation}: it would lose the weights of the images. Losses that '
        "work: torch's and timm's of class indices, soft labels and multi-label targets, but timm's twoway and zlpr, "
        'and a target threshold; for one of your own, average target.weight * loss, with target.labels or, for labels '
        '(B, K), target.as_subclass(torch.Tensor)'
    )
