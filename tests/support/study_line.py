"""Stands in for a line of `timm-molly study` that runs an entry: python study_line.py GRID OUTPUT ENTRY CHILD ABOUT."""

import json
import os
import sys
from pathlib import Path

if __name__ == '__main__':
    from timm_molly.study import run, script
    from timm_molly.study.grid import choose, read_grid
    from timm_molly.study.runner import run_all

    grid, output, name, child, about = sys.argv[1:]
    script.CHILD, run.POLL = json.loads(child), 0.01
    (entry,) = choose(read_grid(Path(grid), {}, {}).entries, [name])
    folder = Path(output, name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'device').write_text(str(os.environ.get('CUDA_VISIBLE_DEVICES')))
    if entry.train.get('behave') == 'no line':
        sys.exit('timm-molly study: no such data folder: images')
    run_all([entry], Path(output), Path('train.py'), json.loads(about))
