import itertools
import math

import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from timm_molly.functional import (
    blur,
    blur_gamma,
    blur_scale,
    confidence,
    label_gamma,
    noise,
    noise_gamma,
    smooth,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 4e-2, torch.float32: 2e-5, torch.float64: 1e-12}
shapes = st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(1, 24), st.integers(1, 24))
temperatures = st.floats(0, 1)


def images(shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def draw_t(data, batch, dtype=torch.float64):
    return torch.tensor(data.draw(st.lists(temperatures, min_size=batch, max_size=batch)), dtype=dtype)


def reference_blur(x, t, min_scale):
    """The heat equation as the paper has it, by SciPy's DCT: transform, damp each frequency, transform back."""
    x, t = x.double().numpy(), t.double().numpy()
    height, width = x.shape[-2:]
    tau = (min_scale ** (1 - t) * max(height, width) ** t) ** 2 / 2
    frequency = (math.pi * np.arange(height) / height)[:, None] ** 2 + (math.pi * np.arange(width) / width) ** 2
    coefficients = scipy.fft.dctn(x, axes=(-2, -1), norm='ortho')
    damped = coefficients * np.exp(-frequency * tau[:, None, None])[:, None]
    return scipy.fft.idctn(damped, axes=(-2, -1), norm='ortho')


@settings(deadline=None)
@given(shapes, st.sampled_from(DTYPES), st.data())
def test_noise_is_the_cosine_mixture(shape, dtype, data):
    x, eps, t = images(shape, dtype), images(shape, dtype, seed=1), draw_t(data, shape[0])
    out = noise(x, t, eps)
    angle = math.pi / 2 * t.numpy()[:, None, None, None]
    expected = np.cos(angle) * x.double().numpy() + np.sin(angle) * eps.double().numpy()
    assert out.dtype == dtype
    np.testing.assert_allclose(out.double().numpy(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@settings(deadline=None)
@given(shapes, st.sampled_from(DTYPES), st.floats(0.01, 1), st.data())
def test_blur_is_the_heat_equation_in_the_cosine_basis(shape, dtype, min_scale, data):
    x, t = images(shape, dtype), draw_t(data, shape[0])
    out = blur(x, t, min_scale)
    assert out.dtype == dtype
    assert out.shape == x.shape
    np.testing.assert_allclose(
        out.double().numpy(),
        reference_blur(x, t, min_scale),
        atol=TOLERANCE[dtype],
        rtol=TOLERANCE[dtype],
    )


@pytest.mark.parametrize('size', [1, 32, 64, 224, (224, 160)])
def test_blur_in_float32_is_accurate_at_the_sizes_people_use(size):
    height, width = size if isinstance(size, tuple) else (size, size)
    x, t = images((6, 3, height, width), torch.float32), torch.linspace(0, 1, 6)
    assert np.abs(blur(x, t).numpy() - reference_blur(x, t, 0.3)).max() < 5e-6


def test_no_images_make_no_images():
    x = torch.empty(0, 3, 8, 9)
    assert blur(x, torch.empty(0)).shape == noise(x, torch.empty(0), x).shape == x.shape


@settings(deadline=None)
@given(shapes, st.floats(0.1, 1), st.floats(0.1, 1))
def test_two_blurs_are_one_as_long_as_both(shape, first, second):
    x, t = images(shape), torch.zeros(shape[0], dtype=torch.float64)
    both = math.hypot(first, second)
    if both <= max(shape[-2:]):
        twice = blur(blur(x, t, first), t, second)
        torch.testing.assert_close(twice, blur(x, t, both), atol=1e-10, rtol=1e-10)


@settings(deadline=None)
@given(shapes, st.data())
def test_blur_keeps_the_mean_and_never_adds_contrast(shape, data):
    x = images(shape)
    out = blur(x, draw_t(data, shape[0]))
    torch.testing.assert_close(out.mean((2, 3)), x.mean((2, 3)), atol=1e-10, rtol=1e-10)
    assert (out.square().mean((2, 3)) <= x.square().mean((2, 3)) + 1e-9).all()


def test_noise_keeps_unit_variance_at_every_t():
    x, eps, t = images((6, 3, 128, 128)), images((6, 3, 128, 128), seed=1), torch.linspace(0, 1, 6)
    assert noise(x, t, eps).var((1, 2, 3)) == pytest.approx([1] * 6, abs=0.03)


def test_the_ends_of_the_scale():
    x, eps = images((2, 3, 16, 16)), images((2, 3, 16, 16), seed=1)
    zero, one = torch.zeros(2), torch.ones(2)
    torch.testing.assert_close(noise(x, zero, eps), x)
    torch.testing.assert_close(noise(x, one, eps), eps, atol=1e-7, rtol=0)
    smallest = (blur(x, zero) - x).std() / x.std()  # 0.3 px: little even of white noise, but not nothing
    assert 0.05 < smallest < 0.3
    assert blur(x, one).std((2, 3)).max() < 0.01 * x.std()


@given(st.just(0.0) | st.floats(1e-38, 1), st.floats(0.01, 1000))
def test_label_weights_follow_the_snr_and_t(t, power):
    alpha, sigma = math.cos(math.pi * t / 2), math.sin(math.pi * t / 2)
    expected = 0.0 if sigma == 0 else (1 / (1 + (alpha / sigma) ** 2)) ** power
    gamma = noise_gamma(torch.tensor(t, dtype=torch.float64), power).item()
    assert gamma == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert blur_gamma(torch.tensor(t, dtype=torch.float64), power).item() == pytest.approx(t**power, rel=1e-9)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_label_weights_stay_in_the_unit_interval_and_rise(dtype):
    t = torch.linspace(0, 1, 1001, dtype=dtype)
    for gamma in (noise_gamma(t), blur_gamma(t), noise_gamma(t, 1000.0), blur_gamma(t, 0.01)):
        assert gamma[0] == 0
        assert gamma[-1] == 1
        assert (gamma.diff() >= 0).all()


def test_blur_scale_is_log_spaced_from_the_smallest_to_the_image_side():
    scale = blur_scale(torch.linspace(0, 1, 5, dtype=torch.float64), 224)
    assert scale[[0, -1]].tolist() == pytest.approx([0.3, 224])
    assert (scale[1:] / scale[:-1]).tolist() == pytest.approx([(224 / 0.3) ** 0.25] * 4)


@given(st.integers(0, 5), st.integers(1, 12), st.sampled_from(DTYPES), st.data())
def test_smoothed_labels_sum_to_one_and_follow_the_formula(batch, num_classes, dtype, data):
    y = torch.rand(batch, num_classes, dtype=torch.float64).softmax(1).to(dtype)
    gamma = draw_t(data, batch)
    out = smooth(y, gamma)
    assert out.dtype == dtype
    expected = (1 - gamma.numpy()[:, None]) * y.double().numpy() + gamma.numpy()[:, None] / num_classes
    np.testing.assert_allclose(out.double().numpy(), expected, atol=TOLERANCE[dtype])
    np.testing.assert_allclose(out.double().sum(1).numpy(), 1, atol=2 * TOLERANCE[dtype])


@given(st.integers(1, 5), st.integers(1, 2000), st.data())
def test_the_confidence_is_the_labels_own_entry(batch, num_classes, data):
    gamma = draw_t(data, batch)
    labels = torch.tensor(data.draw(st.lists(st.integers(0, num_classes - 1), min_size=batch, max_size=batch)))
    dense = smooth(torch.nn.functional.one_hot(labels, num_classes).double(), gamma)
    kept = confidence(gamma, num_classes)
    torch.testing.assert_close(kept, dense.gather(1, labels[:, None])[:, 0], atol=1e-12, rtol=0)
    assert (kept >= 1 / num_classes - 1e-12).all()
    assert (kept <= 1).all()


@given(st.sampled_from('xnbe'), st.floats(0.01, 100), st.floats(0.01, 100), st.data())
def test_the_label_weight_is_that_of_the_role(role, noise_power, blur_power, data):
    t = draw_t(data, 3)
    expected = {'x': 0 * t, 'n': noise_gamma(t, noise_power), 'b': blur_gamma(t, blur_power), 'e': 0 * t + 1}[role]
    assert torch.equal(label_gamma(role, t, noise_power, blur_power), expected)
    assert torch.equal(label_gamma(role, t[0], noise_power, blur_power), expected[0])  # of any shape


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'transposed', 'sliced'])
@pytest.mark.parametrize('dtype', DTYPES)
def test_memory_format_comes_back_with_the_same_values(layout, dtype):
    plain = images((4, 3, 10, 12), dtype)
    x = {
        'contiguous': plain,
        'channels_last': plain.to(memory_format=torch.channels_last),
        'transposed': plain.transpose(2, 3).contiguous().transpose(2, 3),
        'sliced': torch.cat([plain, plain], 3)[..., :12],
    }[layout]
    t, eps = torch.linspace(0, 1, 4), images((4, 3, 10, 12), dtype, seed=1)
    for out, expected in ((blur(x, t), blur(plain, t)), (noise(x, t, eps), noise(plain, t, eps))):
        assert out.stride() == torch.empty_like(x).stride()
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    x, eps, t = images((4, 3, 16, 16), dtype), images((4, 3, 16, 16), dtype, seed=1), torch.linspace(0, 1, 4)
    assert torch.equal(blur(x, t), blur(x.float(), t).to(dtype))
    assert torch.equal(noise(x, t, eps), noise(x.float(), t, eps.float()).to(dtype))


def test_autocast_does_not_lower_the_precision():
    x, t = images((2, 3, 32, 32), torch.float32), torch.tensor([0.3, 0.6])
    with torch.autocast('cpu', torch.bfloat16):
        out = blur(x, t)
    assert torch.equal(out, blur(x, t))


def test_gradients_flow_even_after_a_call_in_inference_mode():
    x = images((2, 1, 3, 29)).requires_grad_()
    t, eps = torch.tensor([0.2, 0.7], dtype=torch.float64, requires_grad=True), images((2, 1, 3, 29), seed=1)
    with torch.inference_mode():
        blur(x, t)  # nothing made here may be kept and used below
    assert torch.autograd.gradcheck(blur, (x, t))
    assert torch.autograd.gradcheck(noise, (x, t, eps))


@pytest.mark.slow
@pytest.mark.parametrize(
    ('shape', 't'),
    [
        *itertools.product([(1, 1, 1024, 2), (2, 3, 1, 1), (2, 3, 1, 1024)], [0.0, 1e-30, 1e-6, 0.5, 1 - 6e-8, 1.0]),
        ((1, 1, 4096, 4096), 0.5),
    ],
)
def test_huge_and_tiny_images_and_temperatures(shape, t):
    x, temperatures = images(shape, torch.float32), torch.full(shape[:1], t)
    assert np.abs(blur(x, temperatures).numpy() - reference_blur(x, temperatures, 0.3)).max() < 2e-5
    eps = images(shape, torch.float32, seed=1)
    angle = math.pi / 2 * temperatures.double().numpy()[:, None, None, None]
    expected = np.cos(angle) * x.double().numpy() + np.sin(angle) * eps.double().numpy()
    assert np.abs(noise(x, temperatures, eps).numpy() - expected).max() < 2e-6


@pytest.fixture
def subnormal_numbers():
    """Put back what code compiled by older inductors takes from the whole process: numbers next to 0 become 0."""
    yield
    torch.set_flush_denormal(False)


@pytest.mark.slow
@pytest.mark.usefixtures('subnormal_numbers')
@pytest.mark.filterwarnings('ignore:Torchinductor does not support code generation for complex operators')
def test_the_functional_part_compiles_whole():
    def step(x, t, eps, y):
        return (
            noise(x, t, eps),
            blur(x, t),
            smooth(y, noise_gamma(t)),
            smooth(y, blur_gamma(t, 2.0)),
        )

    # Older ones cannot trace an FFT whose size varies, so that each size is a graph of its own.
    dynamic = None if tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 8) else False
    # 'eager' shows that nothing breaks the graph, quickly; the default writes code.
    for backend, (batch, height, width) in (('eager', (4, 16, 16)), ('eager', (3, 9, 20)), ('inductor', (4, 9, 16))):
        shape = (batch, 3, height, width)
        x, eps = images(shape, torch.float32), images(shape, torch.float32, seed=1)
        arguments = x, torch.linspace(0, 1, batch), eps, images((batch, 5)).float().softmax(1)
        compiled = torch.compile(step, fullgraph=True, backend=backend, dynamic=dynamic)
        for out, expected in zip(compiled(*arguments), step(*arguments), strict=True):
            torch.testing.assert_close(out, expected, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ('call', 'words'),
    [
        (lambda x, t: blur(x[0], t), r'x must be .* \(B, C, H, W\), got torch.float32 of shape \(3, 8, 8\)'),
        (lambda x, t: blur((x * 255).to(torch.uint8), t), 'got torch.uint8 of shape'),
        (lambda x, t: blur(x[..., :0], t), r'of shape \(2, 3, 8, 0\)'),
        (lambda x, t: blur(x.numpy(), t), 'got ndarray'),
        (lambda x, t: noise(x, t[:1], x), r't must be a floating-point tensor of shape \(2,\), got .* \(1,\)'),
        (lambda x, t: noise(x, t.long(), x), 'got torch.int64'),
        (lambda x, t: noise(x, t * math.nan, x), r't must be in \[0, 1\], got nan in a tensor'),
        (lambda x, t: blur(x, t + 0.8), r't must be in \[0, 1\], got 1.3 in a tensor of shape \(2,\)'),
        (lambda x, t: blur(x, t - 0.1), r't must be in \[0, 1\], got -0.1 in a tensor'),
        (lambda x, t: noise(x, t, x[:1]), r'eps must be shaped as x, \(2, 3, 8, 8\), got .* \(1, 3, 8, 8\)'),
        (lambda x, t: blur(x, t, 0.0), r'min_scale must be above 0 and at most the image side \(8 px\), got 0'),
        (lambda x, t: blur(x, t, 9.0), 'min_scale .* got 9'),
        (lambda x, t: noise_gamma(t + 1), r't must be in \[0, 1\], got 1.5'),
        (lambda x, t: blur_gamma(t - math.nan), r't must be in \[0, 1\], got nan'),
        (lambda x, t: blur_scale(t - 1, 32), r't must be in \[0, 1\], got -1'),
        (lambda x, t: noise_gamma(t, 0), 'power must be above 0, got 0'),
        (lambda x, t: blur_gamma(t, -1), 'power must be above 0, got -1'),
        (lambda x, t: label_gamma('q', t), "role must be 'x', 'n', 'b' or 'e', got 'q'"),
        (lambda x, t: label_gamma('xn', t), "got 'xn'"),
        (lambda x, t: label_gamma('', t), "got ''"),
        (lambda x, t: label_gamma('e', t + 1), r't must be in \[0, 1\], got 1.5'),
        (lambda x, t: smooth(torch.tensor([0, 1]), t), r'y must hold soft labels \(B, K\)'),
        (lambda x, t: smooth(torch.eye(2), t * 3), r'gamma must be in \[0, 1\], got 1.5'),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.zeros(2, 3, 8, 8), torch.tensor([0.0, 0.5]))
