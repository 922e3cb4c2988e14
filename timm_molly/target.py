"""The target of a mollified batch: class indices, how much confidence each has lost, and how much it counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import functional as F

from timm_molly.errors import UserError
from timm_molly.functional import check_unit_interval, describe, smooth
from timm_molly.weighted import Weighted

_LOSSES = (
    'Losses that work: nn.CrossEntropyLoss, timm.loss.LabelSmoothingCrossEntropy, BinaryCrossEntropy, '
    'PolyCrossEntropy, AsymmetricLossSingleLabel and JsdCrossEntropy, timm_molly.loss.CoupledCrossEntropy and '
    'NormalizedCrossEntropy; '
    'any other that takes soft labels, such as SoftTargetCrossEntropy, takes target.dense(num_classes)'
)

_ACCURACY = 'for the accuracy, compare predictions with the class indices, target.labels'
_COMPARISONS = {'eq', 'ne', 'lt', 'le', 'gt', 'ge', 'equal', 'isin', 'argmax'}


class NoSoftMeaningError(TypeError, AttributeError):
    """An index target was used in a way that means nothing for a soft label.

    It is an AttributeError too, so that `hasattr(target, 'numpy')` answers instead of raising.
    """

    def __init__(self, operation: str, name: str = '') -> None:
        hint = _ACCURACY[0].upper() + _ACCURACY[1:] if name in _COMPARISONS else f'{_LOSSES}; {_ACCURACY}'
        super().__init__(f'CoupledTarget does not support {operation}: it has no soft-label meaning. {hint}.')


class CoupledTarget:
    """Class indices (B,) and gamma (B,), meaning the soft label `(1 - gamma) * onehot + gamma / K`, and maybe weights.

    The loader that makes it does not know the number of classes K, so it stays in this form until it meets the
    logits. Losses that take class indices take it as they are: the operations that they use on an index (cross
    entropy, gather, scatter, one-hot) are carried out as an index by the soft label, exactly. Every other operation
    raises, because falling back to the hard label would undo the coupling.

    "Exactly" is for losses that are linear in the label. It cannot know what a loss does next with the matrix that it
    scattered or the column that it gathered: a loss that goes on to something not linear, such as timm's single-label
    ASL or a focal loss, computes that on the soft label's expectation.

    With weights, an image's loss is multiplied by its weight before the mean over the batch (`Weighted`).

    Args:
        labels: Class indices (B,) of an integer dtype, not negative.
        gamma: Weight of the uniform part of each label (B,), floating point in [0, 1].
        weight: Of each image's loss (B,), floating point in [0, 1]; None where all count alike.

    Raises:
        ValueError: A shape, dtype or value is not as above. Values are checked for CPU tensors only.

    Example:
        >>> target = CoupledTarget(torch.tensor([0, 2]), torch.tensor([0.0, 0.4]))
        >>> target.dense(num_classes=4)
        tensor([[1.0000, 0.0000, 0.0000, 0.0000],
                [0.1000, 0.1000, 0.7000, 0.1000]])
    """

    def __init__(self, labels: Tensor, gamma: Tensor, weight: Tensor | None = None) -> None:
        if (
            not isinstance(labels, Tensor)
            or labels.ndim != 1
            or labels.is_floating_point()
            or labels.is_complex()
            or labels.dtype == torch.bool
        ):
            raise ValueError(f'labels must be class indices (B,) of an integer dtype, got {describe(labels)}')
        check_unit_interval('gamma', gamma, len(labels))
        if weight is not None:
            check_unit_interval('weight', weight, len(labels))
        check_labels(labels)
        self.labels = labels.long()
        self.gamma = gamma
        self.weight = weight
        self._column = False  # seen as (B, 1), which is how losses hand an index to gather and scatter

    def dense(self, num_classes: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return the soft labels (B, num_classes) in `dtype` (default: gamma's), rows summing to one.

        With weights they are `Weighted`, which losses come out weighted of.

        Raises:
            ValueError: A label is not below `num_classes` (checked for CPU tensors only).
        """
        check_labels(self.labels, num_classes)
        gamma = self.gamma if dtype is None else self.gamma.to(torch.promote_types(self.gamma.dtype, dtype))
        onehot = gamma.new_zeros(len(self), num_classes).scatter_(1, self.labels[:, None], 1)
        return self._weighted(smooth(onehot, gamma).to(dtype or gamma.dtype))

    def __repr__(self) -> str:
        weight = '' if self.weight is None else f', weight={self.weight}'
        return f'CoupledTarget(labels={self.labels}, gamma={self.gamma}{weight})'

    # What train loops and losses ask of an index target before they use it.

    @property
    def shape(self) -> torch.Size:
        return torch.Size([len(self), 1]) if self._column else self.labels.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.labels.dtype

    @property
    def device(self) -> torch.device:
        return self.labels.device

    def dim(self) -> int:
        return self.ndim

    def size(self, dim: int | None = None) -> torch.Size | int:
        return self.shape if dim is None else self.shape[dim]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | Tensor) -> CoupledTarget:
        if not isinstance(index, (slice, Tensor)):
            raise NoSoftMeaningError(f'target[{index!r}]')
        return self._each(lambda values: values[index])

    def long(self) -> CoupledTarget:
        return self

    def to(
        self,
        device: torch.device | str | int | None = None,
        non_blocking: bool = False,
        **other: Any,
    ) -> CoupledTarget:
        if isinstance(device, torch.dtype) or other:
            raise NoSoftMeaningError(f'to({", ".join(other) or device})')
        return self._each(lambda values: values.to(device=device, non_blocking=non_blocking))

    def cuda(self, device: torch.device | str | int | None = None, non_blocking: bool = False) -> CoupledTarget:
        return self.to(torch.device('cuda') if device is None else device, non_blocking)

    def cpu(self) -> CoupledTarget:
        return self.to('cpu')

    def flip(self, *dims: int) -> CoupledTarget:
        if dims not in ((0,), (-1,)) or self._column:
            raise NoSoftMeaningError(f'flip{dims}')
        return self._each(lambda values: values.flip(0))

    def unsqueeze(self, dim: int) -> CoupledTarget:
        if dim not in (1, -1) or self._column:
            raise NoSoftMeaningError(f'unsqueeze({dim})')
        return self._each(lambda values: values, column=True)

    def view(self, *shape: int) -> CoupledTarget:
        if shape not in ((-1, 1), (len(self), 1)):
            raise NoSoftMeaningError(f'view{shape}')
        return self._each(lambda values: values, column=True)

    def _each(self, change: Callable[[Tensor], Tensor], column: bool | None = None) -> CoupledTarget:
        other = object.__new__(CoupledTarget)
        other.labels, other.gamma = change(self.labels), change(self.gamma)
        other.weight = None if self.weight is None else change(self.weight)
        other._column = self._column if column is None else column
        return other

    def _weighted(self, values: Tensor) -> Tensor:
        return values if self.weight is None else Weighted.of(values, self.weight)

    # Everything else is refused by name.

    def __getattr__(self, name: str) -> NoReturn:
        if hasattr(Tensor, name):
            raise NoSoftMeaningError(f'Tensor.{name}', name)
        raise AttributeError(f'CoupledTarget has no attribute {name!r}')

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, '__name__', str(func))
        operation = _OPERATIONS.get(name)
        if operation is None:
            raise NoSoftMeaningError(name, name)
        return operation(*args, **(kwargs or {}))


