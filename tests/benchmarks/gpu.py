"""The benchmarks that need a GPU, in one run of a few minutes: `python tests/benchmarks/gpu.py`.

A call is timed on the GPU alone: the host queues the work behind a pause, and events tell when the GPU began and ended.
Steps of training are timed as a user sees them, with the loss read each step as train.py reads it. `--device cpu` and
small numbers try the script out.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator

import ratios
import timm
import torch
from timm.data.loader import PrefetchLoader
from torch import Tensor
from torch.nn import functional as F

from timm_molly import Mollify
from timm_molly.plugin.loader import MollyLoader

RUNS = 11
PAUSE = 100_000_000  # cycles, some 50 ms: longer than the host takes to queue a call


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Return the time that a function takes on the device."""
    if device.type != 'cuda':
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(PAUSE)
    begin.record()
    function()
    end.record()
    late = begin.query()
    end.synchronize()
    if late:
        raise RuntimeError('the GPU had begun before all was queued: the call waited for it, or PAUSE is too short')
    return begin.elapsed_time(end) / 1000


def batch(args: argparse.Namespace, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = torch.randn(args.batch_size, 3, args.size, args.size, device=args.device, dtype=dtype)
    return x, torch.randint(1000, (args.batch_size,), device=args.device)


def operation(args: argparse.Namespace, dtype: torch.dtype) -> Iterator[ratios.Row]:
    """Compare the time of a call with that of copying the batch, and count what it waits for and takes in memory."""
    source, labels = batch(args, dtype)
    x, mollify = source.clone(), Mollify()
    times, waits, memory = [], [], []
    for _ in range(10):  # loads the kernels
        mollify(x, labels)
    for _ in range(RUNS):
        copy = seconds(lambda: x.copy_(source), args.device)
        times.append(seconds(lambda: mollify(x, labels), args.device) / copy)
        if args.device.type == 'cuda':
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.set_sync_debug_mode('warn')
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter('always')
                mollify(x, labels)
            torch.cuda.set_sync_debug_mode('default')
            waits.append(sum('synchronizing' in str(warning.message) for warning in caught))
            extra = torch.cuda.max_memory_allocated() - before
            memory.append(extra / (x.nbytes / 3 + 64 * 2**20))
    name = f'{"x".join(map(str, x.shape))} {str(dtype)[6:]}'
    yield ratios.Row(f'time of a call over copying the batch, {name}', '<= 2.0', times)
    if waits:
        yield ratios.Row(f'host synchronisations of a call, {name}', '<= 0', waits)
        yield ratios.Row(f'peak extra memory over a third of the batch + 64 MiB, {name}', '<= 1', memory)


class Batches:
    """Stand for a DataLoader of uint8 images that are in memory, so that workers are no part of what is timed."""

    def __init__(self, args: argparse.Namespace) -> None:
        x = torch.randint(256, (args.batch_size, 3, args.size, args.size), dtype=torch.uint8)
        target = torch.randint(1000, (args.batch_size,))
        pin = args.device.type == 'cuda'
        self.batch = (x.pin_memory(), target.pin_memory()) if pin else (x, target)
        self.steps = args.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([self.batch] * self.steps)

    def __len__(self) -> int:
        return self.steps


def training(args: argparse.Namespace) -> ratios.Row:
    """Compare training steps with and without mollification, in turns of `--steps` steps."""
    model = timm.create_model(args.model, num_classes=1000).to(args.device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    plain = PrefetchLoader(Batches(args), channels=3, device=args.device)  # type: ignore[arg-type]
    loaders = {False: plain, True: MollyLoader(plain, Mollify())}

    def turn(mollified: bool) -> float:
        if args.device.type == 'cuda':
            torch.cuda.synchronize()
        start = time.perf_counter()
        for x, target in loaders[mollified]:
            x = x.contiguous(memory_format=torch.channels_last)
            with torch.autocast(args.device.type, torch.bfloat16):
                loss = F.cross_entropy(model(x), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
        if args.device.type == 'cuda':
            torch.cuda.synchronize()
        return time.perf_counter() - start

    values = []
    for i in range(RUNS + 1):
        pair = {mollified: turn(mollified) for mollified in ((False, True) if i % 2 else (True, False))}
        values.append(pair[True] / pair[False])
    name = f'{args.model}, {args.batch_size} images of {args.size} px, AMP bfloat16, channels last'
    return ratios.Row(f'step with over without, {name}', '<= 1.005', values[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', type=torch.device, default=torch.device('cuda'))
    parser.add_argument('--batch-size', type=int, default=256)
    parser.add_argument('--size', type=int, default=224, help='image side in pixels')
    parser.add_argument('--model', default='resnet50')
    parser.add_argument('--steps', type=int, default=30, help='steps in a turn of training')
    args = parser.parse_args()
    if args.device.type == 'cuda' and not torch.cuda.is_available():
        parser.error('there is no CUDA GPU here; --device cpu tries the script out')
    torch.manual_seed(0)
    # As train.py sets them.
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    rows = [row for dtype in (torch.float32, torch.bfloat16) for row in operation(args, dtype)]
    rows.append(training(args))
    name = torch.cuda.get_device_name() if args.device.type == 'cuda' else 'CPU, which no goal is for'
    print(f'{name}, torch {torch.__version__}, timm {timm.__version__}')
    print(*ratios.table(rows), sep='\n')


if __name__ == '__main__':
    main()
