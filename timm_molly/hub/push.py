"""`timm-molly push`: make the folder, and bring it to the Hub in one commit."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from timm_molly import __version__
from timm_molly.hub import make
from timm_molly.hub.card import is_generated
from timm_molly.hub.folder import CARD, CONFIG, EVALUATION, REPORT
from timm_molly.hub.network import content_name, is_whole, persist
from timm_molly.hub.run import read_hub_folder, read_run
from timm_molly.robustness import report
from timm_molly.training import ARGS, WEIGHTS, read_settings


def push(args: argparse.Namespace) -> None:
    """Run `timm-molly push` on its parsed flags.

    Raises:
        ValueError: What the user has to change; nothing was pushed.
        ConnectionError: The Hub could not be reached, or kept failing.
    """
    check_repo_id(args.repo_id)
    for flag, value in (('--license', args.license), ('--dataset-id', args.dataset_id)):
        if value is not None and not re.fullmatch(r'\w[\w.+-]*(/[\w.+-]+)?', value):
            raise ValueError(f'{flag} takes a name as the Hub has them, got {value!r}')
    path = args.run
    ready = (path / CONFIG).is_file()
    if args.output is not None and not args.dry_run:
        raise ValueError('-o is for --dry-run, which writes there what would be pushed')
    if args.dry_run and (args.private or args.revision or args.create_pr or args.token):
        raise ValueError('--dry-run stops before the network; leave --private, --revision, --create-pr and --token out')
    token = None if args.dry_run else args.token or get_token()
    if not args.dry_run and not token:
        raise ValueError('no token: log in with `hf auth login`, set HF_TOKEN, or give --token')
    if token and not re.fullmatch(r'[!-~]+', token):
        raise ValueError('the token has characters that no token has')
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
            load = f"\nload it: timm.create_model('hf-hub:{args.repo_id}{at}', pretrained=True)"
            print(url if args.create_pr else url + load)


def check_repo_id(repo_id: str) -> None:
    """Raise ValueError where a name is not owner/name as the Hub has them."""
    try:
        validate_repo_id(repo_id)
        good = repo_id.count('/') == 1 and repo_id == repo_id.strip()
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
        revision: Branch, created from main if there is none, but not for a pull request.
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
            raise ValueError(f'there is no {repo_id} (for this token) to open a pull request for') from None
        api.create_repo(repo_id, private=True if private else None, exist_ok=True)
        info = api.model_info(repo_id, files_metadata=True)
    if private and not info.private:
        raise ValueError(f'{repo_id} is public: make it private on the Hub first, or leave --private out')
    if revision is None:
        return info
    try:
        return api.model_info(repo_id, revision=revision, files_metadata=True)
    except RevisionNotFoundError:
        if create_pr:
            raise ValueError(f'{repo_id} has no branch {revision} to open a pull request for') from None
        api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.model_info(repo_id, revision=revision, files_metadata=True)


def _remote_card(api: HfApi, repo_id: str, info: Any, file: Any) -> str:
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(api.hf_hub_download(repo_id, CARD, revision=info.sha, cache_dir=temporary))
        if not is_whole(path, content_name(file)):
            raise ConnectionError(f'{CARD} of {repo_id} was damaged on its way')
        return make.read_card(path)


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
    run, measured = read_hub_folder(folder)
    made_for = run.about.get('repo_id')
    if made_for != args.repo_id:
        raise ValueError(f'{folder} was made for {made_for}, not for {args.repo_id}')
    if not (folder / CARD).is_file():
        raise ValueError(f'{folder} has no {CARD}; timm-molly card {folder} writes it')
    if measured is not None:
        make.check_report(run, measured, folder / REPORT)
    make.check(run, folder)
    return folder


def _warn_of_paths(folder: Path) -> None:
    """Tell the user which files, when they are public, name folders of this machine."""
    found = []
    if (folder / ARGS).is_file():
        keys = [key for key, value in read_settings(folder / ARGS).items() if _has_path(value)]
        found += [f'{ARGS} ({", ".join(keys)})'] if keys else []
    if (folder / REPORT).is_file() and _has_path(report.read(folder / REPORT).get('command')):
        found.append(f'{REPORT} (command)')
    if found:
        print(f'note: folders of this machine are named in {" and ".join(found)}', file=sys.stderr)


def _has_path(value: Any) -> bool:
    """Tell whether there is an absolute path in a text, or in one of a list or mapping."""
    if isinstance(value, (list, dict)):
        return any(map(_has_path, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and bool(re.search(r'(^|[\s=:\'"])(/|~|[A-Za-z]:[\\/])', value))
