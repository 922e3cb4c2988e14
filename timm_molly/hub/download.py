"""`timm_molly.hub.load`: a model from the Hub or a folder, with its settings, report and transform."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from timm_molly.config import MollyConfig, split_aa
from timm_molly.hub.folder import ABOUT, CONFIG, MAX_BYTES, REPORT, read_folder
from timm_molly.hub.network import content_name, http_error, is_network_error, is_whole, persist
from timm_molly.training import WEIGHTS


@dataclass(frozen=True)
class Loaded:
    """A model and what belongs to it.

    Attributes:
        model: A timm model on the CPU, in evaluation mode: images (B, C, H, W) to logits (B, K).
        transform: From a PIL image to the model's input (C, H, W), float32, as in the training's validation.
        molly: Settings of mollification, or None for a model that was trained without, or does not say.
        report: `report.json` of `timm-molly validate` on these weights, or None.
        label_names: Names of the classes in the order of the logits, or by their place in it; or None.
    """

    model: Any
    transform: Any
    molly: MollyConfig | None
    report: dict[str, Any] | None
    label_names: Any

    def __repr__(self) -> str:
        name, size = type(self.model).__name__, ' x '.join(map(str, self.model.pretrained_cfg['input_size']))
        measured = None if self.report is None else f'<report of {self.report["model"]["name"]}>'
        return (
            f'Loaded(model=<{name}, input {size}, {self.model.num_classes} classes>, transform=<Compose>, '
            f'molly={self.molly}, report={measured}, label_names=<{len(self.label_names or ())} names>)'
        )


def load(repo_or_dir: str | Path, revision: str | None = None, token: str | None = None) -> Loaded:
    """Load a model from a folder, or from a repository on the Hub.

    Files are compared with the Hub's checksums, configs are checked, and nothing is unpickled. Without a network the
    files are those of an earlier load, from the Hub's cache.

    Args:
        repo_or_dir: A folder with `config.json` and `model.safetensors`, or a repository's owner/name.
        revision: Branch, tag or commit of the repository.
        token: For a private repository; the logged-in user's if None.

    Raises:
        ValueError: There is no such model, or a file of it is malformed, damaged or does not belong to the others.
        ConnectionError: The Hub cannot be reached and the model is not in the cache.
    """
    local = Path(repo_or_dir).is_dir()
    if local and (revision or token):
        raise ValueError(f'{repo_or_dir} is a folder, which has no revision and needs no token')
    folder = read_folder(Path(repo_or_dir) if local else _download(str(repo_or_dir), revision, token))
    from timm.data import create_transform, resolve_model_data_config

    aa = folder.config[ABOUT].get('aa')
    return Loaded(
        folder.model,
        create_transform(**resolve_model_data_config(folder.model), is_training=False),
        split_aa(aa)[0] if aa else None,
        folder.report,
        folder.config.get('label_names'),
    )


def _download(repo_id: str, revision: str | None, token: str | None) -> Path:
    """Bring the files of one commit into the Hub's cache, and return their folder."""
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
                    raise ValueError(f'{path} is damaged: delete it, and load {repo_id} again') from None
            return Path(kept)
        files = {file.rfilename: file for file in info.siblings or () if file.rfilename in wanted}
        for name in (CONFIG, WEIGHTS):
            if name not in files:
                raise ValueError(f'{repo_id} has no {name}: is it an image classifier of timm?')
        folders = set()
        for name, file in files.items():
            if (file.size or 0) > MAX_BYTES.get(name, 2**40):
                raise ValueError(f'{repo_id} has a {name} larger than any such file: {file.size} bytes')
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
        raise ValueError(f'neither a folder nor the name of a repository (owner/name): {repo_id}') from None
