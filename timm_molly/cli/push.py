"""`timm-molly push`: bring a trained model to the Hugging Face Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = 'bring a trained model to the Hugging Face Hub'
DESCRIPTION = (
    "Write a folder with a run's weights, config, card and figures, and push it to the Hugging Face "
    "Hub in one commit. Plain timm loads it from there: timm.create_model('hf-hub:OWNER/NAME', pretrained=True)."
)
RESUMABLE = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        'run',
        metavar='RUN',
        type=Path,
        help="folder of train.py's with args.yaml and model_best.pth.tar, a checkpoint, or a folder of --dry-run",
    )
    parser.add_argument('--repo-id', metavar='OWNER/NAME', required=True, help='created if it is not there yet')
    parser.add_argument('--model', '-m', metavar='NAME', help="timm's name, for a checkpoint that does not say it")
    parser.add_argument('--no-ema', action='store_true', help='not the EMA weights, though there are some')
    parser.add_argument('--report', metavar='FILE', type=Path, help='report.json of timm-molly validate, or its folder')
    parser.add_argument('--license', metavar='NAME', help='of the weights, such as apache-2.0 (default: not said)')
    parser.add_argument(
        '--dataset-id', metavar='ID', help="the training data's name on the Hub, for metadata (default: of hfds/ID)"
    )
    parser.add_argument('--private', action='store_true', help='refuse where it would be public')
    parser.add_argument('--revision', metavar='BRANCH', help='(default: main)')
    parser.add_argument('--create-pr', action='store_true', help='open a pull request')
    parser.add_argument('--token', help='(default: of `hf auth login`, or HF_TOKEN)')
    parser.add_argument('--overwrite-card', action='store_true', help='also where it was edited by hand on the Hub')
    parser.add_argument('--dry-run', action='store_true', help='write the folder and stop before the network')
    parser.add_argument('-o', '--output', metavar='DIR', type=Path, help='for --dry-run (default: output/push/NAME)')


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from timm_molly.errors import UserError
    from timm_molly.hub.push import Publication, check_ready, is_ready, prepare, push

    if args.output is not None and not args.dry_run:
        raise UserError('-o is for --dry-run, which writes there what would be pushed')
    if args.dry_run and (args.private or args.revision or args.create_pr or args.token):
        raise UserError('--dry-run stops before the network; leave --private, --revision, --create-pr and --token out')
    publication: Publication = {
        'report': args.report,
        'model': args.model,
        'use_ema': False if args.no_ema else None,
        'license': args.license,
        'dataset_id': args.dataset_id,
    }
    if not args.dry_run:
        where = {'private': args.private, 'revision': args.revision, 'create_pr': args.create_pr, 'token': args.token}
        print(push(args.run, args.repo_id, overwrite_card=args.overwrite_card, **where, **publication))
        if not args.create_pr:
            at = f'@{args.revision}' if args.revision else ''
            print(f"load it: timm.create_model('hf-hub:{args.repo_id}{at}', pretrained=True)")
    elif is_ready(args.run):
        if args.output is not None:
            raise UserError(f'{args.run} is ready for the Hub and is pushed as it stands; leave -o out')
        files = check_ready(args.run, args.repo_id, **publication)
        print(f'{args.run} is sound; would push {", ".join(files)} to {args.repo_id}')
    else:
        name = args.repo_id.rpartition('/')[2]
        folder = prepare(args.run, args.repo_id, args.output or Path('output/push') / name, **publication)
        print(f'wrote {folder}: look at it, and push it with timm-molly push {folder} --repo-id {args.repo_id}')
