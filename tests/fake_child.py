"""Stands in for `timm_molly.study.child` in the tests of what runs it: writes such files, in no time, from the seed."""

import csv
import json
import os
import sys
import time
from pathlib import Path

from timm_molly.study.child import end_with_parent


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
            writer.writerow([epoch, loss])
        if behave == 'nan' and epoch == 1:
            time.sleep(600)  # as a train.py that goes on
        if behave == 'crash' and not Path(settings['mended']).exists():
            sys.exit('OSError: [Errno 28] No space left on device')
        if behave == 'killed':
            os.kill(os.getpid(), 9)
    if behave != 'no checkpoint':
        (folder / 'train' / 'last.pth.tar').write_text(str(settings['seed']))


def measure(folder, settings):
    seed = int((folder / 'train' / 'last.pth.tar').read_text())
    time.sleep(settings.get('epoch_seconds', 0))
    better = 0.5 if 'molly' in (settings['aa'] or '') else 1

    def cell(scale):
        error = scale * better * (1 + seed / 7)
        return {'error': error, 'nll': 3 * error, 'ece': error / 3, 'confidence': 1 - error / 2}

    groups = {name: cell(scale) for name, scale in {'noise': 0.3, 'blur': 0.2}.items()}
    report = {
        'schema': 'timm-molly/robustness',
        'version': 1,
        'model': {'sha256': f'{seed:064x}'},
        'benchmark': {'kind': 'on the fly'},
        'data': {},
        'packages': {},
        'clean': cell(0.1),
        'cells': {},
        'not_finite': ['clean'] if settings.get('behave') == 'no logits' else [],
        'summary': {'mean': cell(0.25), 'groups': groups},
    }
    (folder / 'report').mkdir(exist_ok=True)
    (folder / 'report' / 'report.json').write_text(json.dumps(report))


if __name__ == '__main__':
    end_with_parent()
    command, folder = sys.argv[1], Path(sys.argv[2])
    with (folder / 'commands').open('a') as file:
        file.write(f'{command} {os.getpid()}\n')
    {'train': train, 'measure': measure}[command](folder, json.loads((folder / 'settings.json').read_text())['train'])
