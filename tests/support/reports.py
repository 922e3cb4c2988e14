"""Reports of made-up figures."""

from timm_molly.robustness.corruptions.names import COMMON, SEVERITIES
from timm_molly.robustness.report import (
    BenchmarkRecord,
    Bins,
    Cell,
    DataRecord,
    ModelRecord,
    Report,
    packages,
)


def cell(error, images=100, scaled=None, **values):
    """A cell by its error alone."""
    bins = [0.0] * 10 + [images / 5] * 5, [0.0] * 10 + [images / 6] * 5, [0.0] * 10 + [images / 5.5] * 5
    figures = {'error': error, 'nll': 2 * error, 'brier': error, 'ece': error / 4, 'confidence': 0.9}
    figures |= {'adaptive_ece': error / 5, 'aurc': error / 3, 'e_aurc': error / 6, **values}
    return Cell(**figures, images=images, bins=Bins(*map(tuple, bins)), labels='abc', scaled=scaled or {})


def empty(images=100):
    """A cell of logits that were not finite."""
    nan = dict.fromkeys(('error', 'nll', 'brier', 'ece', 'confidence'), float('nan'))
    return Cell(**nan, images=images, bins=None, labels='abc', not_finite=3)


def made(benchmark=None, cells=None, num_classes=10, **model):
    """A report; by default of the common corruptions on the fly."""
    if cells is None:
        cells = {(name, s): cell(0.1 * s + 0.001 * i) for i, name in enumerate(COMMON) for s in SEVERITIES}
        cells = {('clean', 0): cell(0.05), **cells}
    names = list(dict.fromkeys(name for name, _ in cells if name != 'clean'))
    benchmark = {'kind': 'on the fly', 'table': 'cifar-c', 'seed': 1} if benchmark is None else benchmark
    if benchmark['kind'] != 'mollification':
        severities = tuple(sorted({level for name, level in cells if name != 'clean'}))
        benchmark = {'corruptions': tuple(names), 'severities': severities, **benchmark}
    record = {
        'name': 'test_resnet',
        'checkpoint': None,
        'ema': False,
        'aa': None,
        'parameters': 370_000,
        'num_classes': num_classes,
        'sha256': '0' * 64,
        'input_size': (3, 32, 32),
        'mean': (0.5, 0.5, 0.5),
        'std': (0.5, 0.5, 0.5),
        'crop_pct': 1.0,
        'crop_mode': 'center',
        'interpolation': 'bicubic',
        'device': 'cpu',
        'amp': None,
        **model,
    }
    data = DataRecord('digits', 'validation', 100, num_classes, False, 'abc')
    return Report(ModelRecord(**record), BenchmarkRecord(**benchmark), data, cells, packages(), 'timm-molly validate')


def mollified(**changes):
    """A report of mollification."""
    cells = {('clean', 0): cell(0.05)} | {(n, t): cell(t / 2) for n in ('noise', 'blur') for t in (0.25, 0.5, 1.0)}
    return made({'kind': 'mollification', 'roles': 'bn', 'taught': 'molly', 'seed': 1, **changes}, cells)
