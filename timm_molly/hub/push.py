"""`timm-molly push`: make the folder, and bring it to the Hub in one commit."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from timm_molly import __version__
from timm_molly.hub import make
from timm_molly.hub.card import is_generated
from timm_molly.hub.folder import ARGS, CARD, CONFIG, EVALUATION, FIGURES, REPORT, WEIGHTS
from timm_molly.hub.run import read_hub_folder, read_run, read_settings
from timm_molly.weights import is_network_error, one_line

WAITS = (1, 2, 4, 8)  # seconds between attempts
MAX_WAIT = 300


def push(args: argparse.Namespace) -> None:
    """Run `timm-molly push` on its parsed flags.

    Raises:
        ValueError: What the user has to change; nothing was pushed.
        ConnectionError: The Hub could not be reached, or kept failing.
    """
    check_repo_id(args.repo_id)
    path = args.run
    ready = (path / CONFIG).is_file()
    if args.output is not None and not args.dry_run:
        raise ValueError('-o is for --dry-run, which writes there what would be pushed')
    if args.dry_run and (args.private or args.revision or args.create_pr or args.token):
        raise ValueError('--dry-run stops before the network; leave --private, --revision, --create-pr and --token out')
    token = None if args.dry_run else args.token or get_token()
    if not args.dry_run and not token:
        raise ValueError('no token: log in with `hf auth login`, set HF_TOKEN, or give --token')
    with tempfile.TemporaryDirectory() as temporary:
        if ready:
            folder = _check_ready(args)
            if args.dry_run:
                print(f'{folder} is sound; would push {", ".join(make.files(folder))} to {args.repo_id}')
                return
        else:
            run = read_run(path, args.model, False if args.no_ema else None)
            dataset = str(read_settings(run.args).get('dataset')) if run.args else ''
            hub_dataset = dataset.removeprefix('hfds/') if dataset.startswith('hfds/') else None
            given = {'repo_id': args.repo_id, 'license': args.license, 'dataset_id': args.dataset_id or hub_dataset}
            name = args.repo_id.rpartition('/')[2]
            folder = (args.output or Path('output/push') / name) if args.dry_run else Path(temporary, name)
            make.make(run, {key: value for key, value in given.items() if value}, args.report, folder)
            if run.label_names is None:
                print('no label names: the data set has none, or is not at hand', file=sys.stderr)
            if args.dry_run:
                print(f'wrote {folder}: look at it, and push it with timm-molly push {folder} --repo-id {args.repo_id}')
        _warn_of_paths(folder)
        if not args.dry_run:
            url = upload(folder, args.repo_id, token, args.private, args.revision, args.create_pr, args.overwrite_card)
            at = f'@{args.revision}' if args.revision else ''
            print(f"{url}\nload it: timm.create_model('hf-hub:{args.repo_id}{at}', pretrained=True)")


def check_repo_id(repo_id: str) -> None:
    """Raise ValueError where a name is not owner/name as the Hub has them."""
    try:
        validate_repo_id(repo_id)
        good = repo_id.count('/') == 1
    except HFValidationError:
        good = False
    if not good:
        raise ValueError(f'--repo-id must be owner/name, of letters, digits, -, _ and ., got {repo_id!r}')


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
        revision: Branch, created from main if there is none.
        create_pr: Open a pull request in place of a commit to the branch.
        overwrite_card: Also where a card was edited by hand since it was written.

    Returns:
        Address of the commit or pull request, and what was left as it is.

    Raises:
        ValueError: The Hub refuses.
        ConnectionError: It could not be reached, or kept failing.
    """
    api = HfApi(token=token, library_name='timm-molly', library_version=__version__)

    def attempt() -> str:
        info = _open(api, repo_id, private, revision, create_pr)
        remote = {file.rfilename for file in info.siblings or ()}
        names = make.files(folder)
        kept = ''
        if CARD in remote and not overwrite_card and not is_generated(_remote_card(api, repo_id, str(info.sha))):
            names.remove(CARD)
            kept = (
                f'\n{CARD} was left as it is, because it was edited by hand; figures in it may be of earlier weights. '
                f'--overwrite-card replaces it.'
            )
        stale = [name for name in sorted(remote - {*make.files(folder)}) if _is_ours(name)]
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

    return _persist(attempt, repo_id, create_pr)


