"""The batch operation: draw a role and a temperature for each image, degrade it, and lower its label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from timm_molly.config import ROLES, MollyConfig
from timm_molly.functional import (
    blur,
    blur_gamma,
    check_images,
    check_unit_interval,
    describe,
    noise,
    noise_gamma,
    smooth,
)
from timm_molly.target import CoupledTarget


class Mollify:
    """Mollify a batch that is ready for the model: `x, target = mollify(x, target)`, as with `timm.data.Mixup`.

    Args:
        config: The settings.
        num_splits: Augmentation splits: the batch is this many views of the same images, one after the other. The
            views of an image share role and t (each has its own noise), so that a consistency loss compares equals.
        generator: Source of the random draws, on the CPU; by default torch's global generators (`torch.manual_seed`).
            The same seed gives the same batch.
    """

    def __init__(
        self,
        config: MollyConfig | None = None,
        num_splits: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        if config is not None and not isinstance(config, MollyConfig):
            raise ValueError(f'config must be a MollyConfig, as from MollyConfig.from_string, got {config!r}')
        if num_splits < 1:
            raise ValueError(f'num_splits must be 1 or more, got {num_splits}')
        self.config = config or MollyConfig()
        self.num_splits = num_splits
        self.generator = generator

    def __repr__(self) -> str:
        return f'Mollify({self.config}, num_splits={self.num_splits})'

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor | CoupledTarget]:
        """Mollify a batch; draws first, then applies.

        Args:
            x: Normalised images (B, C, H, W), floating point, on any device. Changed in place, as by timm's Mixup.
            target: Class indices (B,), or soft labels (B, K) whose rows sum to one.

        Returns:
            `x`, and a `CoupledTarget` for class indices or soft labels (B, K) for soft labels.

        Raises:
            ValueError: A shape, dtype or value is not as above, or B is not a multiple of `num_splits`.
        """
        check_images(x)
        if len(x) % self.num_splits:
            raise ValueError(f'a batch of {len(x)} images cannot be {self.num_splits} augmentation splits')
        rng = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=self.generator)))
        roles, t = self.draw(len(x) // self.num_splits, rng)
        generator = None
        if self.generator is not None:  # the noise is drawn on the device of x, where a CPU generator cannot go
            generator = torch.Generator(x.device).manual_seed(int(rng.integers(2**63 - 1)))
        return self.apply(x, target, np.tile(roles, self.num_splits), t.repeat(self.num_splits), generator)

    def draw(self, batch_size: int, rng: np.random.Generator) -> tuple[np.ndarray, Tensor]:
        """Draw a role and a temperature for each image.

        Returns:
            Letters of `config.roles` (batch_size,), and t ~ Beta(alpha, beta) (batch_size,), float32 on the CPU, which
            is 0 for a clean image and 1 for one of nothing but noise.
        """
        roles = rng.choice(list(self.config.roles), batch_size)
        t = rng.beta(self.config.alpha, self.config.beta, batch_size)
        t = np.where(roles == 'x', 0, np.where(roles == 'e', 1, t))
        return roles, torch.from_numpy(t).float()

    @torch.no_grad()
    def apply(
        self,
        x: Tensor,
        target: Tensor,
        roles: Sequence[str] | np.ndarray,
        t: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor | CoupledTarget]:
        """Degrade each image to a given role and t, and lower its label by as much.

        Args:
            x: As in `__call__`, changed in place.
            target: As in `__call__`.
            roles: One letter an image (B,).
            t: Temperatures (B,), floating point in [0, 1], on the CPU: the images of a role are found on the host, so
                that nothing waits for the device.
            generator: Source of the noise, on the device of `x`.

        Returns:
            As `__call__`.
        """
        check_images(x)
        _check_target(target, len(x))
        roles = np.asarray(list(roles))
        if roles.shape != (len(x),) or not np.isin(roles, list(ROLES)).all():
            raise ValueError(f'roles must be {len(x)} letters of {ROLES!r}, one an image, got {roles}')
        check_unit_interval('t', t, len(x))
        if t.device.type != 'cpu':
            raise ValueError(f't must be on the CPU, where roles are told apart without waiting, got it on {t.device}')
        hosts = {role: torch.from_numpy(np.flatnonzero(roles == role)) for role in sorted(set(roles) - {'x'})}
        gamma = torch.zeros_like(t)
        for role, host in hosts.items():
            gamma[host] = self._gamma(role, t[host])
        gamma = gamma.to(target.device, non_blocking=True)
        smoothed = CoupledTarget(target, gamma) if target.ndim == 1 else smooth(target, gamma)
        for role, host in hosts.items():
            index = host.to(x.device, non_blocking=True)
            x[index] = self._degrade(role, x[index], t[host].to(x.device, non_blocking=True), generator)
        return x, smoothed

    def _gamma(self, role: str, t: Tensor) -> Tensor:
        if role == 'n':
            return noise_gamma(t, self.config.noise_power)
        return blur_gamma(t, self.config.blur_power) if role == 'b' else torch.ones_like(t)

    def _degrade(self, role: str, x: Tensor, t: Tensor, generator: torch.Generator | None) -> Tensor:
        if role == 'b':
            return blur(x, t, self.config.min_scale)
        eps = torch.empty_like(x).normal_(generator=generator)
        return noise(x, t, eps) if role == 'n' else eps


def check_distribution(target: Tensor) -> None:
    """Raise a ValueError unless the rows of the soft labels (B, K) sum to one; reads the values."""
    total = target.sum(1)
    if not torch.allclose(total, torch.ones_like(total), atol=1e-2):
        worst = total[(total - 1).abs().argmax()].item()
        raise ValueError(
            'target (B, K) must hold soft labels, each row summing to 1, got a row that sums to '
            f'{worst:g}. Multi-label targets cannot be mollified: train without --aa molly'
        )


def _check_target(target: Tensor, batch_size: int) -> None:
    if not isinstance(target, Tensor) or target.ndim not in (1, 2) or len(target) != batch_size:
        raise ValueError(
            f'target must be class indices ({batch_size},) or soft labels ({batch_size}, K) '
            f'for {batch_size} images, got {describe(target)}'
        )
    if target.ndim == 2:
        if not target.is_floating_point():
            raise ValueError(f'target (B, K) must hold soft labels of a floating-point dtype, got {describe(target)}')
        if target.device.type == 'cpu':
            check_distribution(target)
