import itertools
import math
from unittest import mock

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from timm_molly import CoupledTarget, Mollify, MollyConfig
from timm_molly.functional import blur, blur_gamma, noise, noise_gamma
from timm_molly.gaussian import standard_normal


def batch(size=12, num_classes=5, shape=(3, 8, 8), seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, *shape, generator=generator).to(dtype)
    return x, torch.randint(num_classes, (size,), generator=generator)


def test_a_given_role_and_t_gives_the_pure_functions():
    config = MollyConfig(noise_power=2, blur_power=3, min_scale=0.5)
    x, labels = batch()
    t = torch.linspace(0, 1, 12)
    out, target = Mollify(config).apply(x.clone(), labels, 'xnbe', t, np.random.default_rng(7))
    rng = np.random.default_rng(7)
    torch.testing.assert_close(out[0::4], x[0::4], atol=0, rtol=0)
    torch.testing.assert_close(out[1::4], noise(x[1::4], t[1::4], standard_normal((3, 3, 8, 8), rng)))
    torch.testing.assert_close(out[2::4], blur(x[2::4], t[2::4], 0.5))
    torch.testing.assert_close(out[3::4], standard_normal((3, 3, 8, 8), rng), atol=1e-6, rtol=0)
    assert torch.equal(target.labels, labels)
    torch.testing.assert_close(target.gamma[0::4], torch.zeros(3))
    torch.testing.assert_close(target.gamma[1::4], noise_gamma(t[1::4], 2))
    torch.testing.assert_close(target.gamma[2::4], blur_gamma(t[2::4], 3))
    torch.testing.assert_close(target.gamma[3::4], torch.ones(3))


@settings(deadline=None)
@given(
    st.text('xnbe', min_size=1, max_size=5), st.integers(1, 3), st.integers(1, 40), st.sampled_from([1, 3 * 192, 10**6])
)
def test_images_degraded_a_few_at_a_time_come_out_the_same(roles, splits, size, chunk):
    x, labels = batch(size * splits)
    t = torch.linspace(0, 1, size)
    mollify = Mollify(num_splits=splits)
    expected, _ = mollify.apply(x.clone(), labels, roles, t, np.random.default_rng(0))
    with mock.patch('timm_molly.mollify.CPU_CHUNK', chunk):
        out, _ = mollify.apply(x.clone(), labels, roles, t, np.random.default_rng(0))
    turns = np.resize(list(roles), size).tolist() * splits
    for i, role in enumerate(turns):
        if role in 'xb':  # the noise is another
            torch.testing.assert_close(out[i], expected[i])
        else:
            assert torch.equal(out[i], x[i]) == (role == 'n' and t[i % size] == 0)


@pytest.mark.parametrize('chunk', [1, 3 * 64, 10**6])
@pytest.mark.parametrize('splits', [1, 2])
@pytest.mark.parametrize('size', [0, 1, 2, 3])
@pytest.mark.parametrize('roles', ['x', 'n', 'b', 'e', *map(''.join, itertools.permutations('xnb'))])
def test_a_batch_too_small_for_all_roles(roles, size, splits, chunk):
    x, labels = batch(size * splits)
    t = torch.linspace(0.2, 0.8, size)
    irfft = torch.fft.irfft

    def mkl_irfft(input, *args, **kwargs):  # some builds of PyTorch refuse an empty tensor, others do not
        assert input.numel()
        return irfft(input, *args, **kwargs)

    with mock.patch('timm_molly.mollify.CPU_CHUNK', chunk), mock.patch('torch.fft.irfft', mkl_irfft):
        out, target = Mollify(num_splits=splits).apply(x.clone(), labels, roles, t, np.random.default_rng(0))
    assert len(out) == len(target) == size * splits
    for i, (before, after) in enumerate(zip(x, out, strict=True)):
        role, at = roles[i % size % len(roles)], t[i % size]
        gamma = {'x': torch.zeros(()), 'n': noise_gamma(at), 'b': blur_gamma(at), 'e': torch.ones(())}[role]
        torch.testing.assert_close(target.gamma[i], gamma)
        if role == 'x':
            assert torch.equal(after, before)
        elif role == 'b':
            torch.testing.assert_close(after, blur(before[None], at[None])[0])
        else:
            assert not torch.equal(after, before)


def test_the_settings_may_be_an_aa_string():
    assert Mollify('molly-b4-mxn').config == MollyConfig(roles='xn', beta=4)
    with pytest.raises(ValueError, match="unknown or malformed section 'z4' in 'molly-z4'"):
        Mollify('molly-z4')


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


def test_temperatures_follow_their_law():
    roles, t = Mollify(MollyConfig(roles='xxnbe', alpha=1.5, beta=4)).draw(40_000, np.random.default_rng(0))
    t = t.numpy()
    assert sorted(roles) == sorted('xxnbe')
    for i, role in enumerate(roles):
        if role in 'nb':
            assert scipy.stats.kstest(t[i::5], scipy.stats.beta(1.5, 4).cdf).pvalue > 1e-4
        else:
            assert (t[i::5] == (role == 'e')).all()


