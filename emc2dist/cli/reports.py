"""`report`: pictures of runs."""

import argparse

from emc2dist.cli.words import Commands, add_json, add_s3, print_result
from emc2dist.config import given_keys, parse_s3
from emc2dist.errors import SpecError


def add_to(commands: Commands) -> None:
    """Declare the command."""
    text = "pictures of a run, or of several side by side: one HTML file, and PNGs beside it"
    sub = commands.add_parser("report", help=text, description=text)
    sub.add_argument("runs", metavar="RUN", nargs="+", help="a run folder, as in runs/quickstart")
    sub.add_argument("--out", metavar="FOLDER", help="where to write, if not to `report` in the first run's folder")
    add_s3(sub)
    add_json(sub)
    sub.set_defaults(command=_report)


def _report(arguments: argparse.Namespace) -> None:
    # Two lists in a row, of runs and of KEY=VALUE, are one to argparse; what is no KEY=VALUE is a run.
    words = [*arguments.runs, *arguments.overrides]
    overrides = [word for word in words if word.startswith(("s3.", "data.")) and "=" in word]
    s3 = parse_s3(overrides, others=("data",))
    for key in given_keys(overrides):
        if key.startswith("data.") and key != "data.path":
            raise SpecError(f"{key}: is not read here; what can be set is data.path and s3")
    from emc2dist.report.page import report

    data = [word for word in overrides if word.startswith("data.")]
    result = report([word for word in words if word not in overrides], data, out=arguments.out, s3=s3)
    if not arguments.json:
        result["pictures"] = f"{len(result['pictures'])}, as PNG beside it"
    print_result(result, as_json=arguments.json)
