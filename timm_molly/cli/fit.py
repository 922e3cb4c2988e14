"""`timm-molly fit`: find the label powers for your data."""

from __future__ import annotations

import argparse
import dataclasses

from timm_molly.cli import flags

HELP = 'find the label powers for your data'
DESCRIPTION = (
    'Find the powers of the label schedule whose confidence is nearest to what a net still recognises at each t, on '
    'images that it was not trained on. The net is best trained with --aa molly-k1000.'
)
RESUMABLE = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    flags.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from timm_molly.errors import UserError
    from timm_molly.robustness.fit import fit_report

    if args.data_dir is None and not args.dataset:
        raise UserError('no data: give --data-dir or --dataset, with images that the model was not trained on')
    measurement = dataclasses.replace(flags.measurement(args), mollification=True)
    measurement.check()  # before a model is loaded
    classifier = flags.classifier(args)
    output = args.output or flags.default_output(args, 'fit')
    report = measurement.run(classifier, output, args.command_line)
    fitted = fit_report(report, classifier, args.aa, args.data_dir)
    fitted.save(output)
    print(f'\n{report}\n\n{fitted}\n\nwrote {output}/fit.json, fit.png, report.json, .csv, .md and confidence.png')
