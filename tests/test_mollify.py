import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from timm_molly import CoupledTarget, Mollify, MollyConfig
from timm_molly.functional import blur, blur_gamma, noise, noise_gamma


def batch(size=12, num_classes=5, shape=(3, 8, 8), seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, *shape, generator=generator).to(dtype)
    return x, torch.randint(num_classes, (size,), generator=generator)


def test_a_given_role_and_t_gives_the_pure_functions():
    config = MollyConfig(noise_power=2, blur_power=3, min_scale=0.5)
    x, labels = batch()
    roles, t = 'xnbe' * 3, torch.linspace(0, 1, 12)
    out, target = Mollify(config).apply(x.clone(), labels, roles, t, torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(7)
    index = {role: torch.tensor([i for i in range(12) if roles[i] == role]) for role in 'xnbe'}
    torch.testing.assert_close(out[index['x']], x[index['x']], atol=0, rtol=0)
    torch.testing.assert_close(out[index['b']], blur(x[index['b']], t[index['b']], 0.5))
    eps = {role: torch.randn(3, 3, 8, 8, generator=generator) for role in 'en'}
    torch.testing.assert_close(out[index['e']], eps['e'])
    torch.testing.assert_close(out[index['n']], noise(x[index['n']], t[index['n']], eps['n']))
    assert torch.equal(target.labels, labels)
    torch.testing.assert_close(target.gamma[index['x']], torch.zeros(3))
    torch.testing.assert_close(target.gamma[index['e']], torch.ones(3))
    torch.testing.assert_close(target.gamma[index['n']], noise_gamma(t[index['n']], 2))
    torch.testing.assert_close(target.gamma[index['b']], blur_gamma(t[index['b']], 3))


@settings(deadline=None)
@given(st.text('xnbe', min_size=1, max_size=5), st.integers(0, 9), st.integers(0, 999), st.booleans())
def test_soft_labels_stay_dense_and_sum_to_one(roles, size, seed, channels_last):
    x, labels = batch(size, seed=seed)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    soft = torch.nn.functional.one_hot(labels, 5) * 0.7 + torch.nn.functional.one_hot((labels + 1) % 5, 5) * 0.3
    mollify = Mollify(MollyConfig(roles=roles), generator=torch.Generator().manual_seed(seed))
    out, dense = mollify(x.clone(), soft)
    again = Mollify(MollyConfig(roles=roles), generator=torch.Generator().manual_seed(seed))
    index_out, coupled = again(x.clone(), labels)
    assert torch.equal(out, index_out)
    assert out.stride() == x.stride()
    assert isinstance(dense, torch.Tensor)
    torch.testing.assert_close(dense.sum(1), torch.ones(size))
    torch.testing.assert_close(dense, (1 - coupled.gamma[:, None]) * soft + coupled.gamma[:, None] / 5)


def test_the_batch_is_changed_in_place_as_by_mixup():
    x, labels = batch()
    out, _ = Mollify()(x, labels)
    assert out is x


def test_roles_and_temperatures_follow_their_laws():
    mollify = Mollify(MollyConfig(roles='xxnbe', alpha=1.5, beta=4))
    roles, t = mollify.draw(40_000, np.random.default_rng(0))
    t = t.numpy()
    counts = [int((roles == role).sum()) for role in 'xnbe']
    assert scipy.stats.chisquare(counts, [16_000, 8_000, 8_000, 8_000]).pvalue > 1e-4
    for role in 'nb':
        assert scipy.stats.kstest(t[roles == role], scipy.stats.beta(1.5, 4).cdf).pvalue > 1e-4
    assert (t[roles == 'x'] == 0).all()
    assert (t[roles == 'e'] == 1).all()


def test_torch_manual_seed_and_a_generator_make_it_repeat():
    x, labels = batch()

    def run(seed, generator=False):
        torch.manual_seed(seed)
        mollify = Mollify(generator=torch.Generator().manual_seed(seed) if generator else None)
        if generator:
            torch.manual_seed(12345)  # which must not matter then
        out, target = mollify(x.clone(), labels)
        return torch.cat([out.flatten(), target.gamma])

    for generator in (False, True):
        assert torch.equal(run(1, generator), run(1, generator))
        assert not torch.equal(run(1, generator), run(2, generator))


def test_batches_of_one_run_differ():
    x, labels = batch()
    mollify = Mollify(generator=torch.Generator().manual_seed(0))
    first, second = (mollify(x.clone(), labels)[1].gamma for _ in range(2))
    assert not torch.equal(first, second)


def test_splits_share_role_and_t_but_not_the_noise():
    x = torch.zeros(12, 3, 8, 8)
    out, target = Mollify(MollyConfig(roles='nb'), num_splits=3)(x, torch.arange(4).repeat(3))
    assert torch.equal(target.gamma[:4], target.gamma[4:8])
    assert torch.equal(target.gamma[:4], target.gamma[8:])
    assert len(target.gamma[:4].unique()) == 4
    noised = out[:4].std((1, 2, 3)) > 0
    assert torch.equal(noised, out[4:8].std((1, 2, 3)) > 0)
    if noised.any():
        assert not torch.equal(out[:4][noised], out[4:8][noised])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_dtype(dtype):
    x, labels = batch(dtype=dtype)
    out, target = Mollify()(x, labels.int())
    assert out.dtype == dtype
    assert out.isfinite().all()
    assert isinstance(target, CoupledTarget)
    assert target.labels.dtype == torch.int64


def test_images_that_require_a_gradient_are_taken_as_data():
    x, labels = batch()
    x.requires_grad_()
    out, _ = Mollify()(x, labels)
    assert out.grad_fn is None


@pytest.mark.parametrize(
    ('call', 'words'),
    [
        (lambda x, y: Mollify()(x.to(torch.uint8), y), r'x must be .*got torch.uint8 of shape \(12, 3, 8, 8\)'),
        (lambda x, y: Mollify()([x, x], y), 'x must be .*got list'),
        (lambda x, y: Mollify()(x, y[:3]), r'target must be class indices \(12,\) .* got torch.int64 of shape \(3,\)'),
        (lambda x, y: Mollify()(x, y[:, None, None]), r'shape \(12, 1, 1\)'),
        (lambda x, y: Mollify()(x, y.float()), 'labels must be class indices'),
        (lambda x, y: Mollify()(x, y - 5), 'labels must not be negative, got -5'),
        (lambda x, y: Mollify()(x, torch.ones(12, 5)), r'row that sums to 5. Multi-label targets cannot be mollified'),
        (lambda x, y: Mollify()(x, torch.full((12, 5), math.nan)), 'row that sums to nan'),
        (lambda x, y: Mollify()(x, torch.ones(12, 5, dtype=torch.int64)), 'soft labels of a floating-point dtype'),
        (lambda x, y: Mollify(num_splits=5)(x, y), 'a batch of 12 images cannot be 5 augmentation splits'),
        (lambda x, y: Mollify(num_splits=0), 'num_splits must be 1 or more, got 0'),
        (lambda x, y: Mollify('molly-b4'), "config must be a MollyConfig.*got 'molly-b4'"),
        (lambda x, y: Mollify().apply(x, y, 'xq' * 6, torch.zeros(12)), "roles must be 12 letters of 'xnbe'"),
        (lambda x, y: Mollify().apply(x, y, 'x', torch.zeros(12)), 'roles must be 12 letters'),
        (lambda x, y: Mollify().apply(x, y, 'n' * 12, torch.full((12,), math.nan)), r't must be in \[0, 1\], got nan'),
        (lambda x, y: Mollify().apply(x, y, 'n' * 12, torch.zeros(12, device='meta')), 't must be on the CPU'),
        (lambda x, y: Mollify(MollyConfig(min_scale=9))(x, y), r'min_scale .* image side \(8 px\), got 9'),
    ],
)
def test_bad_input_is_named(call, words):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=words):
        call(*batch())


def test_a_refused_batch_is_left_as_it_was():
    x, labels = batch()
    before = x.clone()
    with pytest.raises(ValueError, match='labels'):
        Mollify()(x, labels.float())
    assert torch.equal(x, before)
