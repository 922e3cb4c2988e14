"""The processes of a study: each ends when the study ends, however that ended, SIGKILL too.

python -m timm_molly.study.child train FOLDER SCRIPT
python -m timm_molly.study.child measure FOLDER
python -m timm_molly.study.child about SCRIPT
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Exit codes of `measure`, beside those of `timm-molly validate`.
UNREADABLE, NOT_FINITE = 3, 4

# Flags that train.py and validate have by the same names.
DATA = ('data_dir', 'dataset', 'dataset_download', 'class_map', 'input_key', 'target_key')
SHARED = (*DATA, 'device', 'channels_last', 'workers')


def main(command: str, *words: str) -> int:
    """Train or measure what `settings.json` in a folder says, or ask a script about itself."""
    from timm_molly import cli

    if command == 'about':
        about(words[0])
        return 0
    folder = Path(words[0])
    if command == 'train':
        arguments = ['--config', str(folder / 'config.yaml'), '--output', str(folder), '--experiment', 'train']
        return cli.main(['run', words[1], *arguments])
    from timm_molly.hub.run import read_run

    try:
        run = read_run(folder / 'train' / 'last.pth.tar')
    except ValueError as error:
        print(error, file=sys.stderr)
        return NOT_FINITE if 'not finite' in str(error) else UNREADABLE
    arguments = ['validate', *validate_words(run, folder, json.loads((folder / 'settings.json').read_text()))]
    sys.argv = ['timm-molly', *arguments]  # which the report quotes
    return cli.main(arguments)


def validate_words(run: Any, folder: Path, settings: Mapping[str, Any]) -> list[str]:
    """Command line of `timm-molly validate` for a finished training: the model and its images as in that training.

    The weights are those of the last epoch, averaged where the training averaged them, in float32 whatever that
    computed in.

    Args:
        run: What `timm_molly.hub.run.read_run` reads of the training.
        folder: Of the entry.
        settings: Of the entry.
    """
    from timm_molly.study.grid import words

    train, own = settings['train'], settings['validate']
    kwargs = {key: value for key, value in run.model_args.items() if key != 'in_chans'}
    config = dict(run.data_config)
    if own.get('corrupted_dir'):
        # In the model's cfg the crop is that of clean images; as a flag it would be that of the corrupted ones too,
        # which are cropped already.
        kwargs['pretrained_cfg_overlay'] = {'crop_pct': config.pop('crop_pct')}
    return words(
        {
            'model': run.architecture,
            'checkpoint': folder / 'train' / 'last.pth.tar',
            'use_ema': bool(run.about.get('ema')),
            'num_classes': run.model.num_classes,
            **config,
            'model_kwargs': [f'{key}={value!r}' for key, value in kwargs.items()],
            'split': train.get('val_split'),
            'batch_size': train.get('validation_batch_size'),
            **{key: train.get(key) for key in SHARED},
            **own,
            'output': folder / 'report',
        }
    )


def about(script: str) -> None:
    """Print what a train script says of its flags, and then the version of the timm that it uses."""
    from timm_molly import cli

    try:
        cli.main(['run', script, '--help'])
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
