"""The small-image networks: against the formulas of their papers, the authors' code, and what timm asks of a model."""

import os
import runpy
from pathlib import Path

import pytest
import timm
import torch
from support.authors import authors_network, needs_authors
from timm.data import resolve_model_data_config
from timm.optim import create_optimizer_v2
from torch import fx
from torch.nn import functional as F

from timm_molly import models

# With 10 classes. Published: DenseNet-BC-100-12 0.8 M. The others are counted off the authors' code, its DenseNet class
# with the arguments of BC, or akamaster/pytorch_resnet_cifar10 (0.27, 0.46, 0.66 and 0.85 M are published).
PARAMETERS = {
    'allconvnet': 1_409_674,
    'cifar_resnet20': 269_722,
    'cifar_resnet32': 464_154,
    'cifar_resnet44': 658_586,
    'cifar_resnet56': 853_018,
    'densenet_bc_40_12': 176_122,
    'densenet_bc_100_12': 769_162,
    'preactresnet18': 11_171_146,
    'preactresnet34': 21_279_306,
    'preactresnet50': 23_509_066,
    'preactresnet101': 42_501_194,
    'resnext29_4x32d': 6_807_882,
    'wide_resnet40_2': 2_243_546,
}
# One of each kind, the smallest.
KINDS = [
    'allconvnet',
    'cifar_resnet20',
    'densenet_bc_40_12',
    'preactresnet18',
    'preactresnet50',
    'resnext29_4x32d',
    'wide_resnet40_2',
]


def images(size=16, in_chans=3, batch=2):
    return torch.randn(batch, in_chans, size, size, generator=torch.Generator().manual_seed(0))


