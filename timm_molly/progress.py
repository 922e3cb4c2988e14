"""Progress bars: as tqdm draws them on a terminal and in a notebook, and line by line in a log."""

from __future__ import annotations

import sys
from typing import Any, TextIO

import tqdm
from tqdm.auto import tqdm as drawn

LOG_INTERVAL = 30  # seconds between the lines of a log


def bar(**options: Any) -> tqdm.tqdm[Any]:
    """Return a bar on stderr, with tqdm's options.

    Example:
        >>> with bar(total=3, unit='img', disable=True) as progress:
        ...     progress.update(3)
    """
    if sys.stderr.isatty():  # a notebook's stderr says that it is one
        return drawn(dynamic_ncols=True, **{'mininterval': 0.5, **options})
    options |= {'mininterval': LOG_INTERVAL, 'maxinterval': LOG_INTERVAL, 'file': _Lines(sys.stderr)}
    return tqdm.tqdm(ncols=100, ascii=True, **options)


class _Lines:
    """A log, in which a bar that is drawn again is a new line."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        if line := text.strip('\r\n '):
            self.stream.write(line + '\n')

    def flush(self) -> None:
        self.stream.flush()