def _open(api: HfApi, repo_id: str, private: bool, revision: str | None, create_pr: bool) -> Any:
    """Return what the Hub says of the branch, after creating it or the repository where there is none."""
    try:
        info = api.model_info(repo_id)
    except RepositoryNotFoundError:
        if create_pr:
            raise ValueError(f'there is no {repo_id} (for this token) to open a pull request for') from None
        api.create_repo(repo_id, private=True if private else None, exist_ok=True)
        info = api.model_info(repo_id)
    if private and not info.private:
        raise ValueError(f'{repo_id} is public: make it private on the Hub first, or leave --private out')
    if revision is None:
        return info
    try:
        return api.model_info(repo_id, revision=revision)
    except RevisionNotFoundError:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.model_info(repo_id, revision=revision)


def _remote_card(api: HfApi, repo_id: str, sha: str) -> str:
    with tempfile.TemporaryDirectory() as temporary:
        try:
            return make.read_card(Path(api.hf_hub_download(repo_id, CARD, revision=sha, cache_dir=temporary)))
        except EntryNotFoundError:
            return ''


def _is_ours(name: str) -> bool:
    """Tell whether a file of the repository is one that an earlier push may have written."""
    return name in (CONFIG, WEIGHTS, ARGS, REPORT, EVALUATION) or (
        name.startswith(f'{FIGURES}/') and name.endswith('.png')
    )


def _persist(attempt: Callable[[], str], repo_id: str, create_pr: bool) -> str:
    """Make attempts until one succeeds, fails for good, or too many have failed."""
    for wait in (*WAITS, None):
        try:
            return attempt()
        except OfflineModeIsEnabled:
            raise ConnectionError('HF_HUB_OFFLINE is set, so nothing can be pushed') from None
        except Exception as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            # Without an answer nobody knows whether a pull request was opened; a second one would be a nuisance.
            unclear = create_pr and status not in (409, 412, 429, 503)
            again = (
                status in (408, 409, 412, 429) or (status or 0) >= 500 or (status is None and is_network_error(error))
            )
            if not again and status is None:
                raise
            if not again or unclear or wait is None:
                raise _explained(error, status, repo_id, create_pr and again) from None
            seconds = _retry_after(error) or wait
            print(f'{one_line(error)}\ntrying again in {seconds} s', file=sys.stderr)
            time.sleep(seconds)
    raise AssertionError('unreachable')


def _retry_after(error: Exception) -> int | None:
    response = getattr(error, 'response', None)
    after = response.headers.get('Retry-After', '') if response is not None else ''
    return min(int(after), MAX_WAIT) if after.isdigit() else None


def _explained(error: Exception, status: int | None, repo_id: str, unclear: bool) -> Exception:
    what = {
        400: 'the Hub refuses what was sent',
        401: 'the Hub does not know this token',
        403: f'this token may not write to {repo_id}',
        404: f'there is no such repository or branch of {repo_id}',
        409: f'{repo_id} keeps changing',
        412: f'{repo_id} keeps changing',
        429: 'the Hub has had too many requests',
        None: 'the Hub cannot be reached',
    }.get(status, f'the Hub answers {status}')
    after = '; see whether the pull request was opened before you push again' if unclear else ''
    kind = ValueError if status in (400, 401, 403, 404) else ConnectionError
    return kind(f'{what}, so nothing was changed{after} ({one_line(error)})' if not unclear else f'{what}{after}')


def _check_ready(args: argparse.Namespace) -> Path:
    """Check a folder that was made before, which is pushed as it stands."""
    folder: Path = args.run
    given = [
        flag
        for flag, value in (
            ('--model', args.model),
            ('--no-ema', args.no_ema),
            ('--report', args.report),
            ('--license', args.license),
            ('--dataset-id', args.dataset_id),
            ('-o', args.output),
        )
        if value
    ]
    if given:
        raise ValueError(f'{folder} is ready for the Hub and is pushed as it stands; leave {", ".join(given)} out')
    run, _ = read_hub_folder(folder)
    made_for = run.about.get('repo_id')
    if made_for != args.repo_id:
        raise ValueError(f'{folder} was made for {made_for}, not for {args.repo_id}')
    if not (folder / CARD).is_file():
        raise ValueError(f'{folder} has no {CARD}; timm-molly card {folder} writes it')
    return folder


def _warn_of_paths(folder: Path) -> None:
    """Tell the user which folders of this machine become public."""
    if (folder / ARGS).is_file():
        settings = read_settings(folder / ARGS)
        paths = [key for key, value in settings.items() if isinstance(value, str) and Path(value).is_absolute()]
        if paths:
            print(f'note: {ARGS} names folders of this machine, in {", ".join(paths)}', file=sys.stderr)
