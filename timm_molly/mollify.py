"""The batch operation: draw a role and a strength for each image, degrade it, and lower its label."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from timm_molly.config import ROLES, MollyConfig
from timm_molly.functional import (
    check_images,
    check_min_scale,
    check_unit_interval,
    describe,
    smooth,
    smooth_multi_label,
)
from timm_molly.gaussian import standard_normal
from timm_molly.inplace import blur_, noise_
from timm_molly.target import CoupledTarget, SoftMultiLabel
from timm_molly.weighted import Weighted

# Numbers degraded at a time: few, so that what is half done takes little memory beside the batch, and on a CPU stays in
# its cache; more on a GPU, where every operation costs a launch.
CPU_CHUNK, GPU_CHUNK = 2**20, 2**25


class Mollify:
    """Mollify a batch that is ready for the model: `x, target = mollify(x, target)`, as with `timm.data.Mixup`.

    Args:
        config: The settings, or their aa string such as `'molly-b4'`; the paper's if None.
        num_splits: Augmentation splits: the batch is this many views of the same images, one after the other. The
            views of an image share role and t (each has its own noise), so that a consistency loss compares equals.
        generator: Source of the random draws, on the CPU; by default torch's global generators (`torch.manual_seed`).
            The same seed gives the same batch.
        multi_label: Whether targets are independent labels, each present or absent, as timm 1.0.31 trains them. Each
            moves towards 1/2 instead of all together towards the uniform distribution.

    Raises:
        ValueError: A value is not as above.

    Example:
        >>> mollify = Mollify('molly-mxn', generator=torch.Generator().manual_seed(0))
        >>> x, target = mollify(torch.zeros(4, 3, 8, 8), torch.tensor([2, 0, 1, 2]))
        >>> target.labels, target.gamma.count_nonzero()  # half of the images are clean
        (tensor([2, 0, 1, 2]), tensor(2))
        >>> torch.nn.functional.cross_entropy(torch.zeros(4, 3), target)
        tensor(1.0986)
    """

    def __init__(
        self,
        config: MollyConfig | str | None = None,
        num_splits: int = 1,
        generator: torch.Generator | None = None,
        multi_label: bool = False,
    ) -> None:
        if isinstance(config, str):
            config = MollyConfig.from_string(config)
        if config is not None and not isinstance(config, MollyConfig):
            raise ValueError(f"config must be a MollyConfig or an aa string such as 'molly-b4', got {config!r}")
        if num_splits < 1:
            raise ValueError(f'num_splits must be 1 or more, got {num_splits}')
        self.config = config or MollyConfig()
        self.num_splits = num_splits
        self.generator = generator
        self.multi_label = multi_label
        self.drawn: tuple[str, Tensor] = '', torch.empty(0)  # roles and t of the last batch, of `draw`

    def __repr__(self) -> str:
        return f'Mollify({self.config}, num_splits={self.num_splits})'

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor | CoupledTarget]:
        """Mollify a batch; draws first, then applies.

        Args:
            x: Normalised images (B, C, H, W), floating point, on any device. Changed in place, as by timm's Mixup.
            target: Class indices (B,), or soft labels (B, K) whose rows sum to one; with `multi_label` labels (B, K) in
                [0, 1].

        Returns:
            `x`, and a `CoupledTarget` for class indices, soft labels (B, K) for soft labels, or `SoftMultiLabel` ones;
            labels (B, K) are `Weighted` where the settings are.

        Raises:
            ValueError: A shape, dtype or value is not as above, or B is not a multiple of `num_splits`.
        """
        check_images(x)
        self._check_splits(x)
        rng = self.rng()
        return self.apply(x, target, *self.draw(len(x) // self.num_splits, rng), rng)

    def draw(self, batch_size: int, rng: np.random.Generator) -> tuple[str, Tensor]:
        """Draw a role and a strength for each image.

        The images take the letters of `config.roles` in turn, in an order that is drawn anew for each batch. So each
        image's role has the law of an independent draw, each letter gets its share of every batch, to an image, and
        the images of a letter are evenly spaced, so that they can be worked on where they lie. Roles of different
        images of a batch are not independent: a batch should be shuffled, as batches for training are.

        Returns:
            The letters of `config.roles` in the order drawn: image i has the role `roles[i % len(roles)]`; and
            t ~ Beta(alpha, beta) (batch_size,), float32 on the CPU, which is 0 for a clean image and 1 for one of
            nothing but noise.
        """
        roles = ''.join(rng.permutation(list(self.config.roles)))
        t = torch.from_numpy(rng.beta(self.config.alpha, self.config.beta, batch_size)).float()
        for i, role in enumerate(roles):
            if role in 'xe':
                t[i :: len(roles)] = float(role == 'e')
        self.drawn = roles, t
        return roles, t

    @torch.no_grad()
    def apply(
        self,
        x: Tensor,
        target: Tensor,
        roles: str,
        t: Tensor,
        rng: np.random.Generator | None = None,
    ) -> tuple[Tensor, Tensor | CoupledTarget]:
        """Degrade each image to a given role and t, and lower its label by as much.

        Args:
            x: As in `__call__`, changed in place.
            target: As in `__call__`.
            roles: Letters that the images of a split take in turn, from the first image on.
            t: Strengths (B / num_splits,), floating point in [0, 1], on the CPU.
            rng: Source of the noise; by default torch's generators, as in `__call__`.

        Returns:
            As `__call__`.
        """
        check_images(x)
        self.check_target(target, len(x))
        if not isinstance(roles, str) or not roles or set(roles) - set(ROLES):
            raise ValueError(f'roles must be one or more of the letters {", ".join(ROLES)}, got {roles!r}')
        self._check_splits(x)
        check_unit_interval('t', t, len(x) // self.num_splits)
        if t.device.type != 'cpu':
            raise ValueError(f't must be on the CPU, as draw gives it, got it on {t.device}')
        # What follows must not fail: it changes x.
        if 'b' in roles:
            check_min_scale(self.config.min_scale, max(x.shape[-2:]))
        if any(stride == 0 and size > 1 for stride, size in zip(x.stride(), x.shape, strict=True)):
            raise ValueError(
                'x must not be an expanded tensor, which holds pixels once for several: give x.contiguous()'
            )
        smoothed = self.lower(target, roles, t)
        rng = rng or self.rng()
        source = noise_source(x.device, rng)
        t = t.to(x.device, non_blocking=True)
        for view in x.chunk(self.num_splits):
            for role, turn in turns(roles):
                self.degrade(role, view[turn], t[turn], source)
        return x, smoothed

    def lower(self, target: Tensor, roles: str, t: Tensor) -> Tensor | CoupledTarget:
        """Lower the labels of a batch, or their weights, by as much as its images are degraded; as of `apply`."""
        gamma = torch.zeros_like(t)
        for role, turn in turns(roles):
            gamma[turn] = self.config.gamma(role, t[turn])
        gamma = gamma.expand(self.num_splits, -1).flatten().to(target.device, non_blocking=True)
        if self.config.weighted:
            weight = 1 - gamma
            return CoupledTarget(target, 0 * gamma, weight) if target.ndim == 1 else Weighted.of(target, weight)
        if self.multi_label:
            return smooth_multi_label(target, gamma).as_subclass(SoftMultiLabel)
        return CoupledTarget(target, gamma) if target.ndim == 1 else smooth(target, gamma)

    def degrade(self, role: str, x: Tensor, t: Tensor, source: np.random.Generator | torch.Generator) -> None:
        """Degrade images of one role in place.

        Args:
            role: 'n', 'b' or 'e'.
            x: Images (B, C, H, W).
            t: Strengths (B,) on the device of `x`.
            source: Of the noise, of `noise_source`.
        """
        count = max(1, (CPU_CHUNK if x.device.type == 'cpu' else GPU_CHUNK) // x.shape[1:].numel())
        t = t.to(torch.promote_types(x.dtype, torch.float32))
        for part, part_t in zip(torch.split(x, count), torch.split(t, count), strict=True):
            if role == 'b':
                blur_(part, part_t, self.config.min_scale)
                continue
            if isinstance(source, np.random.Generator):
                eps = standard_normal(part.shape, source)
            else:  # in half precision: half as much to move, and steps far below those of an image of 8 bits
                dtype = torch.float16 if part.dtype == torch.float32 else part.dtype
                eps = torch.empty(part.shape, dtype=dtype, device=part.device).normal_(generator=source)
            noise_(part, part_t if role == 'n' else torch.ones_like(part_t), eps)

    def rng(self) -> np.random.Generator:
        """A source of draws that follows torch's generators."""
        seed = torch.randint(2**63 - 1, (), generator=self.generator, device='cpu')
        return np.random.default_rng(int(seed))

    def check_target(self, target: Tensor, batch_size: int) -> None:
        """Raise a ValueError unless a target is as in `__call__`; values are looked at on the CPU only."""
        dims = (2,) if self.multi_label else (1, 2)
        if not isinstance(target, Tensor) or target.ndim not in dims or len(target) != batch_size:
            wanted = (
                f'{"" if self.multi_label else f"class indices ({batch_size},) or "}{self._labels} ({batch_size}, K)'
            )
            raise ValueError(f'target must be {wanted} for {batch_size} images, got {describe(target)}')
        if target.ndim == 2:
            if not target.is_floating_point():
                raise ValueError(
                    f'target (B, K) must hold {self._labels} of a floating-point dtype, got {describe(target)}'
                )
            if target.device.type == 'cpu':
                self.check_values(target)

    def check_values(self, target: Tensor) -> None:
        """Raise a ValueError unless soft labels (B, K) are distributions, or labels in [0, 1]; reads the values."""
        if not self.multi_label:
            check_distribution(target)
        elif len(target) and not (target.min() >= 0 and target.max() <= 1):
            raise ValueError('target (B, K) must hold multi-label targets in [0, 1]')

    @property
    def _labels(self) -> str:
        return 'multi-label targets' if self.multi_label else 'soft labels'

    def _check_splits(self, x: Tensor) -> None:
        if len(x) % self.num_splits:
            raise ValueError(f'a batch of {len(x)} images cannot be {self.num_splits} augmentation splits')


def turns(roles: str) -> list[tuple[str, slice]]:
    """The images of a batch that each letter degrades."""
    return [(role, slice(i, None, len(roles))) for i, role in enumerate(roles) if role != 'x']


def noise_source(device: torch.device, rng: np.random.Generator) -> np.random.Generator | torch.Generator:
    """What noise on a device is drawn from: a generator of the CPU cannot go to another."""
    if device.type == 'cpu':
        return rng
    return torch.Generator(device).manual_seed(int(rng.integers(2**63 - 1)))


def check_distribution(target: Tensor) -> None:
    """Raise a ValueError unless the rows of the soft labels (B, K) sum to one; reads the values."""
    if len(target) == 0:
        return
    total = target.sum(1)
    if not torch.allclose(total, torch.ones_like(total), atol=1e-2):
        worst = total[(total - 1).abs().argmax()].item()
        raise ValueError(
            'target (B, K) must hold soft labels, each row summing to 1, got a row that sums to '
            f'{worst:g}. For multi-label targets: Mollify(..., multi_label=True)'
        )
