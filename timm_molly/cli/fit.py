"""`timm-molly fit`: say whether a network is as sure as it is right."""

from __future__ import annotations

import argparse
import dataclasses

from timm_molly.cli import flags

HELP = 'say whether a network is as sure as it is right, and which labels would make it so'
DESCRIPTION = (
    'For example: timm-molly fit RUN --data-dir DIR. Compare how sure a network is with how often it is right, at each '
    't of noise and blur, on images that it was not trained on, and say what labels would close the gap, or which '
    'training would tell.'
)
RESUMABLE = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    flags.add_arguments(parser)
    flags.add_machine_arguments(parser)


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
    if args.aa:
        classifier = dataclasses.replace(classifier, aa=args.aa)
    fitted = fit_report(report, classifier, measurement.temperature(classifier), args.data_dir)
    fitted.save(output)
    print(
        f'\n{report}\n\n{fitted}\n\nwrote {output}/fit.json, fit.png, report.json, .csv, .md, .html and confidence.png'
    )
