import math

import pytest
import timm.loss
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data.mixup import mixup_target
from torch import nn
from torch.nn import functional as F

from timm_molly import CoupledTarget

PolyCrossEntropy = getattr(timm.loss, 'PolyCrossEntropy', None)
needs_poly = pytest.mark.skipif(PolyCrossEntropy is None, reason='this timm has no PolyCrossEntropy')


def draw(seed, batch=7, num_classes=5):
    """Logits in float64, a coupled target, and the soft label that it means, by the method's formula in a loop."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, num_classes, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(num_classes, (batch,), generator=generator)
    gamma = torch.rand(batch, generator=generator, dtype=torch.float64)
    gamma[0], gamma[-1] = 0, 1
    dense = torch.zeros(batch, num_classes, dtype=torch.float64)
    for i in range(batch):
        for k in range(num_classes):
            dense[i, k] = (1 - gamma[i]) * (k == labels[i]) + gamma[i] / num_classes
    return logits, CoupledTarget(labels, gamma), dense


def smoothed(dense, smoothing):
    return (1 - smoothing) * dense + smoothing / dense.shape[1]


def soft_cross_entropy(logits, y):
    return -(y * logits.log_softmax(1)).sum(1).mean()


def binary_cross_entropy(logits, y):
    p = logits.sigmoid()
    return -(y * p.log() + (1 - y) * (1 - p).log()).mean()


def poly(logits, y):
    return soft_cross_entropy(logits, y) + 2 * (1 - (y * logits.softmax(1)).sum(1)).mean()


def assert_same(loss, reference, logits):
    """The same value and the same gradient, to 1e-6 in float64."""
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value, expected = loss(ours), reference(theirs)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value.double(), expected.double(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-6)


seeds, smoothings = st.integers(0, 1000), st.sampled_from([0.05, 0.1, 0.3])
sizes = st.tuples(st.integers(1, 9), st.integers(2, 12))


@settings(deadline=None, max_examples=30)
@given(seeds, sizes, smoothings)
def test_every_loss_of_train_py_equals_itself_on_the_soft_label(seed, size, s):
    logits, target, dense = draw(seed, *size)
    y = smoothed(dense, s)
    assert_same(lambda z: nn.CrossEntropyLoss()(z, target), lambda z: soft_cross_entropy(z, dense), logits)
    assert_same(lambda z: nn.CrossEntropyLoss(label_smoothing=s)(z, target), lambda z: soft_cross_entropy(z, y), logits)
    assert_same(
        lambda z: timm.loss.LabelSmoothingCrossEntropy(s)(z, target), lambda z: soft_cross_entropy(z, y), logits
    )
    assert_same(lambda z: timm.loss.BinaryCrossEntropy(s)(z, target), lambda z: binary_cross_entropy(z, y), logits)


@pytest.mark.parametrize('threshold', [0.15, 0.2, 0.5])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_binary_cross_entropy_thresholds_the_soft_label(threshold, smoothing):
    logits, target, dense = draw(0)
    y = (smoothed(dense, smoothing) > threshold).double()
    loss = timm.loss.BinaryCrossEntropy(smoothing, target_threshold=threshold)
    assert_same(lambda z: loss(z, target), lambda z: binary_cross_entropy(z, y), logits)


@pytest.mark.parametrize(
    'options',
    [
        {'sum_classes': True},
        {'pos_weight': 2.0},
        {'weight': torch.tensor([1.0, 2, 3, 4, 5], dtype=torch.float64)},
    ],
)
def test_binary_cross_entropy_with_its_options(options):
    logits, target, dense = draw(0)
    loss = timm.loss.BinaryCrossEntropy(0.1, **options)
    assert_same(lambda z: loss(z, target), lambda z: loss(z, smoothed(dense, 0.1)), logits)


@pytest.mark.parametrize(
    'options',
    [
        {'reduction': 'none'},
        {'reduction': 'sum'},
        {'weight': torch.tensor([1.0, 2, 3, 4, 5], dtype=torch.float64)},
    ],
)
def test_cross_entropy_with_its_options(options):
    logits, target, dense = draw(0)
    loss = nn.CrossEntropyLoss(**options)
    torch.testing.assert_close(loss(logits, target), loss(logits, dense))
    torch.testing.assert_close(F.cross_entropy(logits, target=target, **options), loss(logits, dense))


@needs_poly
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_poly_cross_entropy(smoothing):
    logits, target, dense = draw(0)
    loss = PolyCrossEntropy(smoothing=smoothing)  # computes in float32 whatever it is given
    torch.testing.assert_close(
        loss(logits, target).double(), poly(logits, smoothed(dense, smoothing)), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_jsd_cross_entropy_takes_the_labels_of_the_clean_split(smoothing):
    logits, target, dense = draw(0, batch=12)
    loss = timm.loss.JsdCrossEntropy(num_splits=3, smoothing=smoothing)

    def reference(z):
        p = torch.stack([part.softmax(1) for part in z.split(4)])
        mean = p.mean(0)
        divergence = sum((part * (part / mean).log()).sum() / 4 for part in p) / 3
        return soft_cross_entropy(z[:4], smoothed(dense[:4], smoothing)) + 12 * divergence

    assert_same(lambda z: loss(z, target), reference, logits)


@pytest.mark.parametrize('lam', [0.3, torch.linspace(0, 1, 8).unsqueeze(1)])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_mixup_after_the_loader_mixes_the_soft_labels(lam, smoothing):
    _, target, dense = draw(0, batch=8)
    y = smoothed(dense, smoothing)
    torch.testing.assert_close(
        mixup_target(target, 5, lam, smoothing).double(), y * lam + y.flip(0) * (1 - lam), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_logits_keep_their_dtype(dtype):
    logits, target, _ = draw(0)
    target = CoupledTarget(target.labels, target.gamma.float())
    for loss in (timm.loss.LabelSmoothingCrossEntropy(0.1), timm.loss.BinaryCrossEntropy(0.1)):
        value = loss(logits.to(dtype), target)
        expected = loss(logits.to(dtype).double(), CoupledTarget(target.labels, target.gamma.double()))
        assert value.dtype == dtype
        assert value.item() == pytest.approx(expected.item(), rel={torch.float32: 1e-5}.get(dtype, 2e-2))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('autocast', [False, True])
def test_cross_entropy_does_not_round_the_label_to_half_precision(dtype, autocast):
    logits, target, dense = draw(0, batch=64, num_classes=1000)
    logits = logits.to(dtype)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        value = nn.CrossEntropyLoss(reduction='none')(logits, CoupledTarget(target.labels, target.gamma.float()))
    assert value.dtype == torch.float32
    expected = -(dense * logits.double().log_softmax(1)).sum(1)
    rounded = (torch.finfo(dtype).eps if dtype != torch.float32 and not autocast else 1e-5) * 10
    torch.testing.assert_close(value.double(), expected, atol=rounded, rtol=rounded)


@given(seeds, sizes)
def test_dense_rows_sum_to_one_and_are_the_formula(seed, size):
    _, target, dense = draw(seed, *size)
    torch.testing.assert_close(target.dense(size[1]), dense)
    torch.testing.assert_close(target.dense(size[1]).sum(1), torch.ones(size[0], dtype=torch.float64))


def test_it_looks_like_an_index_target():
    _, target, _ = draw(0)
    assert target.shape == target.size() == torch.Size([7])
    assert target.size(0) == len(target) == 7
    assert target.ndim == target.dim() == 1
    assert target.dtype == torch.int64
    assert target.device == torch.device('cpu')
    assert target.unsqueeze(1).shape == target.view(-1, 1).shape == (7, 1)
    assert target.long() is target
    assert torch.equal(target.flip(0).labels, target.labels.flip(0))
    assert torch.equal(target[1:3].gamma, target.gamma[1:3])
    assert torch.equal(target.to(device='cpu', non_blocking=True).labels, target.labels)
    assert not hasattr(target, 'numpy')
    assert not hasattr(target, 'nonsense')


@pytest.mark.parametrize(
    ('operation', 'name'),
    [
        (lambda z, y: F.nll_loss(z, y), 'nll_loss'),
        (lambda z, y: F.mse_loss(z[:, 0], y), 'mse_loss'),
        (lambda z, y: F.multi_margin_loss(z, y), 'multi_margin_loss'),
        (lambda z, y: (z.argmax(1) == y).float().mean(), 'eq'),
        (lambda z, y: y == z.argmax(1), 'eq'),
        (lambda z, y: y == 3, 'eq'),
        (lambda z, y: y != 3, 'ne'),
        (lambda z, y: y.argmax(1), 'argmax'),
        (lambda z, y: torch.eq(z.argmax(1), y), 'eq'),
        (lambda z, y: y * 2.0, 'mul'),
        (lambda z, y: 2.0 - y, 'sub'),
        (lambda z, y: float(y), 'float'),
        (lambda z, y: z * y, 'mul'),
        (lambda z, y: z[torch.arange(7), y], '__getitem__'),
        (lambda z, y: z[:, y], '__getitem__'),
        (lambda z, y: torch.eye(5)[y], '__getitem__'),
        (lambda z, y: y.float(), 'Tensor.float'),
        (lambda z, y: y.numpy(), 'Tensor.numpy'),
        (lambda z, y: y.to(torch.float32), 'to(torch.float32)'),
        (lambda z, y: y.unsqueeze(0), 'unsqueeze(0)'),
        (lambda z, y: y.view(1, -1), 'view(1, -1)'),
        (lambda z, y: y.flip(1), 'flip(1,)'),
        (lambda z, y: y[0], 'target[0]'),
        (lambda z, y: list(y), 'target[0]'),
        (lambda z, y: z.gather(0, y.unsqueeze(1)), 'gather'),
        (lambda z, y: z.gather(1, y), 'gather'),
        (lambda z, y: torch.zeros(7, 5).scatter_(1, y.unsqueeze(1), torch.ones(7, 1)), 'scatter'),
        (lambda z, y: torch.zeros(7, 5).scatter_(1, y.unsqueeze(1), src=torch.ones(7, 1)), 'scatter'),
        (lambda z, y: torch.zeros(7, 5).scatter_(1, y.unsqueeze(1), 1, reduce='add'), 'scatter'),
        (lambda z, y: torch.zeros(7, 5, dtype=torch.long).scatter_(1, y.unsqueeze(1), 1), 'scatter on torch.int64'),
        (lambda z, y: torch.zeros(7, 5, dtype=torch.bool).scatter_(1, y.unsqueeze(1), 1), 'scatter on torch.bool'),
        (lambda z, y: z.long().gather(1, y.unsqueeze(1)), 'gather on torch.int64'),
        (lambda z, y: torch.gather(z, 1, y.unsqueeze(1), sparse_grad=True), 'gather'),
        (lambda z, y: y.to('cpu', dtype=torch.float32), 'to(dtype)'),
        (lambda z, y: F.one_hot(y), 'one_hot'),
        (lambda z, y: torch.stack([y, y]), 'stack'),
    ],
)
def test_what_means_nothing_for_a_soft_label_is_refused_by_name(operation, name):
    logits, target, _ = draw(0)
    with pytest.raises(TypeError) as error:
        operation(logits, target)
    assert name in str(error.value)
    assert 'compare predictions with the class indices, target.labels' in str(error.value)
    # Who compares wants the accuracy, and no loss.
    assert ('Losses that work: nn.CrossEntropyLoss' in str(error.value)) == (name not in ('eq', 'ne', 'argmax'))


def test_single_label_asl_is_computed_on_the_soft_label():
    # It scatters a one-hot matrix as BCE does, so it cannot be told apart; this is what it then gives.
    logits, target, dense = draw(0)
    loss = timm.loss.AsymmetricLossSingleLabel()
    value = loss(logits, target)
    p = logits.softmax(1)
    weight = (1 - p * dense - (1 - p) * (1 - dense)) ** (1 * dense + 4 * (1 - dense))
    expected = -(smoothed(dense, 0.1) * logits.log_softmax(1) * weight).sum(1).mean()
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(
    ('make', 'words'),
    [
        (
            lambda: CoupledTarget(torch.tensor([0.5]), torch.tensor([0.0])),
            'labels must be class indices .* torch.float32',
        ),
        (
            lambda: CoupledTarget(torch.tensor([[1]]), torch.tensor([0.0])),
            r'labels .* got torch.int64 of shape \(1, 1\)',
        ),
        (lambda: CoupledTarget(torch.tensor([True]), torch.tensor([0.0])), 'labels .* torch.bool'),
        (lambda: CoupledTarget([1], torch.tensor([0.0])), r'labels .* got list \[1\]'),
        (
            lambda: CoupledTarget(torch.tensor([-1]), torch.tensor([0.0])),
            'labels must not be negative, got -1 among 1 labels',
        ),
        (lambda: CoupledTarget(torch.tensor([1, 2]), torch.tensor([0.0])), r'gamma .* of shape \(2,\), got .* \(1,\)'),
        (
            lambda: CoupledTarget(torch.tensor([1]), torch.tensor([1.5])),
            r'gamma must be in \[0, 1\], got 1.5 in a tensor of shape \(1,\)',
        ),
        (lambda: CoupledTarget(torch.tensor([1]), torch.tensor([math.nan])), 'gamma .* got nan'),
        (lambda: CoupledTarget(torch.tensor([1]), torch.tensor([0])), 'gamma must be a floating-point .* torch.int64'),
        (lambda: CoupledTarget(torch.tensor([5]), torch.tensor([0.0])).dense(5), r'labels must be in \[0, 5\), got 5'),
        (
            lambda: timm.loss.LabelSmoothingCrossEntropy()(
                torch.zeros(1, 5), CoupledTarget(torch.tensor([7]), torch.tensor([0.0]))
            ),
            r'labels must be in \[0, 5\), got 7',
        ),
        (
            lambda: F.cross_entropy(torch.zeros(2, 5), CoupledTarget(torch.tensor([1]), torch.tensor([0.0]))),
            r'logits must be \(1, num_classes\) for 1 labels, got torch.float32 of shape \(2, 5\)',
        ),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
