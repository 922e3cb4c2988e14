"""The same numbers as the authors' own code, where it is at hand."""

import numpy as np
import pytest
import torch
from support.authors import authors_model, needs_authors
from torch.nn import functional as F

from timm_molly import CoupledTarget, Mollify, MollyConfig
from timm_molly.functional import blur, noise
from timm_molly.loss import NormalizedCrossEntropy

pytestmark = needs_authors
t = torch.linspace(0, 1, 8)


@pytest.mark.parametrize('size', [32, 64, 224])
def test_blur(size):
    x = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(0))
    assert (blur(x, t) - authors_model(size, 10).xblur(x, t)).abs().max() < 1e-5


def test_noise():
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    theirs = authors_model(32, 10).xnoise(x, t)
    torch.manual_seed(1)
    torch.testing.assert_close(noise(x, t, torch.randn_like(x)), theirs)


@pytest.mark.parametrize(('noise_power', 'blur_power'), [(1, 1), (2, 0.5)])
def test_labels(noise_power, blur_power):
    config = MollyConfig(roles='xnbe', noise_power=noise_power, blur_power=blur_power)
    roles, labels = np.array(list('xnbe' * 2)), torch.arange(8) % 5
    x = torch.randn(8, 3, 32, 32)
    _, target = Mollify(config).apply(x, labels, ''.join(roles), t)
    model = authors_model(32, 5, npow=noise_power, bpow=blur_power)
    theirs = model.mollify_y(F.one_hot(labels, 5).float(), t, roles)
    torch.testing.assert_close(target.dense(5), theirs, atol=1e-6, rtol=1e-6)


def test_normalized_cross_entropy():
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)) * 3
    target = CoupledTarget(torch.arange(8) % 5, t)
    theirs = authors_model(32, 5).normalized_cross_entropy(logits, target.dense(5))
    torch.testing.assert_close(NormalizedCrossEntropy()(logits, target), theirs)
