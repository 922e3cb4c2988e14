"""What is printed, on a terminal, in a narrow one, and where there is none."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timm_molly.tables import aligned

BAR = (
    'import numpy as np, timm, torch, timm_molly\n'
    'model = timm.create_model("test_resnet", num_classes=2)\n'
    'model.pretrained_cfg |= {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}\n'
    'images = [(np.zeros((32, 32, 3), np.uint8), 0)] * 4\n'
    'timm_molly.evaluate(model, images, timm_molly.robustness.Corruptions(["contrast"], [1, 2]), workers=0)\n'
)


def in_terminal(command, columns):
    """Output of a command on a terminal so wide."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))
    env = {key: value for key, value in os.environ.items() if key not in ('COLUMNS', 'LINES')}
    with subprocess.Popen(command, stdout=its, stderr=its, stdin=its, env=env | {'NO_COLOR': '1'}) as process:
        os.close(its)
        found = b''
        try:
            while more := os.read(ours, 4096):
                found += more
        except OSError:  # Linux's way to say that the other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0, found
    return found.decode()


@st.composite
def tables(draw):
    columns = draw(st.integers(2, 6))
    cell = st.text('abc0', max_size=5)
    return draw(st.lists(st.lists(cell, min_size=columns, max_size=columns), min_size=1, max_size=4))


@given(tables(), st.integers(12, 40), st.integers(1, 3))
def test_a_table_is_no_wider_than_its_terminal_and_holds_every_cell(rows, width, together):
    text = aligned(rows, width, together)
    parts = text.split('\n\n') if any(map(any, rows)) else []
    assert all(len(line) <= width for part in parts for line in part.split('\n'))
    assert text.count('0') >= sum(cell.count('0') for row in rows for cell in row)
    whole = aligned(rows, 10**6).split('\n')
    assert len(whole) == len(rows)
    assert [line.split() for line in whole] == [' '.join(row).split() for row in rows]


def test_columns_that_belong_together_are_not_parted_where_they_fit():
    rows = [['', 'A', 'B', 'B - A', 'a', 'b', 'b - a'], ['fog', *'123456']]
    heads = [part.split('\n')[0].split('  ') for part in aligned(rows, 22, together=3).split('\n\n')]
    assert [[head.strip() for head in line if head.strip()] for line in heads] == [
        ['A', 'B', 'B - A'],
        ['a', 'b', 'b - a'],
    ]
    parted = aligned(rows, 10, together=3)
    assert max(map(len, parted.split('\n'))) <= 10


@pytest.mark.slow
def test_a_table_fits_a_narrow_terminal_and_is_whole_in_a_pipe():
    command = [sys.executable, '-m', 'timm_molly', 'models', 'hub_cards']
    narrow = in_terminal(command, 64)
    piped = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert max(map(len, narrow.splitlines())) <= 64 < max(map(len, piped.splitlines()))
    assert sorted(set(narrow.split())) == sorted(set(piped.split()))
    assert '\x1b' not in narrow + piped


@pytest.mark.slow
def test_a_progress_bar_fits_its_terminal_and_is_lines_in_a_log():
    command = [sys.executable, '-c', BAR]
    drawn = in_terminal(command, 60)
    lines = re.split(r'[\r\n]+', drawn.rstrip())
    assert sum('/12' in line for line in lines) >= 2
    assert max(map(len, lines)) <= 60
    log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    assert '\r' not in log
    assert '100%' in log.splitlines()[-1]
    assert '12/12' in log
