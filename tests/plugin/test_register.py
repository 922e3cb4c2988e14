import importlib.util
import inspect
import logging
import re
import sys
import types

import pytest
import timm.data
import timm.data.loader
import timm.data.transforms_factory
import torch
from timm.data import AugMixDataset, FastCollateMixup, create_dataset, create_transform

from timm_molly.errors import UserError
from timm_molly.plugin import register as plugin
from timm_molly.plugin.loader import MollyLoader
from timm_molly.plugin.register import register, unregister


@pytest.fixture(autouse=True)
def registered():
    register()
    yield
    register()


@pytest.fixture
def make(image_folder):
    def make(aa, dataset=None, **options):
        dataset = dataset or create_dataset('', root=str(image_folder), split='train')
        options = {'is_training': True, 'num_workers': 1, 'device': torch.device('cpu'), **options}
        return timm.data.create_loader(dataset, (3, 32, 32), 8, auto_augment=aa, **options)

    return make


def replaced():
    return (
        timm.data.create_loader,
        timm.data.loader.create_loader,
        timm.data.transforms_factory.transforms_imagenet_train,
    )


def test_register_and_unregister_are_idempotent_and_put_timm_back():
    ours = replaced()
    register()
    assert replaced() == ours
    unregister()
    original = replaced()
    assert all(
        function.__module__.startswith('timm.data') and not hasattr(function, '_timm_molly') for function in original
    )
    unregister()
    assert replaced() == original
    register()
    assert all(new.__wrapped__ is old for new, old in zip(replaced(), original, strict=True))


def test_nothing_else_of_timm_is_replaced():
    def functions():
        return {
            (name, key): value
            for name, module in sys.modules.items()
            if name.split('.')[0] == 'timm'
            for key, value in vars(module).items()
            if callable(value)
        }

    with_ours = functions()
    unregister()
    without = functions()
    different = {key for key in without if with_ours[key] is not without[key]}
    naflex = {('timm.data', 'create_naflex_loader'), ('timm.data.naflex_loader', 'create_naflex_loader')}
    assert different == {
        ('timm.data', 'create_loader'),
        ('timm.data.loader', 'create_loader'),
        ('timm.data.transforms_factory', 'transforms_imagenet_train'),
        *(naflex if hasattr(timm.data, 'create_naflex_loader') else ()),
    }


def test_without_molly_the_call_reaches_timm_as_it_was(make, caplog):
    caplog.set_level(logging.INFO)
    for aa in (None, 'rand-m9-mstd0.5-inc1', 'original'):
        assert not isinstance(make(aa), MollyLoader)
    assert 'ollif' not in caplog.text
    with pytest.raises(TypeError, match='nonsense'):
        make('molly', nonsense=1)


def test_the_rest_of_the_string_goes_to_timm(make):
    def transform(aa):
        return re.sub(r' at 0x\w+', '', str(make(aa).dataset.transform))

    unregister()
    expected = transform('rand-m9-mstd0.5-inc1'), transform(None)
    register()
    assert transform('molly+rand-m9-mstd0.5-inc1') == expected[0]
    assert transform('molly') == expected[1]  # colour jitter as without --aa


def test_one_line_of_the_log_says_what_is_on(make, image_folder, caplog):
    caplog.set_level(logging.INFO)
    make('molly')
    assert caplog.messages == [
        'Mollification is on: molly (roles x n b, t ~ Beta(1, 2), label power 1 for noise, 1 for blur). '
        "Stacks with: timm's basic augmentation."
    ]
    caplog.clear()
    splits = AugMixDataset(create_dataset('', root=str(image_folder), split='train'), num_splits=3)
    loader = make('rand-m9+molly-b4-mxxn-k2', splits, num_aug_splits=3, re_prob=0.6)
    assert str(loader._self_mollify) == 'Mollify(molly-mxxn-b4-k2, num_splits=3)'
    make('molly', collate_fn=FastCollateMixup(mixup_alpha=0.2, cutmix_alpha=1, num_classes=3))
    assert caplog.messages == [
        'Mollification is on: molly-mxxn-b4-k2 (roles x x n, t ~ Beta(1, 4), label power 2 for noise, 2 for blur). '
        'Stacks with: rand-m9, random erasing 0.6, 3 augmentation splits.',
        'Mollification is on: molly (roles x n b, t ~ Beta(1, 2), label power 1 for noise, 1 for blur). '
        "Stacks with: timm's basic augmentation, mixup 0.2, cutmix 1.",
    ]
    assert {record.levelname for record in caplog.records} == {'INFO'}


def test_evaluation_loaders_are_never_mollified(make, caplog):
    caplog.set_level(logging.INFO)
    assert not isinstance(make('molly', is_training=False), MollyLoader)
    assert caplog.messages == []


def test_no_aug_switches_it_off_and_says_so(make, caplog):
    caplog.set_level(logging.INFO)
    assert not isinstance(make('molly', no_aug=True), MollyLoader)
    assert caplog.messages == ['--aa molly: no mollification, because --no-aug switches all augmentation off.']


def test_only_the_first_rank_speaks(make, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.distributed, 'get_rank', lambda: 1)
    make('molly')
    assert caplog.messages == []


@pytest.mark.parametrize('aa', ['molly', 'molly-b4', 'rand-m9-mstd0.5-inc1+molly', 'augmix-m5-w4-d2+molly'])
def test_a_transform_cannot_mollify_and_says_the_way_out(aa):
    with pytest.raises(
        ValueError, match=r'see no label: use timm.data.create_loader .* or timm_molly.Mollify'
    ) as error:
        create_transform((3, 32, 32), is_training=True, auto_augment=aa)
    assert repr(aa) in str(error.value)
    create_transform((3, 32, 32), is_training=True, auto_augment='rand-m9-mstd0.5-inc1')


