"""`checkpoint`: what a run could resume from."""

import argparse
from itertools import islice
from typing import TYPE_CHECKING

from emc2dist.cli.words import Commands, add_json, add_s3, print_result
from emc2dist.config import parse_s3
from emc2dist.terminal import say

if TYPE_CHECKING:
    from emc2dist.run.checkpoints import State


def add_to(commands: Commands) -> None:
    """Declare the command and what it does."""
    text = "the checkpoints of a run: ls lists them, verify reads them"
    actions = commands.add_parser("checkpoint", help=text, description=text).add_subparsers(required=True, metavar="DO")
    text = "the checkpoints, newest first, and whether they are whole by the names and sizes of their files"
    ls = actions.add_parser("ls", help=text, description=text)
    text = "read all files of the checkpoints, and compare them with their checksums; exit status 1 if any is damaged "
    text += "that the run keeps"
    verify = actions.add_parser("verify", help=text, description=text)
    verify.add_argument("--newest", action="store_true", help="of the newest checkpoint alone")
    for sub, command in ((ls, _ls), (verify, _verify)):
        sub.add_argument("run", metavar="RUN", help="a run folder, as in runs/quickstart")
        add_s3(sub)
        add_json(sub)
        sub.set_defaults(command=command)


def _ls(arguments: argparse.Namespace) -> None:
    _show(arguments, contents=False)


def _verify(arguments: argparse.Namespace) -> int:
    return int(_show(arguments, contents=True, limit=1 if arguments.newest else None) > 0)


def _show(arguments: argparse.Namespace, *, contents: bool, limit: int | None = None) -> int:
    """Print a line for each checkpoint as it becomes known, or all of them as JSON; returns how many cannot be used."""
    from emc2dist.run import checkpoints
    from emc2dist.run.folder import RunFolder

    run = RunFolder.open(arguments.run, parse_s3(arguments.overrides))
    states = []
    for state in islice(checkpoints.examine(run, contents=contents), limit):
        states.append(state)
        if not arguments.json:
            print(_line(state), flush=True)
    if not states:
        say(f"emc2dist: {run.without_checkpoints()}")
    if arguments.json:
        told = [state._asdict() | {"place": str(state.place)} for state in states]
        print_result({"run_dir": str(run.place), "checkpoints": told}, as_json=True)
    return sum(state.problem is not None and not state.leaves for state in states)


def _line(state: "State") -> str:
    problem = "gone, or being removed: newer ones are whole" if state.leaves else f"cannot be used: {state.problem}"
    verdict = "whole" if state.problem is None else problem
    created = state.created or "-"
    return f"{state.place.name}  step {state.step:<9}  {created:<25}  {state.nbytes / 2**20:9.1f} MiB  {verdict}"
