"""Bytes that a batch operation moves on a GPU, and its kernel launches, counted by operation, without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from timm_molly import Mollify, inplace

# Operations that write their first argument, or their result, without reading what it held.
FILL = {'normal_', 'fill_', 'zero_', 'copy_', 'uniform_', 'random_'}
# Operations that only make room, or only look.
FREE = {'empty', 'empty_strided', 'empty_like', 'detach', 'resize_', 'set_', '_local_scalar_dense'}


class Traffic(TorchDispatchMode):
    """Count what each operation on a device reads and writes: each element once, whatever a cache spares or misses.

    Attributes:
        bytes: Read and written, by operation.
        launches: Operations that start a kernel.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.bytes: dict[str, int] = {}
        self.launches = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        made = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        if (
            func.namespace != 'aten'
            or name in FREE
            or func.is_view
            or not any(each.device.type == self.device for each in [*given, *made])
        ):
            return result
        written = args[0] if name in FILL else kwargs.get('out')
        touched = [each for each in given if each is not written] + made
        moved = sum(size(each) for each in touched if each.device.type == self.device)
        self.bytes[name] = self.bytes.get(name, 0) + moved
        self.launches += 1
        return result


def size(x: Tensor) -> int:
    """Bytes that a tensor covers, those that it holds several times once."""
    span = (
        1 + sum((length - 1) * stride for length, stride in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    )
    return min(x.numel(), span) * x.element_size()


def count(operation: Callable[..., object], make: Callable[[], tuple[object, ...]], device: str = 'cuda') -> Traffic:
    """Count an operation on the fake tensors that `make` makes."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        arguments = make()
        with Traffic(device) as traffic:
            operation(*arguments)
    return traffic


def can_count() -> bool:
    """Whether this PyTorch makes fake CUDA tensors where there is no GPU: older ones ask its driver."""
    try:
        count(lambda x: x[::2].normal_() @ x, lambda: (torch.empty(2, 2, device='cuda'),))
    except RuntimeError:
        return False
    return True


def of_mollify(batch_size: int, image_size: int, dtype: torch.dtype) -> tuple[float, int]:
    """Count a call of `Mollify`: its bytes over those of copying the batch once, and its launches."""
    mollify = Mollify()
    rng = np.random.default_rng(0)
    drawn = mollify.draw(batch_size, rng)

    def make():
        shape = batch_size, 3, image_size, image_size
        return torch.empty(shape, dtype=dtype, device='cuda'), torch.empty(batch_size, dtype=torch.long, device='cuda')

    inplace._ring.cache_clear()
    with (
        # Generators of a device that is not there cannot be made, and values of tensors that are not there not checked.
        mock.patch('timm_molly.mollify.noise_source', return_value=None),
        mock.patch('timm_molly.functional._check_values'),
    ):
        found = count(lambda x, target: mollify.apply(x, target, *drawn, rng), make)
    inplace._ring.cache_clear()  # of tensors that are not there
    copy = 2 * batch_size * 3 * image_size**2 * dtype.itemsize
    return sum(found.bytes.values()) / copy, found.launches
