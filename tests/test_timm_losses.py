"""Every loss and task that timm 1.0.31 and newer can build: it takes mollified labels exactly, or refuses them by name.

What is found is the table of `timm_molly/plugin/losses.md`. MOLLY_WRITE=1 writes it anew.
"""

import os
from pathlib import Path

import pytest
import timm
import timm.loss
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import timm_molly
from timm_molly import CoupledTarget, Mollify
from timm_molly.errors import UserError
from timm_molly.target import SoftMultiLabel
from timm_molly.weighted import Weighted

create_classification_loss = getattr(timm.loss, 'create_classification_loss', None)
if create_classification_loss is None:
    pytest.skip('this timm has no loss factory', allow_module_level=True)

TABLE = Path(timm_molly.__file__).parent / 'plugin' / 'losses.md'
WEIGHTS = [0.5, 1.0, 2.0, 1.5, 0.25]
COUNTS = [3, 20, 50, 7, 1]


def soften(y, s, multi_label):
    return (1 - s) * y + s * (0.5 if multi_label else 1 / y.shape[1])


# Each loss as its paper and timm's documentation have it, of soft labels, in float64.


def bce(z, y, weight=1.0, pos_weight=1.0, sum_classes=False):
    p = z.sigmoid()
    weight, pos_weight = (torch.tensor(w, dtype=torch.float64) for w in (weight, pos_weight))
    each = -weight * (pos_weight * y * p.log() + (1 - y) * (1 - p).log())
    return each.sum(1).mean() if sum_classes else each.mean()


def ce(z, y):
    return -(y * z.log_softmax(1)).sum(1).mean()


def poly(z, y, epsilon=2.0):
    return ce(z, y) + epsilon * (1 - (y * z.softmax(1)).sum(1)).mean()


def poly_binary(z, y, epsilon=2.0, gamma=0.0, alpha=None):
    p = z.sigmoid()
    miss = 1 - (y * p + (1 - y) * (1 - p))
    each = -(y * p.log() + (1 - y) * (1 - p).log()) * miss**gamma + epsilon * miss ** (gamma + 1)
    return (each if alpha is None else each * (y * alpha + (1 - y) * (1 - alpha))).mean()


def asl(z, y, gamma_pos=1.0, gamma_neg=4.0, clip=0.05, weight=1.0):
    p = z.sigmoid()
    negative = (1 - p + clip).clamp(max=1)
    each = y * p.log() + (1 - y) * negative.log()
    focus = (1 - (p * y + negative * (1 - y))) ** (gamma_pos * y + gamma_neg * (1 - y))
    return -(each * focus * torch.tensor(weight, dtype=torch.float64)).sum() / len(z)


def asl_single(z, y, gamma_pos=1.0, gamma_neg=4.0, eps=0.0):
    p = z.softmax(1)
    focus = (1 - p * y - (1 - p) * (1 - y)) ** (gamma_pos * y + gamma_neg * (1 - y))
    return -(soften(y, eps, False) * z.log_softmax(1) * focus).sum(1).mean()


def jsd(z, y, splits=3):
    parts = z.chunk(splits)
    p = [part.softmax(1) for part in parts]
    mixture = sum(p) / splits
    divergence = sum((each * (each.log() - mixture.log())).sum(1).mean() for each in p) / splits
    return ce(parts[0], y[: len(parts[0])]) + 12 * divergence


def db(z, y, smoothing=0.0):
    frequency = 1 / torch.tensor(COUNTS, dtype=torch.float64)
    ratio = frequency / (y * frequency).sum(1, keepdim=True)
    weight = torch.sigmoid(10 * (ratio - 0.2)) + 0.1
    y = soften(y, smoothing, True)
    z = z - torch.log(100 * frequency - 1) * 0.05 / 2
    positive = -torch.nn.functional.logsigmoid(z) * torch.sigmoid(-z) ** 2 * 2
    negative = -torch.nn.functional.logsigmoid(-2 * z) / 2 * torch.sigmoid(2 * z) ** 2 * 2
    return (weight * (y * positive + (1 - y) * negative)).mean()


