"""`timm_molly.push`: make the folder, and bring it to the Hub in one commit."""

from __future__ import annotations

import dataclasses
import logging
import re
import tempfile
from pathlib import Path
from typing import Any, TypedDict

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from typing_extensions import Unpack

from timm_molly import __version__
from timm_molly.classifier import Classifier
from timm_molly.errors import HubError, UserError
from timm_molly.hub import make
from timm_molly.hub.card import is_generated
from timm_molly.hub.folder import CARD, CONFIG, EVALUATION, REPORT, read_report
from timm_molly.hub.network import content_name, is_whole, persist
from timm_molly.hub.publication import read_run
from timm_molly.robustness.report import Report
from timm_molly.training import ARGS, WEIGHTS, read_settings

_logger = logging.getLogger(__name__)


class Publication(TypedDict, total=False):
    """What a folder for the Hub is made from, beside the training.

    Attributes:
        report: Of `timm-molly validate` on the same weights: a `Report`, its file or its folder.
        model: timm's name of the model, for a checkpoint that does not say it.
        use_ema: Take the EMA weights; None (the default) takes them where there are any.
        license: Of the weights, such as 'apache-2.0'.
        dataset_id: The training data's name on the Hub.
    """

    report: Report | str | Path | None
    model: str | None
    use_ema: bool | None
    license: str | None
    dataset_id: str | None


def push(
    path: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    overwrite_card: bool = False,
    **publication: Unpack[Publication],
) -> str:
    """Bring a training, or a folder made for the Hub, to the Hugging Face Hub in one commit.

    Args:
        path: Folder of a training with args.yaml and model_best.pth.tar, a checkpoint, or a folder that `prepare` made,
            which is pushed as it stands.
        repo_id: Owner and name; the repository is created if there is none.
        private: The repository must be private.
        revision: Branch, created from main if there is none, but not for a pull request.
        create_pr: Open a pull request in place of a commit to the branch.
        token: The logged-in user's if None.
        overwrite_card: Also where the card was edited by hand on the Hub.
        **publication: As of `Publication`: report, model, use_ema, license, dataset_id; none for a folder.

    Returns:
        Address of the commit or pull request, and what was left as it is.

    Raises:
        UserError: What has to be changed; nothing was pushed.
        HubError: The Hub could not be reached, or kept failing.
    """
    check_repo_id(repo_id)
    token = _checked_token(token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(path)
        if is_ready(folder):
            check_ready(folder, repo_id, **publication)
            _note_paths(folder)
        else:
            folder = prepare(path, repo_id, Path(temporary, repo_id.rpartition('/')[2]), **publication)
        return upload(folder, repo_id, token, private, revision, create_pr, overwrite_card)


def prepare(path: str | Path, repo_id: str, output: str | Path, **publication: Unpack[Publication]) -> Path:
    """Write the folder that `push` brings to the Hub, to look at it and push it later.

    Args:
        path: Folder of a training, or a checkpoint.
        repo_id: Owner and name that it is for.
        output: A folder that is not there yet, or empty.
        **publication: As of `push`.

    Returns:
        `output`, which `timm_molly.load` and timm's 'local-dir:...' load.

    Raises:
        UserError: What has to be changed; nothing was written.
    """
    check_repo_id(repo_id)
    for name in ('license', 'dataset_id'):
        value = publication.get(name)
        if value is not None and not re.fullmatch(r'\w[\w.+-]*(/[\w.+-]+)?', str(value)):
            raise UserError(f'{name} takes a name as the Hub has them, got {value!r}')
    classifier = read_run(Path(path), publication.get('model'), publication.get('use_ema'))
    assert classifier.training is not None
    args = classifier.training.args
    dataset = str(read_settings(args).get('dataset')) if args else ''
    hub_dataset = dataset.removeprefix('hfds/') if dataset.startswith('hfds/') else None
    given = {'repo_id': repo_id, 'license': publication.get('license')}
    given['dataset_id'] = publication.get('dataset_id') or hub_dataset
    about = {**classifier.about, **{key: value for key, value in given.items() if value}}
    classifier = dataclasses.replace(classifier, about=about)
    folder = Path(output)
    make.make(classifier, folder, _report(publication.get('report'), classifier), args)
    if classifier.label_names is None:
        _logger.warning('no label names: the data set has none, or other classes than the network, or is not at hand')
    _note_paths(folder)
    return folder


def is_ready(folder: Path) -> bool:
    """Tell whether a folder was made for the Hub."""
    return (folder / CONFIG).is_file()


def check_ready(folder: Path, repo_id: str, **publication: Unpack[Publication]) -> list[str]:
    """Check a folder that was made before, which is pushed as it stands, and list its files.

    Raises:
        UserError: Something in it is not as it was made, it is for another repository, or something else was given.
    """
    given = [name for name, value in publication.items() if value is not None]
    if given:
        raise UserError(f'{folder} is ready for the Hub and is pushed as it stands; leave {", ".join(given)} out')
    classifier = Classifier.from_folder(folder)
    if (folder / ARGS).is_file():
        read_settings(folder / ARGS)
    made_for = classifier.about.get('repo_id')
    if made_for != repo_id:
        raise UserError(f'{folder} was made for {made_for}, not for {repo_id}')
    if not (folder / CARD).is_file():
        raise UserError(f'{folder} has no {CARD}; timm-molly card {folder} writes it')
    if classifier.report is not None:
        make.check_report(classifier, classifier.report)
    make.check(classifier, folder)
    return make.files(folder)


def _report(report: Report | str | Path | None, classifier: Classifier) -> Report | None:
    """Read a report, and check that it is of these weights."""
    if report is None:
        return None
    return read_report(report, str(classifier.about['sha256']))


def _checked_token(token: str | None) -> str:
    token = token or get_token()
    if not token:
        raise UserError('no token: log in with `hf auth login`, set HF_TOKEN, or give --token; --dry-run needs none')
    if not re.fullmatch(r'[!-~]+', token):
        raise UserError('the token has characters that no token has')
    return token


def check_repo_id(repo_id: str) -> None:
    """Raise UserError where a name is not owner/name as the Hub has them."""
    try:
        validate_repo_id(repo_id)
        good = repo_id.count('/') == 1 and repo_id == repo_id.strip()
    except HFValidationError:
        good = False
    if not good:
        raise UserError(f'repo_id must be owner/name, of letters, digits, -, _ and ., got {repo_id!r}')


def upload(
    folder: Path,
    repo_id: str,
    token: str | None,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    overwrite_card: bool = False,
) -> str:
    """Bring the files of a folder to the Hub in one commit.

    The commit names the one that it follows, so that it comes to be whole or not at all, and not on top of a state that
    was not looked at. An attempt that the network broke is made again from the start; one that had come through after
    all then finds nothing left to do.

    Args:
        folder: As `make` writes it.
        repo_id: Owner and name; the repository is created if there is none.
        token: Of a user who may write there.
        private: The repository must be private.
        revision: Branch, created from main if there is none, but not for a pull request.
        create_pr: Open a pull request in place of a commit to the branch.
        overwrite_card: Also where a card was edited by hand since it was written.

    Returns:
        Address of the commit or pull request, and what was left as it is.

    Raises:
        UserError: The Hub refuses.
        HubError: It could not be reached, or kept failing.
    """
    api = HfApi(token=token, library_name='timm-molly', library_version=__version__)

    def attempt() -> str:
        info = _open(api, repo_id, private, revision, create_pr)
        remote = {file.rfilename: file for file in info.siblings or ()}
        names, kept = make.files(folder), ''
        ours = (CONFIG, WEIGHTS, ARGS, REPORT, EVALUATION)  # which an earlier push may have left
        pictures = make.PICTURES
        if CARD in remote and not overwrite_card and not is_generated(_remote_card(api, repo_id, info, remote[CARD])):
            names.remove(CARD)
            kept = (
                f'\n{CARD} was left as it is, because it was edited by hand; figures in it may be of earlier weights. '
                f'--overwrite-card replaces it.'
            )
            pictures = ()  # that it may show
        stale = [name for name in (*ours, *pictures) if name in remote and name not in names]
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, folder / name) for name in names]
            + [CommitOperationDelete(name) for name in stale],
            commit_message=f'Push {folder.name} with timm-molly {__version__}',
            revision=revision,
            create_pr=create_pr,
            parent_commit=info.sha,
        )
        if create_pr:
            return f'opened {commit.pr_url}{kept}'
        if commit.oid == info.sha:
            return f'{repo_id} is up to date{kept}'
        return f'pushed {commit.commit_url}{kept}'

    advice = 'push again later, which finishes the job'
    if create_pr:  # a second one would be a nuisance
        advice = 'see whether the pull request was opened before you push again'
    return persist(attempt, f'pushed to {repo_id}', advice, once=create_pr)