def lively(model, seed=1):
    """Give batch norms weights and statistics that matter, as after training."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for value in (module.weight, module.running_var):
                value.data.uniform_(0.5, 1.5, generator=generator)
            for value in (module.bias, module.running_mean):
                value.data.normal_(0, 0.2, generator=generator)
    return model.eval()


def test_all_names_are_tested_and_registered():
    assert set(PARAMETERS) == {name for name in models.__all__ if name.islower()}
    assert set(PARAMETERS) <= set(timm.list_models())


@pytest.mark.parametrize('name', PARAMETERS)
def test_number_of_parameters(name):
    model = timm.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def preactresnet_formula(weights, x, layers, bottleneck):
    """PreActResNet in float64 from its formula: x + F(x), where F begins with batch norm and ReLU."""

    def norm(x, name):
        mean, var, weight, bias = (
            weights[f'{name}.{key}'][:, None, None] for key in ('running_mean', 'running_var', 'weight', 'bias')
        )
        return ((x - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)

    def conv(x, name, stride=1):
        kernel = weights[f'{name}.weight']
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    x = conv(x, 'stem.conv')
    for i, depth in enumerate(layers):
        for j in range(depth):
            stride = 2 if i > 0 and j == 0 else 1
            block = f'stages.{i}.blocks.{j}'
            residual = x
            for k in range(1, 4 if bottleneck else 3):
                strided = k == (2 if bottleneck else 1)
                residual = conv(norm(residual, f'{block}.norm{k}'), f'{block}.conv{k}', stride if strided else 1)
            if f'{block}.downsample.conv.weight' in weights:
                x = conv(x, f'{block}.downsample.conv', stride)
            x = x + residual
    return x.mean((2, 3)) @ weights['head.fc.weight'].T + weights['head.fc.bias']


@pytest.mark.parametrize(
    ('name', 'layers', 'bottleneck'),
    [('preactresnet18', (2, 2, 2, 2), False), ('preactresnet50', (3, 4, 6, 3), True)],
)
def test_preactresnet_is_its_formula(name, layers, bottleneck):
    model = lively(timm.create_model(name)).double()
    x = images().double()
    with torch.no_grad():
        expected = preactresnet_formula(model.state_dict(), x, layers, bottleneck)
        torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


@needs_authors
@pytest.mark.parametrize('size', [32, 64])
@pytest.mark.parametrize('name', [name for name in PARAMETERS if not name.startswith('cifar_resnet')])
def test_outputs_are_those_of_the_authors_code(name, size):
    tag = {32: 'cifar10', 64: 'tiny_imagenet'}[size]
    ours = lively(timm.create_model(f'{name}.{tag}'))
    theirs = authors_network(name, size, ours.num_classes).eval()
    layers, their_layers = in_order_of_use(ours, size), in_order_of_use(theirs, size)
    assert len(layers) == len(their_layers)
    for mine, other in zip(layers, their_layers, strict=True):
        other.load_state_dict(mine.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    x = images(size).double()
    with torch.no_grad():
        expected = theirs.double()(x)
        assert expected.std() > 1e-3
        torch.testing.assert_close(ours.double()(x), expected, rtol=1e-5, atol=1e-5)


def test_the_shortcut_of_cifar_resnets_halves_the_size_and_pads_both_sides():
    shortcut = timm.create_model('cifar_resnet20').stages[1][0].downsample
    x = images(8, in_chans=16)
    out = shortcut(x)
    assert out.shape == (2, 32, 4, 4)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


@pytest.mark.skipif(not os.environ.get('MOLLY_RESNET_CODE'), reason='set MOLLY_RESNET_CODE to a checkout to compare')
@pytest.mark.parametrize('depth', [20, 32, 44, 56])
def test_features_of_cifar_resnets_are_the_published_ones_to_the_last_bit(depth):
    """MOLLY_RESNET_CODE names a checkout of akamaster/pytorch_resnet_cifar10, which has trained weights."""
    folder = Path(os.environ['MOLLY_RESNET_CODE'])
    (weights,) = folder.glob(f'pretrained_models/resnet{depth}-*.th')
    state = torch.load(weights, map_location='cpu', weights_only=True)['state_dict']
    theirs = runpy.run_path(str(folder / 'resnet.py'))[f'resnet{depth}']()
    theirs.load_state_dict({name.removeprefix('module.'): value for name, value in state.items()})
    ours = timm.create_model(f'cifar_resnet{depth}')
    # Both list their layers in the order of use.
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = images(32, batch=16)
    maps = []
    theirs.layer3.register_forward_hook(lambda *args: maps.append(args[-1]))
    with torch.no_grad():
        expected = theirs.eval()(x)
        assert torch.equal(ours.eval().forward_features(x), *maps)
        torch.testing.assert_close(ours(x), expected, rtol=1e-6, atol=1e-5)  # timm's pooling sums in another order


def in_order_of_use(net, size):
    """List the layers with weights by shape and then by first call, the shortcuts, which some call early, last."""
    calls = []
    layers = {m: 'shortcut' in name or 'downsample' in name for name, m in net.named_modules() if hasattr(m, 'weight')}
    hooks = [layer.register_forward_pre_hook(lambda layer, _: calls.append(layer)) for layer in layers]
    with torch.no_grad():
        net(images(size))
    for hook in hooks:
        hook.remove()
    return sorted(calls, key=lambda layer: (layers[layer], layer.weight.shape))


@pytest.mark.parametrize('tag', ['', '.cifar10', '.cifar100', '.tiny_imagenet'])
@pytest.mark.parametrize('name', KINDS)
def test_default_cfg_says_what_the_data_ask(name, tag):
    model = timm.create_model(name + tag).eval()
    classes, size = {'.cifar100': (100, 32), '.tiny_imagenet': (200, 64)}.get(tag, (10, 32))
    config = resolve_model_data_config(model)
    assert config['input_size'] == (3, size, size)
    assert config['crop_pct'] == 1.0
    mean, std = {
        '.cifar100': ((0.507, 0.487, 0.441), (0.267, 0.256, 0.276)),
        '.tiny_imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    }.get(tag, ((0.491, 0.482, 0.446), (0.247, 0.243, 0.261)))
    assert config['mean'] == pytest.approx(mean, abs=1e-3)
    assert config['std'] == pytest.approx(std, abs=1e-3)
    with torch.no_grad():
        features = model.forward_features(images(size))
        assert model.forward_head(features).shape == (2, classes)
    assert features.shape == (2, model.num_features, *model.default_cfg['pool_size'])
    weights = model.state_dict()
    assert weights[f'{model.default_cfg["first_conv"]}.weight'].shape[1] == 3
    assert weights[f'{model.default_cfg["classifier"]}.weight'].shape == (classes, model.num_features)


@pytest.mark.parametrize('name', KINDS)
def test_the_classifier_can_be_replaced(name):
    model = timm.create_model(name, num_classes=7, in_chans=1, drop_rate=0.5).eval()
    x = images(in_chans=1)
    with torch.no_grad():
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        assert model(x).shape == (2, 7)
        assert torch.equal(model(x), model.get_classifier()(pooled))
        assert pooled.shape == (2, model.head_hidden_size)
        torch.testing.assert_close(pooled, features.mean((2, 3)))
        assert not torch.equal(*(model.train().forward_head(features) for _ in range(2)))  # dropout
        model.eval().reset_classifier(4)
        assert model(x).shape == (2, 4)
        assert model.num_classes == 4
        model.reset_classifier(0)
        assert torch.equal(model(x), pooled)
        model.reset_classifier(0, '')
        assert torch.equal(model(x), features)
        features = timm.create_model(name, global_pool='max').eval()
        torch.testing.assert_close(
            features.forward_head(features.forward_features(images()), pre_logits=True),
            features.forward_features(images()).amax((2, 3)),
        )


@pytest.mark.parametrize('name', KINDS)
def test_feature_maps(name):
    model = timm.create_model(name, features_only=True).eval()
    with torch.no_grad():
        maps = model(images(32))
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    reductions = model.feature_info.reduction()
    assert reductions == ([1, 1, 2, 4, 8] if name.startswith('preact') else [1, 1, 2, 4])
    for m, reduction in zip(maps, reductions, strict=True):
        trimmed = 2 if name == 'allconvnet' and reduction == 4 else 0  # its third stage has an unpadded convolution
        assert m.shape[2:] == (32 // reduction - trimmed,) * 2
    assert len(timm.create_model(name, features_only=True, out_indices=(1, 3))(images(32))) == 2


@pytest.mark.slow
@pytest.mark.parametrize('name', KINDS)
@pytest.mark.filterwarnings('ignore:.*torch.jit.*:FutureWarning', 'ignore:The TorchScript type system:UserWarning')
def test_scripted_it_does_the_same(name):
    model = lively(timm.create_model(name, scriptable=True))
    traced = fx.symbolic_trace(model)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(model)(images()), model(images()))
        torch.testing.assert_close(torch.jit.script(traced)(images()), model(images()))


@pytest.mark.slow
@pytest.mark.parametrize('name', KINDS)
def test_compiled_it_is_one_graph_and_does_the_same(name):
    model = lively(timm.create_model(name))
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images()), model(images()))


@pytest.mark.parametrize('name', KINDS)
def test_weights_are_drawn_as_in_the_published_code(name):
    """PyTorch's own draws for PreActResNet, He's normal ones over the outputs of a filter for the others."""
    torch.manual_seed(0)
    model = timm.create_model(name)
    conv = max((m for m in model.modules() if isinstance(m, torch.nn.Conv2d)), key=lambda m: m.weight.numel())
    area = conv.kernel_size[0] ** 2
    if name.startswith('preact'):
        bound = (area * conv.in_channels) ** -0.5
        assert conv.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert conv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    else:
        assert conv.weight.std().item() == pytest.approx((2 / (area * conv.out_channels)) ** 0.5, rel=0.03)
        assert conv.weight.abs().max() > 3 * conv.weight.std()
    assert model.get_classifier().bias.any() == name.startswith('preact')


def test_allconvnet_drops_features_after_each_pooling():
    model = timm.create_model('allconvnet').train()
    with torch.no_grad():
        stages = [stage[:2] for stage in model.stages[1:]]
        for pool_and_drop in stages:
            kept = pool_and_drop(torch.ones(1, 1, 200, 200)) > 0
            assert kept.float().mean().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize('name', KINDS)
def test_it_learns(name):
    """A few steps against the gradient lower the loss on one batch, with gradients for every parameter."""
    model = timm.create_model(name, num_classes=3).train()
    for module in model.modules():  # chance, which could raise the loss
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    # Short steps without momentum go down whatever the weights and the arithmetic.
    optimizer = create_optimizer_v2(model, 'momentum', lr=1e-3, momentum=0.0, layer_decay=0.9)
    x, target = images(batch=6), torch.arange(6) % 3
    losses = []
    for _ in range(5):
        loss = F.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[1:]) < losses[0]


@pytest.mark.parametrize('name', KINDS)
def test_gradient_checkpointing_changes_nothing(name):
    model = lively(timm.create_model(name))
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images()).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_layer_decay_goes_from_stem_to_head():
    model = timm.create_model('preactresnet18')
    optimizer = create_optimizer_v2(model, 'momentum', lr=1.0, layer_decay=0.5)
    scale = {id(p): group['lr_scale'] for group in optimizer.param_groups for p in group['params']}
    order = [model.stem.conv.weight, *(stage.blocks[0].conv1.weight for stage in model.stages), model.head.fc.weight]
    assert [scale[id(p)] for p in order] == [0.5**i for i in (5, 4, 3, 2, 1, 0)]


@pytest.mark.parametrize('name', [name for name in KINDS if name.startswith(('preact', 'resnext', 'wide'))])
def test_stochastic_depth_leaves_out_blocks(name):
    model = timm.create_model(name, drop_path_rate=0.5)
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == 'DropPath']
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.5)
    with torch.no_grad():
        # Now and then two draws leave out the same blocks, but not twenty.
        assert any(not torch.equal(model.train()(images()), model(images())) for _ in range(20))
        assert torch.equal(model.eval()(images()), model(images()))


@pytest.mark.slow
def test_create_model_knows_the_names_from_importing_timm_on(python):
    code = (
        'import timm, timm_molly; timm_molly.unregister(); print(timm.create_model("allconvnet.cifar100").num_classes)'
    )
    done = python('-W', 'error::UserWarning:timm', '-c', code)
    assert (done.stdout, done.stderr) == ('100\n', '')


@pytest.mark.slow
def test_where_autoload_is_off_timm_does_not_know_the_names_but_our_own_commands_do(python):
    code = (
        'import timm\n'
        'try: timm.create_model("allconvnet")\n'
        'except RuntimeError as error: print(error)\n'
        'from timm_molly.cli import main\n'
        'main(["validate", "--data-dir", ".", "--model", "allconvnet", "--device", "cpu"])\n'
        'print(timm.is_model("allconvnet"))\n'
    )
    done = python('-c', code, env={'TIMM_MOLLY_AUTOLOAD': '0'})
    assert done.stdout == 'Unknown model (allconvnet)\nTrue\n'
    assert 'Unknown model' not in done.stderr
