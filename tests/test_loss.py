import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from timm_molly import CoupledTarget
from timm_molly.loss import CoupledCrossEntropy, NormalizedCrossEntropy


def draw(seed, batch, num_classes, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, num_classes, generator=generator, dtype=torch.float64) * scale
    labels = torch.randint(num_classes, (batch,), generator=generator)
    gamma = torch.rand(batch, generator=generator, dtype=torch.float64)
    return logits, labels, gamma


def normalized_reference(logits, y):
    """The loss by its definition, with 60 digits: integrate each class's likelihood along its line of labels."""
    total = mpmath.mpf(0)
    with mpmath.workdps(60):
        for row, label in zip(logits.tolist(), y.tolist(), strict=True):
            exps = [mpmath.e ** mpmath.mpf(z) for z in row]
            f = [e / sum(exps) for e in exps]
            g = mpmath.exp(sum(mpmath.log(p) for p in f) / len(f))
            means = [mpmath.quad(lambda u, p=p, g=g: p ** (1 - u) * g**u, [0, 1]) for p in f]
            total += -sum(w * mpmath.log(p) for w, p in zip(label, f, strict=True)) + mpmath.log(sum(means))
        return float(total / len(y))


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 8), st.integers(2, 12), st.sampled_from([0.0, 0.1, 0.5]))
def test_coupled_cross_entropy_is_cross_entropy_of_the_soft_label(seed, batch, num_classes, smoothing):
    logits, labels, gamma = draw(seed, batch, num_classes)
    loss = CoupledCrossEntropy(smoothing)
    target = CoupledTarget(labels, gamma)
    onehot = F.one_hot(labels, num_classes).double()
    for given_target, dense in ((target, target.dense(num_classes)), (labels, onehot), (onehot, onehot)):
        ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        value = loss(ours, given_target)
        expected = F.cross_entropy(theirs, dense, label_smoothing=smoothing)
        value.backward()
        expected.backward()
        torch.testing.assert_close(value, expected, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-9, rtol=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 3), st.integers(2, 5), st.sampled_from([0.001, 1.0, 10.0]))
def test_normalized_cross_entropy_is_its_definition(seed, batch, num_classes, scale):
    logits, labels, gamma = draw(seed, batch, num_classes, scale)
    target = CoupledTarget(labels, gamma)
    value = NormalizedCrossEntropy()(logits, target)
    assert value.item() == pytest.approx(normalized_reference(logits, target.dense(num_classes)), rel=1e-8, abs=1e-9)
    torch.testing.assert_close(NormalizedCrossEntropy()(logits, target.dense(num_classes)), value)


@pytest.mark.parametrize(
    'logits',
    [
        [[0.0, 0, 0]],
        [[1e-9, 0, -1e-9]],
        [[300.0, -300, 0]],
        [[1.0, 1, -80]],
        [[0.01, 0, -0.01]],
    ],
)
def test_normalized_cross_entropy_is_finite_where_its_formula_divides_zero_by_zero(logits):
    logits = torch.tensor(logits, requires_grad=True)
    value = NormalizedCrossEntropy()(logits, torch.tensor([0]))
    value.backward()
    assert logits.grad.isfinite().all()
    expected = normalized_reference(logits.detach(), torch.tensor([[1.0, 0, 0]]))
    assert value.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_normalized_cross_entropy_gradient():
    logits, labels, gamma = draw(0, 3, 4)
    logits[0] = 0.5  # every entry equals the geometric mean
    target = CoupledTarget(labels, gamma)
    assert torch.autograd.gradcheck(lambda z: NormalizedCrossEntropy()(z, target), logits.requires_grad_(), atol=1e-6)


def test_coupled_cross_entropy_builds_no_dense_label(monkeypatch):
    monkeypatch.setattr(CoupledTarget, 'dense', lambda *_: pytest.fail('built a (B, K) label'))
    CoupledCrossEntropy(0.1)(torch.zeros(2, 5), CoupledTarget(torch.tensor([1, 2]), torch.tensor([0.0, 0.5])))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r'smoothing must be in \[0, 1\), got 1'):
        CoupledCrossEntropy(1.0)
    for loss in (CoupledCrossEntropy(), NormalizedCrossEntropy()):
        with pytest.raises(ValueError, match=r'labels must be in \[0, 5\), got 7 .*too few classes \(--num-classes\)'):
            loss(torch.zeros(2, 5), torch.tensor([1, 7]))
        with pytest.raises(ValueError, match='labels must not be negative, got -100'):
            loss(torch.zeros(2, 5), torch.tensor([1, -100]))
        with pytest.raises(ValueError, match=r'labels must be class indices .* torch.float32'):
            loss(torch.zeros(2, 5), torch.tensor([1.0, 2.0]))
        with pytest.raises(ValueError, match=r'target \(B, K\) must hold soft labels .* torch.int64'):
            loss(torch.zeros(2, 5), torch.zeros(2, 5, dtype=torch.int64))
    for loss in (CoupledCrossEntropy(), NormalizedCrossEntropy()):
        for logits, target in ((torch.zeros(2, 5), [1, 2, 3]), (torch.zeros(5), [1]), (torch.zeros(1, 5).int(), [1])):
            with pytest.raises(ValueError, match=r'logits must be floating point \(B, K\) and target .*got torch'):
                loss(logits, torch.tensor(target))