@pytest.mark.parametrize('size', [1, 2, 4, 7])
def test_the_role_of_each_image_follows_its_law_at_every_batch_size(size):
    mollify, rng = Mollify(MollyConfig(roles='xxnb')), np.random.default_rng(0)
    draws = np.array([np.resize(list(mollify.draw(size, rng)[0]), size) for _ in range(8000)])
    for image in draws.T:
        counts = [(image == role).sum() for role in 'xnb']
        assert scipy.stats.chisquare(counts, [4000, 2000, 2000]).pvalue > 1e-4
    shares = [(draws == role).sum(1) for role in 'nb']
    assert all(share.max() - share.min() <= 1 for share in shares)


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


@pytest.mark.parametrize(('images', 'of_t'), [(torch.float64, torch.float32), (torch.float32, torch.bfloat16)])
def test_temperatures_are_taken_at_the_precision_of_the_images(images, of_t):
    x, labels = batch(dtype=images)
    t = torch.linspace(0, 1, len(x)).to(of_t)
    expected = blur(x.clone(), t)
    out, _ = Mollify().apply(x, labels, 'b', t)
    torch.testing.assert_close(out, expected, atol=1e-12 if images == torch.float64 else 1e-5, rtol=0)


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
        (lambda x, y: Mollify()(x, torch.ones(12, 5)), r'row that sums to 5. For multi-label targets: Mollify'),
        (lambda x, y: Mollify()(x, torch.full((12, 5), math.nan)), 'row that sums to nan'),
        (lambda x, y: Mollify()(x, torch.ones(12, 5, dtype=torch.int64)), 'soft labels of a floating-point dtype'),
        (lambda x, y: Mollify(num_splits=5)(x, y), 'a batch of 12 images cannot be 5 augmentation splits'),
        (lambda x, y: Mollify(num_splits=0), 'num_splits must be 1 or more, got 0'),
        (lambda x, y: Mollify(4), 'config must be a MollyConfig or an aa string.*got 4'),
        (lambda x, y: Mollify().apply(x, y, 'xq', torch.zeros(12)), "roles must be .* letters x, n, b, e, got 'xq'"),
        (lambda x, y: Mollify().apply(x, y, '', torch.zeros(12)), "roles must be one or more .*, got ''"),
        (lambda x, y: Mollify().apply(x, y, ['x', 'n'], torch.zeros(12)), r"roles must be .*, got \['x', 'n'\]"),
        (lambda x, y: Mollify().apply(x, y, 'x', torch.zeros(3)), r't must be .* of shape \(12,\), got .* \(3,\)'),
        (lambda x, y: Mollify().apply(x, y, 'n', torch.full((12,), math.nan)), r't must be in \[0, 1\], got nan'),
        (
            lambda x, y: Mollify().apply(x, y, 'n', torch.zeros(12, device='meta')),
            't must be on the CPU.* got it on meta',
        ),
        (lambda x, y: Mollify(num_splits=5).apply(x, y, 'n', torch.zeros(2)), 'a batch of 12 images cannot be 5'),
        (lambda x, y: Mollify()(x[:, :1].expand(-1, 3, -1, -1), y), r'x must not be an expanded tensor.*x.contiguous'),
        (lambda x, y: Mollify(MollyConfig(min_scale=9))(x, y), r'min_scale .* image side \(8 px\), got 9'),
    ],
)
def test_bad_input_is_named(call, words):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=words):
        call(*batch())


@pytest.mark.parametrize(
    ('config', 'convert', 'words'),
    [
        (MollyConfig(), lambda labels: labels.float(), 'labels'),
        (MollyConfig(), lambda labels: torch.full((12, 5), 0.5), 'row that sums to 2.5'),
        (MollyConfig(roles='nb', min_scale=9), lambda labels: labels, 'min_scale'),
    ],
)
def test_a_refused_batch_is_left_as_it_was(config, convert, words):
    x, labels = batch()
    before = x.clone()
    for _ in range(3):  # whichever role comes first
        with pytest.raises(ValueError, match=words):
            Mollify(config)(x, convert(labels))
        assert torch.equal(x, before)


def test_a_smallest_blur_beyond_the_image_is_no_matter_where_nothing_is_blurred():
    x, labels = batch()
    Mollify(MollyConfig(roles='xn', min_scale=9))(x, labels)


@pytest.mark.parametrize(
    ('target', 'words'),
    [
        (torch.full((4, 5), 1.5), r'multi-label targets in \[0, 1\]'),
        (torch.full((4, 5), torch.nan), r'multi-label targets in \[0, 1\]'),
        (torch.zeros(4, dtype=torch.long), r'must be multi-label targets \(4, K\) for 4 images, got torch.int64'),
        (torch.zeros(4, 5, dtype=torch.long), 'must hold multi-label targets of a floating-point dtype'),
    ],
)
def test_what_are_no_multi_label_targets_is_refused_before_images_change(target, words):
    x = torch.ones(4, 3, 8, 8)
    with pytest.raises(ValueError, match=words):
        Mollify('molly-me', multi_label=True)(x, target)
    assert (x == 1).all()