def _refuse(operator: str) -> Callable[..., NoReturn]:
    def refuse(self: CoupledTarget, *args: object) -> NoReturn:
        raise NoSoftMeaningError(f'the operator {operator}', operator)

    return refuse


for _operator in ('eq', 'ne', 'lt', 'le', 'gt', 'ge', 'neg', 'invert', 'float', 'int', 'index'):
    setattr(CoupledTarget, f'__{_operator}__', _refuse(_operator))
for _operator in ('add', 'sub', 'mul', 'truediv', 'floordiv', 'mod', 'pow', 'matmul', 'and', 'or', 'xor'):
    setattr(CoupledTarget, f'__{_operator}__', _refuse(_operator))
    setattr(CoupledTarget, f'__r{_operator}__', _refuse(_operator))


class SoftMultiLabel(Tensor):
    """Multi-label targets (B, K) that were moved towards 1/2: a tensor that refuses to be cut back to 0 and 1.

    A loss that asks which labels are above a threshold would undo the coupling without a word: timm's `TwoWayLoss` and
    `ZlprLoss`, which take no soft labels, and `BinaryCrossEntropy` with a target threshold. For the labels that are
    present, compare `target.as_subclass(torch.Tensor)`.

    Example:
        >>> target = torch.tensor([[0.9, 0.1]]).as_subclass(SoftMultiLabel)
        >>> torch.nn.functional.binary_cross_entropy_with_logits(torch.zeros(1, 2), target)
        tensor(0.6931)
    """

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, '__name__', str(func))
        if name.strip('_') in _HARDENING:
            raise UserError(  # no TypeError, which operators turn into NotImplemented
                f'mollified multi-label targets do not support {name}, which would make them 0 and 1 again. Losses '
                "that work: timm's bce (without a target threshold), asl, poly and db; not twoway and zlpr, which take "
                'hard labels alone. For the labels that are present, compare target.as_subclass(torch.Tensor)'
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        return result.as_subclass(cls) if name in _MOVING and isinstance(result, Tensor) else result


_HARDENING = _COMPARISONS | {'greater', 'greater_equal', 'less', 'less_equal', 'round', 'bool', 'long', 'int', 'topk'}
_MOVING = {'to', 'cuda', 'cpu', 'float', 'double', 'half', 'bfloat16', 'clone', 'contiguous', 'detach', '__getitem__'}


# The operations that losses use on an index target, each read as "index by a soft label".


def _cross_entropy(input: Tensor, target: CoupledTarget, *args: Any, **kwargs: Any) -> Tensor:
    if input.ndim != 2 or len(input) != len(target):
        raise ValueError(f'logits must be ({len(target)}, num_classes) for {len(target)} labels, got {describe(input)}')
    # At least as precise as gamma: in half precision the rows would not sum to one.
    dense = target.dense(input.shape[1], torch.promote_types(input.dtype, target.gamma.dtype))
    return F.cross_entropy(input, dense, *args, **kwargs)


def _gather(input: Tensor, dim: int, index: CoupledTarget, **other: Any) -> Tensor:
    """Return the expectation of `input[i, k]` over the soft label, (B, 1)."""
    _check_column('gather', input, dim, index, other)
    check_labels(index.labels, input.shape[1])
    gamma = index.gamma[:, None]
    out = (1 - gamma) * input.gather(1, index.labels[:, None]) + gamma * input.mean(1, keepdim=True)
    return index._weighted(out.to(input.dtype))


def _scatter(input: Tensor, dim: int, index: CoupledTarget, value: Any = None, **other: Any) -> Tensor:
    """Return the expectation of `input` with `value` written at `[i, k]` over the soft label, (B, K)."""
    _check_column('scatter', input, dim, index, other)
    if not isinstance(value, (int, float)):
        raise NoSoftMeaningError(f'scatter of {describe(value)}')
    return input + index.dense(input.shape[1], input.dtype) * (value - input)


def _scatter_(input: Tensor, dim: int, index: CoupledTarget, value: Any = None, **other: Any) -> Tensor:
    result = _scatter(input, dim, index, value, **other)
    if not isinstance(result, Weighted):
        return input.copy_(result)
    if type(input) is not Tensor:
        raise NoSoftMeaningError(f'scatter_ into {type(input).__name__}')
    input.copy_(result.as_subclass(Tensor))
    result.turn(input)  # whichever of the two the loss goes on with
    return input


def _one_hot(tensor: CoupledTarget, num_classes: int = -1) -> Tensor:
    if num_classes < 1 or tensor.ndim != 1:
        raise NoSoftMeaningError('one_hot without a number of classes')
    return tensor.dense(num_classes)


_OPERATIONS: dict[str, Callable[..., Tensor]] = {
    'cross_entropy': _cross_entropy,
    'gather': _gather,
    'scatter': _scatter,
    'scatter_': _scatter_,
    'one_hot': _one_hot,
}


def _check_column(name: str, input: Tensor, dim: int, index: Any, other: dict[str, Any]) -> None:
    if (
        other
        or not isinstance(input, Tensor)
        or not input.is_floating_point()  # an integer one-hot would round the soft label to nothing
        or not isinstance(index, CoupledTarget)
        or not index._column
        or input.ndim != 2
        or len(input) != len(index)
        or dim not in (1, -1)
    ):
        options = ''.join(f', {key}=...' for key in other)
        raise NoSoftMeaningError(f'{name} on {describe(input)} along dim {dim}{options}')


def check_labels(labels: Tensor, num_classes: int | None = None) -> None:
    """Raise a ValueError unless labels are in range; only on the CPU, where looking costs no wait."""
    if labels.device.type != 'cpu' or len(labels) == 0 or torch.compiler.is_compiling():
        return
    low, high = (int(v) for v in labels.aminmax())
    if low < 0 or (num_classes is not None and high >= num_classes):
        allowed = 'not be negative' if num_classes is None else f'be in [0, {num_classes})'
        got = f'got {low if low < 0 else high} among {len(labels)} labels'
        few = '' if low < 0 else ': the network has too few classes (--num-classes), or labels are wrong'
        raise ValueError(f'labels must {allowed}, {got}{few}')
