"""Weighted labels: every loss comes out as the mean of weight times loss, with its gradient, or refuses them."""

import pytest
import timm.loss
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from timm_molly import CoupledTarget, Mollify
from timm_molly.errors import UserError
from timm_molly.loss import CoupledCrossEntropy, NormalizedCrossEntropy
from timm_molly.weighted import Weighted


def draw(seed, batch, num_classes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, num_classes, generator=generator, dtype=dtype)
    labels = torch.randint(num_classes, (batch,), generator=generator)
    gamma = torch.rand(batch, generator=generator, dtype=dtype)
    weight = torch.rand(batch, generator=generator, dtype=dtype)
    return logits, labels, gamma, weight


def in_place(z, y):
    """A loss that scatters as a statement of its own."""
    onehot = torch.zeros_like(z)
    onehot.scatter_(1, y.view(-1, 1), 1.0)
    return -(onehot * z.log_softmax(1)).sum(1).mean()


LOSSES = {
    'torch': nn.CrossEntropyLoss(),
    'torch smoothing': nn.CrossEntropyLoss(label_smoothing=0.2),
    'torch class weights': nn.CrossEntropyLoss(torch.arange(1.0, 6, dtype=torch.float64)),
    'torch none': lambda z, y: F.cross_entropy(z, y, reduction='none').mean(),
    'torch sum': lambda z, y: F.cross_entropy(z, y, reduction='sum') / len(z),
    'timm smoothing': timm.loss.LabelSmoothingCrossEntropy(0.2),
    'timm bce': timm.loss.BinaryCrossEntropy(0.1),
    'timm bce sum': timm.loss.BinaryCrossEntropy(0.1, sum_classes=True),
    'timm bce none': lambda z, y: timm.loss.BinaryCrossEntropy(0.0, reduction='none')(z, y).mean(),
    'coupled': CoupledCrossEntropy(),
    'coupled smoothing': CoupledCrossEntropy(0.2),
    'normalized': NormalizedCrossEntropy(),
    'one hot': lambda z, y: (-F.one_hot(y, z.shape[1]) * z.log_softmax(1)).sum(1).mean(),
    'dense': lambda z, y: F.cross_entropy(z, y.dense(z.shape[1])),
    'dense soft target': lambda z, y: timm.loss.SoftTargetCrossEntropy()(z, y.dense(z.shape[1])),
    'dense coupled': lambda z, y: CoupledCrossEntropy(0.1)(z, y.dense(z.shape[1])),
    'scatter in place': in_place,
    'focal': lambda z, y: (
        -((1 - z.softmax(1).gather(1, y.view(-1, 1))) ** 2) * z.log_softmax(1).gather(1, y.view(-1, 1))
    ).mean(),
}


@pytest.mark.parametrize('name', LOSSES)
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000), batch=st.integers(1, 7))
def test_a_loss_is_the_mean_of_weight_times_the_loss_of_each_image(name, seed, batch):
    loss = LOSSES[name]
    logits, labels, gamma, weight = draw(seed, batch, 5)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value = loss(ours, CoupledTarget(labels, gamma, weight))
    # Each image by itself, unweighted.
    each = [loss(theirs[i : i + 1], CoupledTarget(labels[i : i + 1], gamma[i : i + 1])) for i in range(batch)]
    expected = sum(w * one for w, one in zip(weight, each, strict=True)) / batch
    assert type(value) is torch.Tensor
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_weight_of_one_changes_nothing():
    logits, labels, gamma, weight = draw(0, 6, 5)
    for loss in LOSSES.values():
        alike = loss(logits, CoupledTarget(labels, gamma, torch.ones_like(weight)))
        torch.testing.assert_close(alike, loss(logits, CoupledTarget(labels, gamma)))


