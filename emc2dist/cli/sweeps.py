"""`sweep`: many runs of one spec with other values of some keys."""

import argparse

from emc2dist.cli.words import Commands, add_json, add_spec, print_result
from emc2dist.config import load_sweep


def add_to(commands: Commands) -> None:
    """Declare the command."""
    text = "run a sweep, or go on with it: a base job, keys that vary, a budget; see jobs/sweep.yaml"
    sub = commands.add_parser("sweep", help=text, description=text)
    add_spec(sub)
    add_json(sub)
    sub.set_defaults(command=_sweep)


def _sweep(arguments: argparse.Namespace) -> None:
    spec = load_sweep(arguments.spec, arguments.overrides)
    from emc2dist.sweep.driver import sweep

    print_result(sweep(spec), as_json=arguments.json)
