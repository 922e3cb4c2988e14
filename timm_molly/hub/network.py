"""Talking to the Hub again and again until it listens, or says no."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from timm_molly.errors import HubError, UserError
from timm_molly.weights import one_line

WAITS = (1, 2, 4, 8)  # seconds between attempts
MAX_WAIT = 300
REFUSALS = {
    400: 'the Hub refuses what was sent',
    401: 'the Hub does not know this token',
    403: 'this token may not do that',
    404: 'the Hub has no such place',
}
NOTHING_DONE = (409, 412, 429, 503)  # answers of a Hub that has changed nothing

Result = TypeVar('Result')

_logger = logging.getLogger(__name__)


def persist(attempt: Callable[[], Result], goal: str, advice: str, once: bool = False) -> Result:
    """Make attempts until one succeeds, is refused, or too many have failed.

    Args:
        attempt: Talks to the Hub; it is made again from the start.
        goal: What was to be done, after 'nothing was'.
        advice: What the user can do when the Hub keeps failing.
        once: Not again where the Hub may have done what it was asked, but did not say so.

    Raises:
        UserError: The Hub says no, or a file of this machine cannot be written.
        HubError: It cannot be reached, or keeps failing.
    """
    for wait in (*WAITS, None):
        try:
            return attempt()
        except OfflineModeIsEnabled:
            raise HubError(f'HF_HUB_OFFLINE is set, so nothing was {goal}') from None
        except Exception as error:
            # The client wraps what goes wrong with the storage of large files, whose address is good for a time only.
            storing = isinstance(error, RuntimeError)
            cause = http_error(error)
            status = cause.response.status_code if cause is not None else None
            if status is None and not is_network_error(error):
                if isinstance(error, OSError) and not isinstance(error, UserError):
                    raise UserError(f'cannot use {error.filename}: {error.strerror}') from None
                raise
            said = one_line((cause is not None and cause.server_message) or f'{type(error).__name__}: {error}')
            if status in REFUSALS and not storing:
                unknown = isinstance(cause, RepositoryNotFoundError)  # which can be 401, for those without a token
                refusal = 'the Hub shows no such repository to this token' if unknown else REFUSALS[status]
                raise UserError(f'{refusal}, so nothing was {goal}: {said}') from None
            if once and status not in NOTHING_DONE and not storing:
                raise HubError(f'the Hub broke off ({said}): {advice}') from None
            if wait is None:
                raise HubError(f'the Hub cannot be reached, or keeps failing ({said}): {advice}') from None
            seconds = _retry_after(cause) or wait
            _logger.warning('%s: trying again in %s s', said, seconds)
            time.sleep(seconds)
    raise AssertionError('unreachable')


def is_network_error(error: BaseException) -> bool:
    """Tell broken connections and answers that make no sense from other errors of the Hub's client.

    It hands on those of the HTTP library that it has, of JSON, and of its own reading of what was sent.
    """
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError)):
        known = True
    elif isinstance(error, OSError):  # but not of files on this machine
        known = isinstance(error, (ConnectionError, TimeoutError)) or error.errno is None
    else:
        known = any(kind.__name__ == 'TransportError' for kind in type(error).__mro__)
    return known or (error.__cause__ is not None and is_network_error(error.__cause__))


def http_error(error: BaseException | None) -> HfHubHTTPError | None:
    """Find the Hub's answer behind an error of its client."""
    while error is not None and not (isinstance(error, HfHubHTTPError) and error.response is not None):
        error = error.__cause__
    return error


def is_whole(path: Path, name: str) -> bool:
    """Compare a file with the Hub's name for its content: the sha256 of a large one, git's for a small one."""
    content = path.read_bytes()
    if len(name) == 64:
        return hashlib.sha256(content).hexdigest() == name
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest() == name


def content_name(file: Any) -> str:
    """Return the Hub's name for the content of a file of `model_info`."""
    return str(file.lfs.sha256 if file.lfs is not None else file.blob_id)


def _retry_after(cause: HfHubHTTPError | None) -> int | None:
    after = cause.response.headers.get('Retry-After', '') if cause is not None else ''
    return min(int(after), MAX_WAIT) if after.isascii() and after.isdecimal() else None
