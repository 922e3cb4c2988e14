"""The processes of a study: each ends when the study ends, however that ended, SIGKILL too.

python -m timm_molly.study.child train FOLDER SCRIPT
python -m timm_molly.study.child measure FOLDER
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Flags that train.py and validate have by the same names.
DATA = ('data_dir', 'dataset', 'dataset_download', 'class_map', 'input_key', 'target_key')
SHARED = (*DATA, 'device', 'channels_last', 'workers')


def main(command: str, folder: Path, script: str | None = None) -> int:
    """Train or measure what `settings.json` in a folder says."""
    from timm_molly import cli

    settings = json.loads((folder / 'settings.json').read_text(encoding='utf-8'))
    if command == 'train':
        assert script is not None
        arguments = ['--config', str(folder / 'config.yaml'), '--output', str(folder), '--experiment', 'train']
        return cli.main(['run', script, *arguments])
    arguments = ['validate', *validate_flags(folder, settings)]
    sys.argv = ['timm-molly', *arguments]  # which the report quotes
    return cli.main(arguments)


def validate_flags(folder: Path, settings: Mapping[str, Any]) -> list[str]:
    """Flags of `timm-molly validate` for a finished training: the model and its images as in that training.

    The weights are those of the last epoch, averaged where the training averaged them, in float32 whatever that
    computed in.

    Raises:
        ValueError: The training left no sound weights.
    """
    from timm_molly.hub.run import read_run

    train, own = settings['train'], settings['validate']
    checkpoint = folder / 'train' / 'last.pth.tar'
    run = read_run(checkpoint)
    kwargs = {key: value for key, value in run.model_args.items() if key != 'in_chans'}
    flags: dict[str, Any] = {
        'model': run.architecture,
        'checkpoint': checkpoint,
        'use_ema': bool(run.about.get('ema')),
        'num_classes': run.model.num_classes,
        **run.data_config,
        'model_kwargs': [f'{key}={value!r}' for key, value in kwargs.items()],
        'split': train.get('val_split'),
        'batch_size': train.get('validation_batch_size'),
        **{key: train.get(key) for key in SHARED},
        **own,
        'output': folder / 'report',
    }
    words: list[str] = []
    for key, value in flags.items():
        if value is None or value is False or value == [] or value == '':
            continue
        words.append('--' + key.replace('_', '-'))
        if value is not True:
            words += [str(each) for each in value] if isinstance(value, (list, tuple)) else [str(value)]
    return words


def end_with_parent() -> None:
    """End this process as soon as the other end of its standard input is closed, as the system does for the dead."""

    def wait() -> None:
        while os.read(0, 1):  # not through sys.stdin, whose lock a fork would copy
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == '__main__':
    end_with_parent()
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))
