"""What only a GPU can show; skipped where there is none."""

import pytest
import torch

from timm_molly import Mollify, MollyConfig
from timm_molly.functional import blur, blur_gamma, noise, noise_gamma, smooth

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')


def batch(num_classes=None):
    labels = torch.arange(64) % 10
    target = labels if num_classes is None else torch.nn.functional.one_hot(labels, num_classes).float()
    return torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)), target


@pytest.mark.parametrize('num_classes', [None, 10])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_nothing_waits_for_the_gpu(num_classes, dtype):
    x, target = (value.cuda() for value in batch(num_classes))
    mollify, inputs, logits = Mollify(MollyConfig(roles='xnbe')), x.to(dtype), torch.zeros(64, 10, device='cuda')
    begin = torch.cuda.Event()

    def step():
        _, smoothed = mollify(inputs, target)
        if num_classes is None:
            torch.nn.functional.cross_entropy(logits, smoothed)

    for _ in range(10):
        step()  # kernels are loaded once
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # cycles, about a second
    begin.record()
    torch.cuda.set_sync_debug_mode('error')
    try:
        step()
        assert not begin.query()  # the GPU is still asleep: nothing waited for it, seen by torch or not
    finally:
        torch.cuda.set_sync_debug_mode('default')


def test_blur_and_labels_are_those_of_the_cpu():
    x, labels = batch()
    roles, t = 'xb', torch.linspace(0, 1, 64)
    expected_x, expected = Mollify().apply(x.clone(), labels, roles, t)
    out, target = Mollify().apply(x.cuda(), labels.cuda(), roles, t)
    torch.testing.assert_close(out.cpu(), expected_x, atol=5e-3, rtol=0)
    torch.testing.assert_close(target.cpu().gamma, expected.gamma)


def test_a_generator_on_the_cpu_makes_the_gpu_repeat():
    runs = [Mollify(generator=torch.Generator().manual_seed(1))(batch()[0].cuda(), batch()[1].cuda()) for _ in range(2)]
    assert torch.equal(runs[0][0], runs[1][0])


def test_the_functional_part_can_be_captured_in_a_cuda_graph():
    x, labels = (value.cuda() for value in batch(10))
    t, eps = torch.linspace(0, 1, 64, device='cuda'), torch.randn_like(x)

    def step():
        return noise(x, t, eps), blur(x, t), smooth(labels, noise_gamma(t)), smooth(labels, blur_gamma(t))

    step()  # kernels are loaded once
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()
    x.normal_()
    t.uniform_()
    graph.replay()
    for out, expected in zip(outputs, step(), strict=True):
        torch.testing.assert_close(out, expected)


def test_the_functional_part_compiles_whole():
    x, t = batch()[0].cuda(), torch.linspace(0, 1, 64, device='cuda')
    eps = torch.randn_like(x)
    torch.testing.assert_close(torch.compile(noise, fullgraph=True)(x, t, eps), noise(x, t, eps))
    torch.testing.assert_close(torch.compile(blur, fullgraph=True)(x, t), blur(x, t), atol=5e-3, rtol=0)
