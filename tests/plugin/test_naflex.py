"""NaFlex batches: each image as `Mollify` does it, through timm's own loader, patches and mixup."""

import random

import numpy as np
import pytest
import timm.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from timm_molly import CoupledTarget, Mollify
from timm_molly.errors import UserError
from timm_molly.mollify import turns

pytest.importorskip('timm.data.naflex_loader')

from timm.data import create_dataset
from timm.data.naflex_dataset import NaFlexCollator
from timm.data.naflex_transforms import Patchify

from timm_molly.plugin.naflex import NaFlexMollyLoader, mollify_patches

try:
    Patchify(16, channels_last=False)
except TypeError:
    LAYOUTS = [True]
else:
    LAYOUTS = [True, False]


def patchified(images, patch, flat, channels_last, length):
    """A batch of images of different shapes, as timm makes it of them."""
    layout = {} if channels_last else {'channels_last': False}
    patchify = Patchify(patch, flatten_patches=flat, **layout)
    batch, target = NaFlexCollator(length)([(patchify(image), i) for i, image in enumerate(images)])
    # What timm's prefetcher makes of zeros: padding is not 0 once it is normalised.
    valid = batch['patch_valid'].view(*batch['patch_valid'].shape, *[1] * (batch['patches'].ndim - 2))
    batch['patches'] = torch.where(valid, batch['patches'], torch.full_like(batch['patches'], -2.25))
    return batch, target


def images_of(grids, patch, channels=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(channels, rows * patch[0], columns * patch[1], generator=generator).to(dtype)
        for rows, columns in grids
    ]


def as_mollify(mollify, images, target):
    """The same images as tensors, those of one role and shape as a batch, by `Mollify.apply`."""
    rng = mollify.rng()
    roles, t = mollify.draw(len(images), rng)
    out, gamma = [image.clone() for image in images], torch.zeros(len(images))
    for role, turn in turns(roles):
        groups = {}
        for i in range(len(images))[turn]:
            groups.setdefault(images[i].shape, []).append(i)
        for group in groups.values():
            x, lowered = mollify.apply(torch.stack([images[i] for i in group]), target[group], role, t[group], rng)
            gamma[group] = lowered.gamma
            for i, image in zip(group, x, strict=True):
                out[i] = image
    return out, gamma


grids = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(deadline=None)
@given(
    st.lists(grids, min_size=1, max_size=9),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.booleans(),
    st.sampled_from(LAYOUTS),
    st.sampled_from([1, 3]),
    st.integers(0, 2**31),
)
def test_each_image_is_what_mollify_makes_of_it(shapes, patch, flat, channels_last, channels, seed):
    images = images_of(shapes, patch, channels)
    mollify = Mollify('molly-mxnbe-s0.2', generator=torch.Generator().manual_seed(seed))
    batch, target = patchified(images, patch, flat, channels_last, 16)
    before = {key: value.clone() for key, value in batch.items() if isinstance(value, torch.Tensor)}
    found = mollify_patches(mollify, batch, target, patch, channels_last)
    mollify.generator.manual_seed(seed)
    expected, gamma = as_mollify(mollify, images, target)
    wanted, _ = patchified(expected, patch, flat, channels_last, 16)
    torch.testing.assert_close(batch['patches'], wanted['patches'], atol=1e-6, rtol=0)
    assert torch.equal(found.labels, target)
    assert torch.equal(found.gamma, gamma)
    for key in ('patch_coord', 'patch_valid'):
        assert torch.equal(batch[key], before[key])
    padding = ~batch['patch_valid']
    assert torch.equal(batch['patches'][padding], before['patches'][padding])


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
def test_a_batch_of_one_shape_is_the_batch_that_mollify_gives(dtype):
    x = torch.stack(images_of([(3, 5)] * 12, (4, 4), dtype=dtype))
    batch, target = patchified(x, (4, 4), True, True, 20)
    batch['patches'] = batch['patches'].to(dtype)
    mollify = Mollify('molly', generator=torch.Generator().manual_seed(3))
    found = mollify_patches(mollify, batch, target, (4, 4))
    mollify.generator.manual_seed(3)
    expected, lowered = mollify(x.clone(), target)
    wanted, _ = patchified(expected, (4, 4), True, True, 20)
    assert torch.equal(batch['patches'][:, :15].float(), wanted['patches'][:, :15])
    assert torch.equal(found.gamma, lowered.gamma)
    assert batch['patches'].dtype == dtype


def test_soft_labels_of_naflex_mixup_are_smoothed():
    batch, _ = patchified(images_of([(2, 2), (1, 3), (2, 2)], (4, 4)), (4, 4), True, True, 6)
    target = torch.tensor([[0.5, 0.5, 0], [0, 1, 0], [0.25, 0, 0.75]])
    mollify = Mollify('molly-mb', generator=torch.Generator().manual_seed(0))
    found = mollify_patches(mollify, batch, target, (4, 4))
    mollify.generator.manual_seed(0)
    _, t = mollify.draw(3, mollify.rng())
    gamma = t[:, None]  # blur's, at power 1
    torch.testing.assert_close(found, (1 - gamma) * target + gamma / 3)
    with pytest.raises(ValueError, match='row that sums to 2'):
        mollify_patches(mollify, batch, 2 * target, (4, 4))