@pytest.mark.parametrize('aa', ['molly-z3', 'molly-bx', 'molly-b0', 'molly-mq', 'molly+molly-b2', 'rand-m9-molly'])
def test_a_bad_string_is_refused_when_the_loader_is_made(make, aa):
    with pytest.raises(ValueError, match=re.escape(repr(aa))):
        make(aa)


def test_a_loader_imported_before_registering_says_so(image_folder):
    unregister()
    from timm.data import create_loader

    register()
    dataset = create_dataset('', root=str(image_folder), split='train')
    with pytest.raises(ValueError, match='imported after timm_molly is registered'):
        create_loader(dataset, (3, 32, 32), 8, is_training=True, auto_augment='molly')


def multi_label(image_folder):
    targets = pytest.importorskip('timm.data.target_transforms')
    dataset = create_dataset('', root=str(image_folder), split='train')

    class MultiLabelTarget(targets.MultiLabelTarget):
        def __call__(self, label):
            return super().__call__([label, 3])  # each image has its own label, and the last one

    dataset.target_transform = MultiLabelTarget(4)
    return dataset


def test_multi_label_targets_move_towards_a_half(make, image_folder, caplog):
    caplog.set_level(logging.INFO)
    loader = make('molly-mb', multi_label(image_folder))
    assert 'for blur; each label towards 1/2)' in caplog.text
    gammas = []
    for _, target in loader:
        plain = target.as_subclass(torch.Tensor)
        gammas.append(2 * plain.min(1).values)
        gamma = gammas[-1][:, None]
        present = (plain > 0.5).float()
        assert present[:, 3].all()
        assert (present.sum(1) == 2).all()
        torch.testing.assert_close(plain, (1 - gamma) * present + gamma / 2)
        with pytest.raises(UserError, match='do not support'):
            target.gt(0.5)
    assert torch.cat(gammas).std() > 0.1  # each image its own


def test_multi_label_mixup_stacks(make, image_folder):
    dataset = multi_label(image_folder)
    collate = FastCollateMixup(num_classes=4, multi_label=True, mixup_alpha=1.0, label_smoothing=0.0)
    for _, target in make('molly-mb', dataset, collate_fn=collate):
        plain = target.as_subclass(torch.Tensor)
        # The label that all have is 1 before, so it tells gamma: 1 - gamma / 2.
        gamma = 2 * (1 - plain[:, 3:])
        before = (plain - gamma / 2) / (1 - gamma)
        torch.testing.assert_close(before.sum(1), torch.full((len(plain),), 2.0), atol=1e-3, rtol=0)


def test_multi_label_data_sets_are_refused_where_timm_cannot_train_them(make, image_folder, monkeypatch):
    class MultiLabelTarget:
        """As timm's, which this timm may not have."""

    if importlib.util.find_spec('timm.task'):
        monkeypatch.delattr('timm.task.MultiLabelClassificationTask', raising=False)
    dataset = create_dataset('', root=str(image_folder), split='train')
    dataset.target_transform = MultiLabelTarget()
    for wrapped in (dataset, AugMixDataset(dataset)):
        with pytest.raises(UserError, match=r'no MultiLabelClassificationTask.*update timm to 1.0.31 or newer'):
            make('molly', wrapped)


@pytest.mark.parametrize('options', [{}, {'input_size_choices': [64, 24]}], ids=['one size', 'several sizes'])
def test_a_blur_wider_than_the_images_is_refused_before_training(make, options):
    if not set(options) <= set(inspect.signature(timm.data.create_loader).parameters):
        pytest.skip('this timm trains at one size')
    with pytest.raises(ValueError, match=r"'molly-s40', section s, is 40 pixels, more than the side .* (32|24)"):
        make('molly-s40', **options)


def test_an_old_timm_is_named_to_whoever_asks_for_molly(make, monkeypatch):
    monkeypatch.setattr('timm.version.__version__', '0.9.16')
    make('rand-m9')
    with pytest.raises(ImportError, match=r'--aa molly needs timm 1.0.15 or newer, found 0.9.16: pip install -U timm'):
        make('molly')


@pytest.mark.parametrize(
    'version', ['1.0.15', '1.0.29.dev0', '1.0.30rc1', '1.0.20+nv1', '1.1', '2.0.0rc1', '2.0a0', 'unknown']
)
def test_new_timm_versions_are_welcome(make, monkeypatch, version):
    monkeypatch.setattr('timm.version.__version__', version)
    assert isinstance(make('molly'), MollyLoader)


def test_a_timm_without_create_loader_is_named():
    with pytest.raises(ImportError, match=r'has no timm\.data\.create_loader, which --aa molly needs'):
        plugin.install(types.ModuleType('timm.data'))


def test_a_missing_timm_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.split('.')[0] == 'timm']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, 'path', [])
    with pytest.raises(ImportError, match='timm-molly needs timm, which is not installed: pip install timm'):
        register()


def test_roles_that_leave_every_image_clean_are_not_called_on(image_folder, caplog):
    caplog.set_level('INFO')
    options = {
        'input_size': (3, 32, 32),
        'batch_size': 4,
        'is_training': True,
        'num_workers': 0,
        'persistent_workers': False,
        'use_prefetcher': False,
    }
    dataset = timm.data.create_dataset('', root=str(image_folder), split='train')
    loader = timm.data.create_loader(dataset, **options, auto_augment='molly-mxx')
    assert 'Mollification is on' not in caplog.text
    assert '--aa molly-mxx: no mollification, because with the roles xx every image stays clean' in caplog.text
    assert isinstance(next(iter(loader))[1], torch.Tensor)
