"""Bringing a repository of the Hub to this machine."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from timm_molly.errors import UserError
from timm_molly.hub.folder import CONFIG, MAX_BYTES, REPORT
from timm_molly.hub.network import content_name, http_error, is_network_error, is_whole, persist
from timm_molly.training import WEIGHTS


def download(repo_id: str, revision: str | None, token: str | None) -> Path:
    """Bring the files of one commit into the Hub's cache, and return their folder.

    Files are compared with the Hub's checksums. Without a network they are those of an earlier load.

    Args:
        repo_id: Owner and name.
        revision: Branch, tag or commit.
        token: For a private repository; the logged-in user's if None.

    Raises:
        UserError: There is no such model, or a file of it is too large or damaged.
        HubError: The Hub cannot be reached and the model is not in the cache.
    """
    wanted = [CONFIG, WEIGHTS, REPORT]

    def attempt() -> Path:
        try:
            info = HfApi(token=token).model_info(repo_id, revision=revision, files_metadata=True)
        except Exception as error:
            if http_error(error) is not None or not is_network_error(error):
                raise
            # Without a network, as timm does: with what an earlier load has left in the cache.
            try:
                kept = snapshot_download(repo_id, revision=revision, allow_patterns=wanted, local_files_only=True)
            except LocalEntryNotFoundError:
                raise error from None
            for path in (Path(kept, name) for name in wanted):
                name = path.resolve().name  # the cache names files as the Hub does, where it can link to them
                if re.fullmatch('[0-9a-f]{40}|[0-9a-f]{64}', name) and path.is_file() and not is_whole(path, name):
                    raise UserError(f'{path} is damaged: delete it, and load {repo_id} again') from None
            return Path(kept)
        files = {file.rfilename: file for file in info.siblings or () if file.rfilename in wanted}
        for name in (CONFIG, WEIGHTS):
            if name not in files:
                raise UserError(f'{repo_id} has no {name}: is it an image classifier of timm?')
        folders = set()
        for name, file in files.items():
            if (file.size or 0) > MAX_BYTES.get(name, 2**40):
                raise UserError(f'{repo_id} has a {name} larger than any such file: {file.size} bytes')
            # By the name of the branch, under which the cache finds them again without a network.
            path = Path(hf_hub_download(repo_id, name, revision=revision, token=token))
            if not is_whole(path, content_name(file)):
                path = Path(hf_hub_download(repo_id, name, revision=revision, token=token, force_download=True))
                if not is_whole(path, content_name(file)):
                    raise ConnectionError(f'{name} was damaged on its way, twice, or is no longer what it was')
            folders.add(path.parent)
        if len(folders) > 1:
            raise ConnectionError(f'{repo_id} changed while it was read')
        return folders.pop()

    try:
        return persist(attempt, f'loaded from {repo_id}', 'try again later')
    except HFValidationError:
        raise UserError(f'neither a folder nor the name of a repository (owner/name): {repo_id}') from None
