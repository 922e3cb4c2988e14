"""The processes of a study: each ends when the study ends, however that ended, SIGKILL too.

python -m timm_molly.cli.child train FOLDER SCRIPT
python -m timm_molly.cli.child measure FOLDER
python -m timm_molly.cli.child about SCRIPT
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

from timm_molly.cli import notes
from timm_molly.cli.run import run_script
from timm_molly.errors import UserError
from timm_molly.study import NOT_FINITE, UNREADABLE


def main(command: str, *words: str) -> int:
    """Train or measure what `settings.json` in a folder says, or ask a script about itself; return an exit code."""
    if command == 'about':
        about(words[0])
        return 0
    folder = Path(words[0])
    if command == 'train':
        arguments = ['--config', str(folder / 'config.yaml'), '--output', str(folder), '--experiment', 'train']
        run_script(words[1], arguments)
        return 0
    with notes():
        return measure(folder)


def measure(folder: Path) -> int:
    """Measure what a training ended with; return an exit code."""
    from timm_molly.study.measure import load, measure
    from timm_molly.weights import check_finite

    settings = json.loads((folder / 'settings.json').read_text())
    code = UNREADABLE
    try:
        classifier = load(folder, settings['validate'])
        code = NOT_FINITE
        check_finite(classifier.model, folder / 'train')
        code = 2
        measure(classifier, folder, settings['train'], settings['validate'])
    except UserError as error:
        print(error, file=sys.stderr)
        return code
    return 0


def about(script: str) -> None:
    """Print what a train script says of its flags, and then the version of the timm that it uses."""
    try:
        run_script(script, ['--help'])
    except SystemExit as end:
        if end.code:
            raise
    import timm

    print(f'\n{timm.__version__}')


def end_with_parent() -> None:
    """End this process as soon as the other end of its standard input is closed, as the system does for the dead.

    And not by an interrupt, which the parent gets too: train.py would take it for the end of a sound training.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        while os.read(0, 1):  # not through sys.stdin, whose lock a fork would copy
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == '__main__':
    if sys.argv[1] != 'about':
        end_with_parent()
    sys.exit(main(*sys.argv[1:]))
