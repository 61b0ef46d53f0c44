"""Compare finished runs and studies: means with intervals, paired tests against a base, and a conclusion for each.

Runs are grouped by everything in their recipes but the seeds.
"""

import argparse
from pathlib import Path

from cifar_jax.commands import studies


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="FOLDER", help="workdirs, studies, or folders of workdirs")
    parser.add_argument("--base", help="what the others are compared with: a run's folder, or fields, 'dropout=0.1'")
    studies.add_report_arguments(parser)


def run(options: argparse.Namespace) -> int:
    studies.check_plots(options)
    studies.report([Path(path) for path in options.paths], options, options.base)
    return 0