REFUSED = None  # in place of a formula
SMOOTH = {'smoothing': 0.1}
SINGLE = [
    ('ce', {}, ce),
    ('ce', SMOOTH, lambda z, y: ce(z, soften(y, 0.1, False))),
    ('bce', {}, bce),
    ('bce', SMOOTH, lambda z, y: bce(z, soften(y, 0.1, False))),
    ('bce', {'bce_sum': True}, lambda z, y: bce(z, y, sum_classes=True)),
    ('bce', {'class_weight': WEIGHTS}, lambda z, y: bce(z, y, WEIGHTS)),
    ('bce', {'pos_weight': WEIGHTS}, lambda z, y: bce(z, y, pos_weight=WEIGHTS)),
    ('bce', {'bce_target_thresh': 0.2}, lambda z, y: bce(z, (y > 0.2).double())),
    ('poly', {}, poly),
    ('poly', {'poly_epsilon': -1.0, **SMOOTH}, lambda z, y: poly(z, soften(y, 0.1, False), -1.0)),
    ('asl', {}, asl_single),
    ('asl', SMOOTH, lambda z, y: asl_single(z, y, eps=0.1)),
    ('jsd', {'jsd_splits': 3}, jsd),
]
MULTI = [
    ('bce', {}, bce),
    ('bce', SMOOTH, lambda z, y: bce(z, soften(y, 0.1, True))),
    ('bce', {'bce_sum': True}, lambda z, y: bce(z, y, sum_classes=True)),
    ('bce', {'class_weight': WEIGHTS, 'pos_weight': 2.0}, lambda z, y: bce(z, y, WEIGHTS, 2.0)),
    ('bce', {'bce_target_thresh': 0.2}, REFUSED),
    ('asl', {}, asl),
    ('asl', {'class_weight': WEIGHTS, **SMOOTH}, lambda z, y: asl(z, soften(y, 0.1, True), weight=WEIGHTS)),
    ('poly', {}, poly_binary),
    ('poly', {'poly_gamma': 2.0, 'poly_alpha': 0.25}, lambda z, y: poly_binary(z, y, gamma=2.0, alpha=0.25)),
    ('db', {'class_counts': COUNTS, 'num_samples': 100}, db),
    ('db', {'class_counts': COUNTS, 'num_samples': 100, **SMOOTH}, lambda z, y: db(z, y, 0.1)),
    ('twoway', {}, REFUSED),
    ('zlpr', {}, REFUSED),
]
CASES = [(False, *case) for case in SINGLE] + [(True, *case) for case in MULTI]
NAMES = [f'{"multi" if multi else "single"} {kind} {" ".join(options)}'.strip() for multi, kind, options, _ in CASES]


