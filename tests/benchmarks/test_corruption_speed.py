"""Time of corrupting one image at severity 3, beside the published generator where it is at hand; `make bench` runs it.

Each corruption and size is a group, so that the table shows ratios.
"""

import cv2
import numpy as np
import pytest
import torch
from support.corruptions import COMMON, HELD_OUT, corrupt
from support.reference import SCRIPTS, SIZES, load, needs_reference, photograph


@pytest.fixture(autouse=True)
def one_thread():
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    yield
    cv2.setNumThreads(threads[0])
    torch.set_num_threads(threads[1])


@pytest.fixture(params=(*COMMON, *HELD_OUT))
def name(request):
    return request.param


@pytest.fixture(params=SCRIPTS)
def image(request, name, benchmark):
    benchmark.group = f'{name}, {SIZES[request.param]} px'
    benchmark.extra_info['table'] = request.param
    return photograph(SIZES[request.param])


def test_timm_molly(benchmark, name, image):
    table = benchmark.extra_info['table']
    benchmark.pedantic(corrupt, (image, name, 3, table, 0), rounds=9, warmup_rounds=1)


@needs_reference
def test_published(benchmark, name, image):
    function = load(SCRIPTS[benchmark.extra_info['table']])[name]
    benchmark.pedantic(function, (image, 3), rounds=3, warmup_rounds=1)


def all_15(function):
    """Corrupt an image of 224 pixels by each of the 15 at each severity."""
    image = photograph(224)
    for name in COMMON:
        for severity in range(1, 6):
            function(image, name, severity)


@pytest.mark.benchmark(group='the 15 at five severities, 224 px')
def test_timm_molly_all(benchmark):
    benchmark.pedantic(
        all_15,
        (lambda image, name, severity: corrupt(image, name, severity, 'imagenet-c', 0),),
        rounds=3,
        warmup_rounds=1,
    )


@pytest.mark.benchmark(group='the 15 at five severities, 224 px')
def test_imagecorruptions_all(benchmark):
    from imagecorruptions import corrupt as by_name

    def function(image, name, severity):
        return by_name(np.asarray(image), severity, name)

    benchmark.pedantic(all_15, (function,), rounds=3, warmup_rounds=1)


@pytest.mark.benchmark(group='the 15 at five severities, 224 px')
@needs_reference
def test_published_all(benchmark):
    functions = load(SCRIPTS['imagenet-c'])
    benchmark.pedantic(
        all_15, (lambda image, name, severity: functions[name](image, severity),), rounds=1, warmup_rounds=1
    )
