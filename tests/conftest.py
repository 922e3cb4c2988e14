import importlib.metadata
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# Tests that import torch see the plugin as a user does, whatever the environment of the test run.
os.environ.pop('TIMM_MOLLY_AUTOLOAD', None)
os.environ.pop('TORCH_DEVICE_BACKEND_AUTOLOAD', None)
# No test can reach the real Hub: its address is one of this machine, where nobody answers but the `hub` of a test. It
# is said here because the Hub's client reads it once, when it is imported.
HUB_SOCKET = socket.socket()
HUB_SOCKET.bind(('127.0.0.1', 0))
HF_HOME = tempfile.TemporaryDirectory()
os.environ |= {
    'HF_ENDPOINT': f'http://127.0.0.1:{HUB_SOCKET.getsockname()[1]}',
    'HF_HOME': HF_HOME.name,
    'HF_HUB_DISABLE_XET': '1',  # the Hub's newer storage, whose client is a binary with a protocol of its own
    'HF_HUB_DISABLE_TELEMETRY': '1',
}
for name in ('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN', 'HF_HUB_CACHE', 'HF_HUB_OFFLINE'):
    os.environ.pop(name, None)
if 'PYTEST_XDIST_WORKER' in os.environ:  # tests that run side by side slow each other down with threads
    os.environ.setdefault('OMP_NUM_THREADS', '1')
# Only now, since they import the Hub's client and PyTorch, which read these when they are imported.
from support import tiny_images  # noqa: E402
from support.measured import checkpoint, flags  # noqa: E402, F401
from timm.data.loader import PrefetchLoader  # noqa: E402

LIMIT = 3600  # seconds, after which a process hangs, however slow the machine is
# A slow machine is no failure.
hypothesis.settings.register_profile('suite', deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile('suite')


def pytest_report_header() -> str:
    """Say what the suite runs on."""
    needed = [re.match(r'[\w-]+', each)[0] for each in importlib.metadata.requires('timm-molly') or ()]
    found = {(each.name or '').lower().replace('_', '-'): each.version for each in importlib.metadata.distributions()}
    return 'with ' + ', '.join(f'{name} {found[name]}' for name in dict.fromkeys(needed) if name in found)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip trainings where there is no script for the timm that is installed."""
    if os.environ.get('TIMM_TRAIN_SCRIPT') or hasattr(PrefetchLoader, 'batch_sampler'):
        return
    reason = "the stand-in for train.py is for a newer timm: set TIMM_TRAIN_SCRIPT to the train.py of this one's tag"
    for item in items:
        if item.get_closest_marker('train'):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope='session')
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny image folder as train.py reads it: 3 classes, 16 training and 4 validation images each, 36 px."""
    root = tmp_path_factory.mktemp('images')
    tiny_images.write(root)
    return root


@pytest.fixture(scope='session')
def hub_server() -> Iterator[object]:
    """The Hub of these tests, where HF_ENDPOINT points to."""
    from support.hub_server import running

    with running(HUB_SOCKET) as server:
        yield server


@pytest.fixture
def hub(hub_server, tmp_path, monkeypatch):
    """The Hub of one test, with nothing in it yet, and a cache of its own for what comes from it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub-cache'))
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'hub-cache'))
    hub_server.clear()
    return hub_server


@pytest.fixture
def python():
    """Run this Python on arguments in a process of its own, and return what it did."""
    # One thread of each kind: tests run side by side, and loader workers forked beside compile threads can hang.
    threads = {'OMP_NUM_THREADS': '1', 'TORCHINDUCTOR_COMPILE_THREADS': '1'}

    def run(*arguments: object, env: dict[str, str] | None = None, **options: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            env={**os.environ, **threads, **(env or {})},
            **options,
        )

    return run