def draw(multi_label, seed, batch=6, num_classes=5):
    """Logits, the target that molly makes, and the soft labels that it means, by a formula in a loop."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, num_classes, generator=generator, dtype=torch.float64)
    gamma = torch.rand(batch, generator=generator, dtype=torch.float64) * 0.98 + 0.01
    labels = torch.randint(num_classes, (batch,), generator=generator)
    present = torch.rand(batch, num_classes, generator=generator, dtype=torch.float64).round()
    y = torch.zeros(batch, num_classes, dtype=torch.float64)
    for i in range(batch):
        for k in range(num_classes):
            hard, uniform = (present[i, k], 0.5) if multi_label else (float(k == labels[i]), 1 / num_classes)
            y[i, k] = (1 - gamma[i]) * hard + gamma[i] * uniform
    if not multi_label:
        return logits, CoupledTarget(labels, gamma), y
    mollify = Mollify('molly-mb', multi_label=True)
    return logits, mollify.lower(present, 'b', gamma), y  # blur's gamma is t


@pytest.mark.parametrize(('multi_label', 'kind', 'options', 'formula'), CASES, ids=NAMES)
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000))
def test_a_loss_is_that_of_the_soft_labels_or_refused_by_name(multi_label, kind, options, formula, seed):
    loss = create_classification_loss(kind, multi_label=multi_label, **options)
    logits, target, y = draw(multi_label, seed)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    if formula is REFUSED:
        with pytest.raises(UserError, match=r"timm's bce .*asl, poly and db; not twoway and zlpr"):
            loss(ours, target)
        return
    value, expected = loss(ours, target), formula(theirs, y)
    value.backward()
    expected.backward()
    assert type(value) is torch.Tensor
    # Some of timm's losses compute in float32 whatever they are given.
    torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-6)


# What `molly-w` weighs of it: all, all but a part that asks for no label, or nothing.
WEIGHTED = {('jsd', 'jsd_splits'): 'the cross-entropy weighted'}
UNWEIGHTED = [('bce', 'bce_target_thresh'), ('twoway',), ('zlpr',)]


@pytest.mark.parametrize(('multi_label', 'kind', 'options', 'formula'), CASES, ids=NAMES)
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000))
def test_a_weighted_loss_is_the_mean_of_weight_times_loss_or_refused_by_name(multi_label, kind, options, formula, seed):
    loss = create_classification_loss(kind, multi_label=multi_label, **options)
    logits, _, y = draw(multi_label, seed)
    weight = torch.rand(len(y), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if multi_label:
        y = target = y.round()
        target = Weighted.of(target.clone(), weight)
    else:
        labels = y.argmax(1)
        y = torch.nn.functional.one_hot(labels, y.shape[1]).double()
        target = CoupledTarget(labels, 0 * weight, weight)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    if (kind, *options) in UNWEIGHTED:
        with pytest.raises(UserError, match='molly-w'):
            loss(ours, target)
        return
    if kind == 'jsd':
        count = len(y) // 3
        expected = formula(theirs, y) - ce(theirs[:count], y[:count])
        expected = expected + sum(w * ce(theirs[i : i + 1], y[i : i + 1]) for i, w in enumerate(weight[:count])) / count
    else:
        expected = sum(w * formula(theirs[i : i + 1], y[i : i + 1]) for i, w in enumerate(weight)) / len(y)
    value = loss(ours, target)
    value.backward()
    expected.backward()
    assert type(value) is torch.Tensor
    torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-6)


def test_the_table_of_losses_is_what_was_found():
    rows = ['| labels | loss | options | with molly | with molly-w |', '| --- | --- | --- | --- | --- |']
    for multi_label, kind, options, formula in CASES:
        named = ', '.join(f'`{name}`' for name in options)
        found = 'refused by name' if formula is REFUSED else 'the loss of the soft labels'
        key = (kind, *options)
        weighted = 'refused by name' if key in UNWEIGHTED else WEIGHTED.get(key, 'weighted')
        rows.append(f'| {"multi-label" if multi_label else "one label"} | `{kind}` | {named} | {found} | {weighted} |')
    tested = {(multi, kind) for multi, kind, _, _ in CASES}
    kinds = timm.loss.LOSS_TYPES
    assert {kind for multi, kind in tested if multi} == set(timm.loss.MULTI_LABEL_LOSS_TYPES)
    assert {kind for _, kind in tested} == set(kinds)
    table = '\n'.join(rows)
    before, _, rest = TABLE.read_text().partition('<!-- table -->\n')
    _, _, after = rest.partition('\n<!-- end -->')
    text = f'{before}<!-- table -->\n{table}\n<!-- end -->{after}'
    if os.environ.get('MOLLY_WRITE'):
        TABLE.write_text(text)
    assert TABLE.read_text() == text


# Tasks


def tasks():
    from timm.task import ClassificationTask, FeatureDistillationTask, LogitDistillationTask, TokenDistillationTask

    def net(name='test_resnet', **options):
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=5, **options).eval()

    small = {'img_size': 32, 'patch_size': 16, 'embed_dim': 24, 'depth': 1, 'num_heads': 1}
    distilled = 'deit_tiny_distilled_patch16_224'
    how = {'criterion': torch.nn.CrossEntropyLoss(), 'device': torch.device('cpu'), 'verbose': False}
    teacher = {'teacher_model': net(), 'task_loss_weight': 0.3}
    return {
        'classification': lambda: ClassificationTask(net(), **how),
        'logit distillation': lambda: LogitDistillationTask(net(), **teacher, **how),
        'feature distillation': lambda: FeatureDistillationTask(net(), **teacher, **how),
        'soft token distillation': lambda: TokenDistillationTask(net(distilled, **small).train(), **teacher, **how),
        'hard token distillation': lambda: TokenDistillationTask(
            net(distilled, **small).train(), distill_type='hard', **teacher, **how
        ),
    }


@pytest.mark.parametrize(
    'name',
    ['classification', *(f'{kind} distillation' for kind in ('logit', 'feature', 'soft token', 'hard token'))],
)
def test_a_task_of_timm_has_the_loss_of_the_soft_labels(name):
    task = tasks()[name]()
    _, target, y = draw(False, 3)
    x = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    gradients = []
    for labels in (target, y.float()):  # torch's cross entropy takes the soft labels as they are
        task.zero_grad()
        loss = task(x, labels)['loss']
        loss.backward()
        gradients.append([loss.detach().float(), *(p.grad.clone() for p in task.parameters() if p.grad is not None)])
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def test_the_multi_label_task_trains_on_mollified_labels():
    from timm.task import MultiLabelClassificationTask

    model = timm.create_model('test_resnet', num_classes=5)
    task = MultiLabelClassificationTask(model, device=torch.device('cpu'), verbose=False)
    x, present = torch.randn(4, 3, 32, 32), torch.eye(5)[:4]
    x, target = Mollify('molly', multi_label=True)(x, present)
    assert type(target) is SoftMultiLabel
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        losses.append(task(x, target)['loss'])
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
