"""Reading and writing files; what is written is there whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from timm_molly.errors import UserError, hint

POLL = 0.2  # seconds between two tries to take a lock


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says of a place that cannot be written, or of a full disk, into a UserError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f'cannot write {path}: {error.strerror or error}') from None


def hint_beside(path: str | Path) -> str:
    """Say which file or folder beside one that is not there may be meant; nothing where none is near."""
    path = Path(path)
    return hint(path.name, (each.name for each in path.parent.glob('*')))  # none where it may not be read


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`, with its suffix, that takes its place if nothing is raised.

    Raises:
        UserError: It cannot be written.
    """
    with writing(path):
        handle, name = tempfile.mkstemp(suffix=path.suffix, dir=path.parent)
        os.close(handle)
        try:
            yield Path(name)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, and wait for it where another process has it.

    Raises:
        UserError: As `try_lock`.
    """
    while (lock := try_lock(path)) is None:
        time.sleep(POLL)
    try:
        yield
    finally:
        lock.release()


def try_lock(path: Path) -> FileLock | None:
    """Take the lock of a file, which ends with the process at the latest; None where another one has it.

    The folder is made where it is not there. The lock is the system's (flock), which Linux passes on to an NFS server.

    Raises:
        UserError: It cannot be written, or the file system has no locks.
    """
    lock = FileLock(path)
    with writing(path):
        while not lock.is_locked:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:  # which is an OSError
                return None
            except FileNotFoundError:  # another process has just removed the folder
                continue
            except NotImplementedError:
                raise UserError(f'cannot lock {path}: its file system has no locks') from None
    return lock


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, with the line ends that the text has.

    Raises:
        UserError: It cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding='utf-8', newline='\n')


def write_json(path: Path, value: Any) -> None:
    """Write plain values as JSON.

    Raises:
        UserError: It cannot be written.
    """
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + '\n')


def make_folder(path: Path) -> Path:
    """Make a folder and those above it where they are not there yet, and return it.

    Raises:
        UserError: It cannot be made.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def read_bytes(path: Path, what: str = 'file', limit: int | None = None) -> bytes:
    """Read a file.

    Args:
        path: The file.
        what: What it should be, for the error.
        limit: Most bytes that such a file can have.

    Raises:
        UserError: There is none, it is larger, or it cannot be read.
    """
    try:
        size = path.stat().st_size
        if limit is not None and size > limit:
            raise UserError(f'{path} is larger than any {what}: {size} bytes')
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f'no such {what}: {path}{hint_beside(path)}') from None
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror}') from None


def read_json(path: Path, what: str = 'file', limit: int | None = None) -> Any:
    """Read a JSON file.

    Raises:
        UserError: As `read_bytes`; or it is not JSON.
    """
    content = read_bytes(path, what, limit)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is not JSON: {error}') from None
