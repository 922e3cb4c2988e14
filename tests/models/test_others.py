"""Weights that others published in their repositories, with the networks of these, loaded as torch itself loads them.

Where MOLLY_OTHERS names a folder with checkouts of the repositories below, each under owner+name: git clone
https://github.com/akamaster/pytorch_resnet_cifar10 akamaster+pytorch_resnet_cifar10, and so on.
"""

import argparse
import importlib.util
import os
from pathlib import Path

import pytest
import timm
import torch
from timm.models import register_model

from timm_molly.cli import flags as cli_flags

FOLDER = Path(os.environ.get('MOLLY_OTHERS') or 'nowhere')

# Weights, the file that makes the network, and how, and under what key of the file the weights are.
NETWORKS = {
    'akamaster+pytorch_resnet_cifar10': (
        'resnet.py',
        'state_dict',
        {
            'pretrained_models/resnet20-12fca82f.th': lambda module: module.resnet20(),  # without num_batches_tracked
            'pretrained_models/resnet32-d509ac18.th': lambda module: module.resnet32(),
            'pretrained_models/resnet44-014dd654.th': lambda module: module.resnet44(),
            'pretrained_models/resnet56-4bfd9763.th': lambda module: module.resnet56(),
        },
    ),
    'EhanW+advrob-cifar10': (
        'model/ResNet.py',
        None,
        {
            'pretrained/resnet20.pth': lambda module: module.resnet20(10),
            'pretrained/resnet20_pgd.pth': lambda module: module.resnet20(10),
        },
    ),
    'fattorib+ResNets-CIFAR10': (
        'src/models/Model.py',
        None,
        {
            'models/resnet20.pth': lambda module: module.ResNet(filters_list=[16, 32, 64], N=3),
        },
    ),
    'kejeon+in_dev_RN20': ('model/resnet4c10.py', 'net', {'checkpoint/ckpt.pth': lambda module: module.resnet20()}),
    'zlatasm+resnet_cifar_pruning': (
        'models/resnet.py',
        'net',
        {
            'checkpoint/ckpt.pth': lambda module: module.ResNet20(),
        },
    ),
    'Gasoonjia+pytorch-cifar': (
        'models/resnet_cifar.py',
        'net',
        {
            'ckpts/0704_190615/best.pth': lambda module: module.resnet_cifar110(pool_first=True, dynamic_pool=True),
        },
    ),
    'Verified-Intelligence+alpha-beta-CROWN': (
        'complete_verifier/model_defs.py',
        'state_dict',
        {
            'complete_verifier/models/cifar10_resnet/resnet2b.pth': lambda module: module.resnet2b(),
            'complete_verifier/models/cifar10_resnet/resnet4b.pth': lambda module: module.resnet4b(),
        },
    ),
    'douzaikongcheng+cifar10_pytorch_quantization_demo': (
        'vgg.py',
        'state_dict',
        {
            'model_best.pth.tar': lambda module: module.vgg(),
        },
    ),
}
CASES = [
    pytest.param(FOLDER / repository, source, key, weights, make, id=f'{repository} {Path(weights).name}')
    for repository, (source, key, nets) in NETWORKS.items()
    for weights, make in nets.items()
]


def load_model(*words):
    """Load what flags of `timm-molly validate` name."""
    parser = argparse.ArgumentParser()
    cli_flags.add_arguments(parser)
    return cli_flags.classifier(parser.parse_args([*map(str, words)]))


def import_file(path: Path):
    spec = importlib.util.spec_from_file_location(f'others_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif('MOLLY_OTHERS' not in os.environ, reason="set MOLLY_OTHERS to a folder of others' repositories")
@pytest.mark.parametrize(('folder', 'source', 'key', 'weights', 'make'), CASES)
def test_it_loads_as_torch_loads_it(folder, source, key, weights, make, capsys):
    if not folder.is_dir():
        pytest.skip(f'{FOLDER} has no {folder.name}')
    module = import_file(folder / source)

    def others_network(pretrained=False, **kwargs):
        return make(module)

    register_model(others_network)
    assert timm.is_model('others_network')
    ours = load_model('--model', 'others_network', '--checkpoint', folder / weights, '--img-size', 32)
    assert 'a guess' in capsys.readouterr().err  # of mean and std, which these files do not say
    state = torch.load(folder / weights, map_location='cpu', weights_only=True)
    state = state if key is None else state[key]
    theirs = make(module).eval()
    theirs.load_state_dict({name.removeprefix('module.'): value for name, value in state.items()})
    x = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(ours.model(x), theirs(x))
    assert ours.num_classes == 10


def test_names_of_the_weights_do_not_matter(tmp_path):
    state = timm.create_model('test_resnet', num_classes=3).state_dict()
    torch.save({'net': state, 'acc': torch.tensor(0.9), 'epoch': 3, 'optimizer': {'state': {}}}, tmp_path / 'a.pth')
    flags = ['--model', 'test_resnet', '--num-classes', 3, '--img-size', 32]
    model = load_model(*flags, '--checkpoint', tmp_path / 'a.pth').model
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
