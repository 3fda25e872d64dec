"""`emc2dist`: thin commands over the library.

    runs.py         train, validate, evaluate, export
    sweeps.py       sweep: many runs of one spec with other values of some keys
    checkpoints.py  checkpoint: what a run could resume from
    watching.py     watch, profile: a live run's rows, and where a step goes
    reports.py      report: pictures of runs
    data.py         ingest
    jobs.py         submit, status, logs, stop, list: a run as a job on a cluster
    clusters.py     cluster: a Ray of several nodes on this machine

Exit status: 0 done, 2 a spec, a key=value, data or storage that cannot be used, 1 any other refusal, 130 interrupted,
143 a run that was asked to stop and left a checkpoint; `submit --follow` and `logs -f` exit with the job's own.
Progress and messages go to stderr, results to stdout. Each command imports what it needs when it runs, so help and
`validate` wait for neither torch nor Ray.
"""

import argparse
import sys
from collections.abc import Sequence

from emc2dist.cli import checkpoints, clusters, data, jobs, reports, runs, sweeps, watching
from emc2dist.errors import DataError, Emc2Error, RunStopped, SpecError, StorageError, StorageUnreachable


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    arguments = parse(argv)
    try:
        return arguments.command(arguments) or 0
    except RunStopped as stopped:
        print(f"emc2dist: {stopped}; the same command resumes", file=sys.stderr)
        return 143
    except Emc2Error as error:
        print(f"emc2dist: {error}", file=sys.stderr)
        unusable = isinstance(error, SpecError | DataError | StorageError)
        return 2 if unusable and not isinstance(error, StorageUnreachable) else 1
    except KeyboardInterrupt:
        print("emc2dist: interrupted; the same command resumes from what is finished", file=sys.stderr)
        return 130


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of a command line; ends the process where they are not understood."""
    parser = argparse.ArgumentParser(prog="emc2dist", description="Global contrastive learning on Ray.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (runs, sweeps, checkpoints, watching, reports, data, jobs, clusters):
        module.add_to(commands)
    arguments, rest = parser.parse_known_args(argv)
    # argparse gives up on KEY=VALUE after an option, as in `train SPEC --json lr=1e-3`.
    if any(word.startswith("-") for word in rest) or (rest and "overrides" not in arguments):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return arguments