def _open(api: HfApi, repo_id: str, private: bool, revision: str | None, create_pr: bool) -> Any:
    """Return what the Hub says of the branch, after creating it or the repository where there is none."""
    try:
        info = api.model_info(repo_id, files_metadata=True)
    except RepositoryNotFoundError:
        if create_pr:
            raise UserError(f'there is no {repo_id} (for this token) to open a pull request for') from None
        api.create_repo(repo_id, private=True if private else None, exist_ok=True)
        info = api.model_info(repo_id, files_metadata=True)
    if private and not info.private:
        raise UserError(f'{repo_id} is public: make it private on the Hub first, or leave --private out')
    if revision is None:
        return info
    try:
        return api.model_info(repo_id, revision=revision, files_metadata=True)
    except RevisionNotFoundError:
        if create_pr:
            raise UserError(f'{repo_id} has no branch {revision} to open a pull request for') from None
        api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.model_info(repo_id, revision=revision, files_metadata=True)


def _remote_card(api: HfApi, repo_id: str, info: Any, file: Any) -> str:
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(api.hf_hub_download(repo_id, CARD, revision=info.sha, cache_dir=temporary))
        if not is_whole(path, content_name(file)):
            raise HubError(f'{CARD} of {repo_id} was damaged on its way')
        return make.read_card(path)


def _note_paths(folder: Path) -> None:
    """Tell the user which files, when they are public, name folders of this machine."""
    found = []
    if (folder / ARGS).is_file():
        keys = [key for key, value in read_settings(folder / ARGS).items() if _has_path(value)]
        found += [f'{ARGS} ({", ".join(keys)})'] if keys else []
    if (folder / REPORT).is_file() and _has_path(Report.load(folder / REPORT).command):
        found.append(f'{REPORT} (command)')
    if found:
        _logger.warning('note: folders of this machine are named in %s', ' and '.join(found))


def _has_path(value: Any) -> bool:
    """Tell whether there is an absolute path in a text, or in one of a list or mapping."""
    if isinstance(value, (list, dict)):
        return any(map(_has_path, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and bool(re.search(r'(^|[\s=:\'"])(/|~|[A-Za-z]:[\\/])', value))