def test_patches_that_are_no_image_are_refused():
    batch, target = patchified(images_of([(2, 3)], (4, 4)), (4, 4), True, True, 6)
    batch['patch_valid'][0, 5] = False
    with pytest.raises(UserError, match='image 0 of a NaFlex batch has 5 patches in a grid of 2 x 3'):
        mollify_patches(Mollify(), batch, target, (4, 4))


# Through timm's loader


@pytest.fixture
def dataset(tmp_path):
    rng = np.random.default_rng(0)
    for label in 'ab':
        (tmp_path / 'train' / label).mkdir(parents=True)
        for i in range(12):
            size = (40 + 8 * i, 64)
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / 'train' / label / f'{i}.png')
    return create_dataset('', root=str(tmp_path), split='train')


def make(dataset, aa, **options):
    options = {'patch_size': 8, 'train_seq_lens': (16, 32), 'batch_size': 8, 'num_workers': 1, **options}
    if options.get('patch_size_choices'):
        options['patch_size'] = None
    return timm.data.create_naflex_loader(
        dataset, is_training=True, auto_augment=aa, device=torch.device('cpu'), pin_memory=False, **options
    )


OPTIONS = [
    {},
    {'patch_size_choices': [8, 16]},
    {'re_prob': 1.0, 're_mode': 'pixel'},
    {'img_dtype': torch.bfloat16},
    {'grayscale_prob': 1.0},
    {'patch_size': (8, 4)},
    *([{'patchify_channels_last': False}] if False in LAYOUTS else []),
]


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_the_loader_gives_timms_batches_mollified(dataset, options, caplog):
    torch.manual_seed(0)
    with caplog.at_level('INFO', 'timm_molly'):
        loader = make(dataset, 'rand-m3+molly-me', **options)
    assert isinstance(loader, NaFlexMollyLoader)
    assert 'Mollification is on: molly-me' in caplog.text
    assert len(loader) == len(loader.__wrapped__)
    values, lengths = [], set()
    for batch, target in loader:
        assert isinstance(target, CoupledTarget)
        assert (target.gamma == 1).all()  # nothing but noise is left
        assert batch['patches'].dtype == options.get('img_dtype', torch.float32)
        values.append(batch['patches'][batch['patch_valid']].float().flatten())
        lengths.add(batch['seq_len'])
    values = torch.cat(values)
    assert abs(values.mean()) < 0.05
    assert abs(values.std() - 1) < 0.05
    assert lengths <= {16, 32}


def test_mixup_of_naflex_stacks(dataset, caplog):
    from timm.data import NaFlexMixup

    with caplog.at_level('INFO', 'timm_molly'):
        loader = make(dataset, 'molly', mixup_fn=NaFlexMixup(num_classes=2, mixup_alpha=0.2, cutmix_alpha=1.0))
    assert "Stacks with: timm's basic augmentation, mixup 0.2, cutmix 1." in caplog.text
    for _, target in loader:
        torch.testing.assert_close(target.sum(1), torch.ones(len(target)))


@pytest.mark.parametrize('mixup', [False, True])
def test_multi_label_targets_move_towards_a_half(dataset, mixup):
    targets = pytest.importorskip('timm.data.target_transforms')

    class MultiLabelTarget(targets.MultiLabelTarget):
        def __call__(self, label):
            return super().__call__([label, 2])  # each image has its own label, and the last one

    dataset.target_transform = MultiLabelTarget(3)
    mixup_fn = timm.data.NaFlexMixup(num_classes=3, mixup_alpha=1.0, multi_label=True) if mixup else None
    gammas = []
    for _, target in make(dataset, 'molly-mb', mixup_fn=mixup_fn):
        plain = target.as_subclass(torch.Tensor)
        gammas.append(2 * (1 - plain[:, 2]))  # the label that all have is 1 before
        own = (plain[:, :2] - gammas[-1][:, None] / 2) / (1 - gammas[-1][:, None])
        torch.testing.assert_close(own.sum(1), torch.ones(len(own)), atol=1e-3, rtol=0)
    assert torch.cat(gammas).std() > 0.1


def test_without_molly_the_loader_is_timms_own(dataset):
    assert type(make(dataset, None)) is type(make(dataset, 'rand-m3'))
    assert not isinstance(make(dataset, 'rand-m3'), NaFlexMollyLoader)
    assert not isinstance(make(dataset, 'molly', no_aug=True), NaFlexMollyLoader)
    assert not isinstance(make(dataset, 'molly-mx'), NaFlexMollyLoader)


def test_the_same_seed_gives_the_same_batches_and_another_others(dataset):
    def first(seed):
        random.seed(0)  # of timm's crops
        torch.manual_seed(seed)
        return next(iter(make(dataset, 'molly')))

    (a, target), (b, other), (c, _) = first(0), first(0), first(1)
    assert torch.equal(a['patches'], b['patches'])
    assert torch.equal(target.gamma, other.gamma)
    assert not torch.equal(a['patches'], c['patches'])


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'use_prefetcher': False}, 'train without --no-prefetcher'),
        ({'patch_size': 8, 'aa': 'molly-s9'}, 'section s, is 9'),
    ],
)
def test_what_cannot_work_is_refused(dataset, options, words):
    aa = options.pop('aa', 'molly')
    with pytest.raises(UserError, match=words):
        make(dataset, aa, **options)
