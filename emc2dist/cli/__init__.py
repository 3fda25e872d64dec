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
143 a run that was asked to stop and left a checkpoint; `submit --follow` and `logs -f` exit with the job's own. Where
the operating system refuses what nobody has foreseen, its file is named (2); who reads stdout may leave early (1).
Progress and messages go to stderr, results to stdout. Each command imports what it needs when it runs, so help and
`validate` wait for neither torch nor Ray.
"""

import argparse
import io
import os
import select
import sys
from collections.abc import Sequence
from contextlib import suppress

from emc2dist.errors import DataError, Emc2Error, RunStopped, SpecError, StorageError, StorageUnreachable


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    if sys.stdout is None:
        _tell("stdout is closed, and results go there; send them to a file, or to /dev/null")
        return 1
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to end
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _status(argv)
    except SystemExit as told:  # by argparse
        raise told if _flushed() else SystemExit(1) from None
    return status if _flushed() else status or 1


def _status(argv: Sequence[str] | None) -> int:
    try:
        arguments = parse(argv)
        return arguments.command(arguments) or 0
    except RunStopped as stopped:
        _tell(f"{stopped}; the same command resumes")
        return 143
    except Emc2Error as error:
        _tell(str(error))
        unusable = isinstance(error, SpecError | DataError | StorageError)
        return 2 if unusable and not isinstance(error, StorageUnreachable) else 1
    except KeyboardInterrupt:
        _tell("interrupted; the same command resumes from what is finished")
        return 130
    except MemoryError:
        _tell("out of memory; lower batch_size, views.size or data.loaders, or use a machine with more")
        return 1
    except OSError as error:  # that nobody has explained
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        if names or not (isinstance(error, BrokenPipeError) and _unread()):
            _tell(f"{' -> '.join(names) or type(error).__name__}: {' '.join(str(error.strerror or error).split())}")
        return 2 if names else 1


def _tell(text: str) -> None:
    with suppress(OSError):  # there is nowhere else to say that stderr takes nothing
        print(f"emc2dist: {text}", file=sys.stderr, flush=True)


def _unread() -> bool:
    """Whether stdout is a pipe whose reader is gone."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _flushed() -> bool:
    """Whether stdout took all that was printed. Where it did not, that is said, and what is left goes nowhere."""
    try:
        sys.stdout.flush()
        return True
    except BrokenPipeError:  # as in `emc2dist ... | head`, whose reader has seen enough
        pass
    except OSError as error:
        _tell(f"stdout: {error.strerror}; the result could not be written there")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return False


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of a command line; ends the process where they are not understood."""
    from emc2dist.cli import checkpoints, clusters, data, jobs, reports, runs, sweeps, watching

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
