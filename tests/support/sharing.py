"""A process that measures beside others in one folder."""

import os
import time

TURN = 0.05  # seconds that a cell takes at least, so that each process has a share


def validate(arguments: list[str], log: str, ready, fault: str = '') -> None:
    """Run `timm-molly validate`, note each cell that is kept with the process, and exit with its code.

    With `fault` 'hang' it stays in the second cell for ever, with 'full disk' it cannot write that one.
    """
    from timm_molly import files
    from timm_molly.cli import main
    from timm_molly.robustness import cache, evaluate

    kept = []
    keep = cache.Store.keep

    def noted(self, condition, cell):
        time.sleep(TURN)
        if len(kept) == 1 and fault == 'hang':
            open(f'{log}.hangs', 'w').close()
            time.sleep(3600)
        if len(kept) == 1 and fault == 'full disk':
            cache.write_json = full
        keep(self, condition, cell)
        kept.append(condition)
        with open(log, 'a') as file:
            file.write(f'{os.getpid()} {condition}\n')

    def full(path, value):
        with files.writing(path):
            raise OSError(28, 'No space left on device', str(path))

    os.dup2(os.open(f'{log}.err', os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    cache.Store.keep = noted
    evaluate.WAIT = 0.05
    ready.wait()
    raise SystemExit(main(['validate', *arguments]))