@pytest.mark.parametrize(
    'loss',
    [
        timm.loss.SoftTargetCrossEntropy(),
        timm.loss.BinaryCrossEntropy(),
        nn.CrossEntropyLoss(),
        CoupledCrossEntropy(0.1),
        nn.BCEWithLogitsLoss(),
    ],
)
def test_mixups_soft_labels_carry_the_weights(loss):
    logits, _, _, weight = draw(3, 6, 5)
    soft = torch.rand(6, 5, dtype=torch.float64).softmax(1)
    expected = sum(weight[i] * loss(logits[i : i + 1], soft[i : i + 1]) for i in range(6)) / 6
    torch.testing.assert_close(loss(logits, Weighted.of(soft, weight)), expected)


REFUSED = {
    'topk': lambda y: y.topk(2),
    'argmax': lambda y: y.argmax(1),
    '__gt__': lambda y: y > 0.5,
    'flip': lambda y: y.flip(0),
    'flatten': lambda y: y.flatten(),
    'matmul': lambda y: y.T @ y,
    'mean over dim 0': lambda y: y.mean(0),
    'softmax': lambda y: y.softmax(0),
    'cat': lambda y: torch.cat([y, y]),
    'to': lambda y: y.long(),
    'mul': lambda y: y * torch.ones(2, 6, 5),
    'kl_div': lambda y: F.kl_div(torch.zeros(6, 5), y),
    'size_average': lambda y: F.cross_entropy(torch.zeros(6, 5), y, size_average=True),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_would_lose_the_weights_is_refused_by_name(name):
    weighted = Weighted.of(torch.eye(5)[[0, 1, 2, 3, 4, 0]], torch.rand(6))
    with pytest.raises(UserError, match=r'weighted labels \(molly-w\) do not support'):
        REFUSED[name](weighted)


def test_values_of_two_batches_do_not_mix():
    one, other = (Weighted.of(torch.eye(3), torch.rand(3)) for _ in range(2))
    with pytest.raises(UserError):
        one + other


def test_losses_along_the_wrong_axis_are_refused():
    loss = Weighted.of(torch.rand(3), torch.rand(3))
    with pytest.raises(UserError, match='mul of'):
        loss * torch.rand(3, 3)


@pytest.mark.parametrize(
    ('values', 'weight'),
    [
        (torch.zeros(2, 2, 2), torch.ones(2)),
        (torch.zeros(3), torch.ones(2)),
        (torch.zeros(2), torch.tensor([1.0, 1.5])),
    ],
)
def test_bad_weights_are_refused(values, weight):
    with pytest.raises(ValueError, match=r'(values|weight) must be'):
        Weighted.of(values, weight)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(['molly-w', 'molly-w-mxn-b4', 'molly-w-k2-mxnbe', 'molly-w-kn3-kb0.5']), st.integers(0, 100))
def test_a_batch_keeps_hard_labels_and_weighs_what_the_plain_string_would_smooth(aa, seed):
    labels = torch.arange(9) % 3
    x = torch.randn(9, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    (weighted_x, target), (plain_x, plain) = (
        Mollify(string, generator=torch.Generator().manual_seed(seed))(x.clone(), labels)
        for string in (aa, aa.replace('-w', ''))
    )
    assert torch.equal(weighted_x, plain_x)
    assert not target.gamma.any()
    torch.testing.assert_close(target.weight, 1 - plain.gamma)


def test_soft_and_multi_labels_of_a_batch_stay_as_they_are():
    x, y = torch.randn(6, 3, 8, 8), torch.rand(6, 4).softmax(1)
    _, soft = Mollify('molly-w')(x, y)
    _, multi = Mollify('molly-w', multi_label=True)(x, y.round())
    assert torch.equal(soft.as_subclass(torch.Tensor), y)
    assert torch.equal(multi.as_subclass(torch.Tensor), y.round())
    assert soft.weight.shape == multi.weight.shape == (6,)


def test_the_parts_of_a_target_go_together():
    _, labels, gamma, weight = draw(1, 6, 5)
    target = CoupledTarget(labels, gamma, weight)
    assert torch.equal(target[2:].weight, weight[2:])
    assert torch.equal(target.flip(0).weight, weight.flip(0))
    assert torch.equal(target.cpu().unsqueeze(1).weight, weight)
    assert torch.equal(target.dense(5)[:2].weight, weight[:2])
    assert 'weight=tensor(' in repr(target)
