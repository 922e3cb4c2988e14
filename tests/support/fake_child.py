"""Stands in for `timm_molly.cli.child` in the tests of what runs it: writes such files, in no time, from the seed.

Arguments: a report.json to fill in, and then those of `timm_molly.cli.child`.
"""

import csv
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path

from timm_molly.cli.child import end_with_parent
from timm_molly.study import NOT_FINITE, UNREADABLE


def train(folder, settings):
    (folder / 'train').mkdir()  # fails where an earlier training was not cleared away
    behave = settings.get('behave')
    for epoch in range(settings['epochs']):
        time.sleep(settings.get('epoch_seconds', 0))
        loss = 'nan' if behave == 'nan' and epoch == 1 else 1 / (1 + epoch + settings['seed'])
        with (folder / 'train' / 'summary.csv').open('a', newline='') as file:
            writer = csv.writer(file)
            if epoch == 0:
                writer.writerow(['epoch', 'train_loss'])
            writer.writerow([epoch * settings.get('val_interval', 1), loss])
        if behave == 'nan' and epoch == 1:
            time.sleep(600)  # as a train.py that goes on
        if behave == 'crash' and not Path(settings['mended']).exists():
            sys.exit('OSError: [Errno 28] No space left on device')
        if behave == 'killed':
            os.kill(os.getpid(), signal.SIGKILL)
        if behave == 'interrupted':
            os.kill(os.getpid(), signal.SIGINT)
    if behave != 'unreadable' or (folder / 'commands').read_text().count('train') > 1:
        (folder / 'train' / 'last.pth.tar').write_text(str(settings['seed']))


def measure(folder, settings, report):
    if not (folder / 'train' / 'last.pth.tar').is_file():
        print('no such folder or checkpoint')
        return UNREADABLE
    seed = int((folder / 'train' / 'last.pth.tar').read_text())
    if settings.get('behave') == 'weights':
        print('weights that are not finite')
        return NOT_FINITE
    time.sleep(settings.get('epoch_seconds', 0))
    better = 0.5 if 'molly' in (settings['aa'] or '') else 1

    def fill(cell, scale):
        error = scale * better * (1 + seed / 7)
        cell |= {'error': error, 'nll': 3 * error, 'ece': error / 3, 'confidence': 1 - error / 2}

    # Of our own code, made once; it takes seconds to import what makes one.
    report = json.loads(Path(report).read_text())
    fill(report['clean'], 0.1)
    fill(report['cells']['shot_noise']['1'], 0.3)
    fill(report['cells']['zoom_blur']['1'], 0.2)
    report['model']['sha256'] = f'{seed:064x}'
    if settings.get('behave') == 'no logits':
        report['clean'] |= {**dict.fromkeys(('error', 'nll', 'brier', 'ece', 'confidence', 'bins')), 'not_finite': 1}
    if settings.get('behave') == 'images':
        report['data']['labels'] = 'other'
    (folder / 'report').mkdir(exist_ok=True)
    (folder / 'report' / 'report.json').write_text(json.dumps(report))


if __name__ == '__main__':
    report, command, path, *_ = sys.argv[1:]
    if command == 'about':
        if Path(path).name != 'train_script.py':
            runpy.run_path(path)
        print('--data-dir --model --aa --experiment --seed --epochs --behave\n\n1.2.3')
        sys.exit()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also in a test run that ignores it
    end_with_parent()
    folder = Path(path)
    with (folder / 'commands').open('a') as file:
        file.write(f'{command} {os.getpid()}\n')
    settings = json.loads((folder / 'settings.json').read_text())['train']
    sys.exit(train(folder, settings) if command == 'train' else measure(folder, settings, report))
