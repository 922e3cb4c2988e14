"""The notebook runs from top to bottom, and what is stored in it is what it gave."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from timm_molly.hub.make import timm_reads_folders

NOTEBOOK = Path(__file__).parents[1] / 'recipes' / 'quickstart.ipynb'


def texts(cell):
    """What a cell printed or gave, as text."""
    return ''.join(each.get('text') or each.get('data', {}).get('text/plain', '') for each in cell.outputs)


def cells():
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    return notebook, [cell for cell in notebook.cells if cell.cell_type == 'code']


def test_every_cell_was_run_in_turn_and_none_complained():
    _, found = cells()
    assert [cell.execution_count for cell in found] == list(range(1, len(found) + 1))
    kinds = {(each.output_type, each.get('name')) for cell in found for each in cell.outputs}
    assert kinds == {('stream', 'stdout'), ('execute_result', None)}
    assert sum('image/png' in each.get('data', {}) for cell in found for each in cell.outputs) == 4


@pytest.mark.slow
@pytest.mark.skipif(not timm_reads_folders(), reason='timm unpickles safetensors of local-dir: models before 1.0.26')
def test_it_runs_from_top_to_bottom(tmp_path):
    notebook, found = cells()
    files = texts(found[-2])
    for cell in found:
        cell.source = cell.source.replace('epochs=12', 'epochs=1')
    NotebookClient(notebook, timeout=600, resources={'metadata': {'path': str(tmp_path)}}).execute()
    assert texts(found[-1]).endswith('True')  # timm's network gives the logits of ours
    assert texts(found[-2]) == files
    assert (tmp_path / 'output' / 'quickstart' / 'digits_molly' / 'model.safetensors').is_file()
