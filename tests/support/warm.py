"""Run scripts in processes forked from one that has imported torch and timm already, which saves seconds each."""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

context = multiprocessing.get_context('forkserver')
context.set_forkserver_preload(
    ['torch', 'torchvision', 'timm', 'timm.data', 'timm_molly.mollify', 'timm_molly.study.runner']
)


def run_script(*arguments: object) -> subprocess.CompletedProcess:
    """Do what `python ARGUMENTS` does, but for imports, and return it as `subprocess.run` would."""
    words = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ('stdout', 'stderr')]
        process = context.Process(target=_script, args=(words, streams))
        process.start()
        process.join()
        return subprocess.CompletedProcess(words, process.exitcode, *(stream.read_text() for stream in streams))


def _script(arguments: list[str], streams: list[Path]) -> None:
    for stream, number in zip(streams, (1, 2), strict=True):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
    multiprocessing.set_start_method('fork', force=True)  # for loader workers, as in a process of its own
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).parent))
    code: object = 0
    try:
        runpy.run_path(arguments[0], run_name='__main__')
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    atexit._run_exitfuncs()  # which processes of multiprocessing leave out
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)
