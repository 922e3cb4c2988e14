"""Run a train script with `--aa molly`, mollify only every other batch, and write down what each step took.

`train_speed.py OUT SCRIPT ARGUMENTS`. A step begins when the batch is there and ends when the next one is asked for, so
that it holds all that a batch costs but the wait for the workers, which do the same either way. Batches are mollified
in the order no, yes, yes, no: what slows the machine down for a while slows both. OUT gets, as JSON, the CPU seconds of
the steps without and with mollification, and those that mollification itself took: of all threads, but not of the
workers. Seconds of a clock cannot show one percent on a machine that others use too.
"""

import json
import runpy
import sys
import time
from pathlib import Path

from timm_molly.plugin.loader import MollyLoader


def alternate(self):
    for i, (x, target) in enumerate(self.__wrapped__):
        start = time.process_time()
        mollified = i % 4 in (1, 2)
        if mollified:
            x, target = self._self_mollify(x, target)
            seconds['mollify'].append(time.process_time() - start)
        yield x, target
        seconds['with' if mollified else 'without'].append(time.process_time() - start)


if __name__ == '__main__':
    seconds: dict[str, list[float]] = {'without': [], 'with': [], 'mollify': []}
    MollyLoader.__iter__ = alternate
    _, out, script, *arguments = sys.argv
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    try:
        runpy.run_path(script, run_name='__main__')
    finally:
        Path(out).write_text(json.dumps(seconds))
