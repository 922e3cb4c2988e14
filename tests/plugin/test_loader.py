import pytest
import torch
from timm.data import FastCollateMixup, create_dataset, create_loader

from timm_molly import CoupledTarget, Mollify, register
from timm_molly.plugin.loader import MollyLoader


@pytest.fixture(autouse=True)
def registered():
    register()


def make(image_folder, aa='molly', **options):
    dataset = create_dataset('', root=str(image_folder), split='train')
    options = {'is_training': True, 'num_workers': 1, 'device': torch.device('cpu'), **options}
    return create_loader(dataset, input_size=(3, 32, 32), batch_size=8, auto_augment=aa, **options)


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'use_prefetcher': False},
        {'use_multi_epochs_loader': True},
        {'collate_fn': FastCollateMixup(mixup_alpha=0.2, num_classes=3)},
    ],
    ids=['prefetcher', 'no prefetcher', 'multi-epochs', 'mixup'],
)
def test_it_behaves_like_the_loader_that_it_wraps(image_folder, options):
    loader, plain = make(image_folder, **options), make(image_folder, None, **options)
    assert isinstance(loader, MollyLoader)
    assert isinstance(loader, type(plain))
    assert len(loader) == len(plain) == 6
    for _ in range(2):  # epochs
        batches = list(loader)
        assert len(batches) == 6
        assert all(x.shape == (8, 3, 32, 32) and len(target) == 8 for x, target in batches)
    for name in ('sampler', 'batch_sampler', 'dataset'):
        assert getattr(loader, name, None) is getattr(loader.__wrapped__, name, None)
        assert type(getattr(loader, name, None)) is type(getattr(plain, name, None))
    assert len(loader.dataset) == 48


def test_mixup_can_be_asked_and_switched_off(image_folder):
    mixup = FastCollateMixup(mixup_alpha=1.0, num_classes=3)
    loader = make(image_folder, collate_fn=mixup)
    assert loader.mixup_enabled is True
    loader.mixup_enabled = False
    assert loader.mixup_enabled is False
    assert mixup.mixup_enabled is False
    assert make(image_folder).mixup_enabled is False
    assert not hasattr(make(image_folder, use_prefetcher=False), 'mixup_enabled')


def test_index_targets_come_out_coupled_and_mixed_ones_dense(image_folder):
    _, target = next(iter(make(image_folder)))
    assert isinstance(target, CoupledTarget)
    _, target = next(iter(make(image_folder, collate_fn=FastCollateMixup(mixup_alpha=1.0, num_classes=3))))
    torch.testing.assert_close(target.sum(1), torch.ones(8))


def test_batches_are_those_of_the_loader_mollified():
    batches = [(torch.randn(4, 3, 8, 8), torch.arange(4)) for _ in range(3)]
    loader = MollyLoader([(x.clone(), y) for x, y in batches], Mollify(generator=torch.Generator().manual_seed(3)))
    mollify = Mollify(generator=torch.Generator().manual_seed(3))
    for (x, target), (plain, labels) in zip(loader, batches, strict=True):
        expected_x, expected = mollify(plain.clone(), labels)
        assert torch.equal(x, expected_x)
        assert torch.equal(target.gamma, expected.gamma)


def test_the_workers_do_exactly_what_they_did_before(image_folder):
    def batches(aa):
        torch.manual_seed(0)
        loader = make(image_folder, aa, collate_fn=FastCollateMixup(mixup_alpha=0.2, num_classes=3))
        prefetcher = loader.__wrapped__ if isinstance(loader, MollyLoader) else loader
        return list(prefetcher.loader)  # what the workers send, in bytes

    with_molly, without = batches('rand-m9-mstd0.5-inc1+molly'), batches('rand-m9-mstd0.5-inc1')
    for (x, target), (plain, labels) in zip(with_molly, without, strict=True):
        assert x.dtype == torch.uint8
        assert torch.equal(x, plain)
        assert torch.equal(target, labels)


def test_iterable_attributes_and_assignments_reach_the_loader(image_folder):
    loader = make(image_folder)
    loader.anything = 3
    assert loader.__wrapped__.anything == 3


def test_multi_label_batches_are_refused_at_the_first_batch():
    loader = MollyLoader([(torch.zeros(2, 3, 8, 8), torch.tensor([[1.0, 1, 0], [0, 0, 0]]))], Mollify())
    with pytest.raises(ValueError, match=r'row that sums to .*: Mollify\(..., multi_label=True\)'):
        next(iter(loader))
