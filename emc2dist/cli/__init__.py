"""`emc2dist`: thin commands over the library.

    runs.py         train, validate, evaluate, export
    ending.py       what train leaves a person with
    sweeps.py       sweep: many runs of one spec with other values of some keys
    checkpoints.py  checkpoint: what a run could resume from
    certificates.py certify: what a sampler buys, before a cluster is paid for
    watching.py     watch, profile: a live run's rows, and where a step goes
    reports.py      report: pictures of runs
    vectors.py      embed, neighbours: vectors out, and what is nearest among them
    texts.py        negatives: what the chains of a run over pairs hold
    drafts.py       new: a spec to begin with
    data.py         ingest
    asking.py       ask: a person, which two of three images are alike
    jobs.py         submit, status, logs, stop, list: a run as a job on a cluster
    clusters.py     cluster: a Ray of several nodes on this machine
    imports.py      what is said where a package cannot be imported

Exit status: 0 done, 2 a spec, a key=value, data or storage that cannot be used, 1 any other refusal, 130 interrupted,
143 a run that was asked to stop and left a checkpoint; `submit --follow` and `logs -f` exit with the job's own. Where
the operating system refuses what nobody has foreseen, its file is named (2); who reads stdout may leave early (1).
Progress and messages go to stderr, which may take nothing of them; results to stdout, which must take all. Each command
imports what it needs when it runs, so help and `validate` wait for neither torch nor Ray; and what cannot be imported
is said in one message.
"""

import argparse
import atexit
import errno
import gc
import io
import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn, TextIO

from typing_extensions import override

from emc2dist import __version__
from emc2dist.errors import DataError, Emc2Error, RayEnded, RunStopped, SpecError, StorageError, StorageUnreachable
from emc2dist.machine import out_of_memory, unusable_gpu
from emc2dist.terminal import Around, Patient, say

# Python looks through all of torch and Ray for garbage once more before it ends: a second or two for nothing.
atexit.register(gc.freeze)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    os.environ.pop("MPLBACKEND", None)  # a notebook's, which another environment may not know; pictures are files here
    if sys.stderr is None:  # print and tqdm would write messages among the results
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    if sys.stdout is None:
        say("emc2dist: stdout is closed, and results go there; send them to a file, or to /dev/null")
        return 1
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to end
            stream.reconfigure(errors="backslashreplace")
    out, err = sys.stdout, sys.stderr
    try:
        with redirect_stdout(_Results(out)), redirect_stderr(Patient(err)):
            return _told(argv)
    finally:
        for stream in (out, err):
            _let_go(stream)


class _Refused(OSError):
    """What stdout says that does not take the results."""


class _Results(Around):
    """stdout, whose errors are told from those of files."""

    def write(self, text: str) -> int:
        with _recognised():
            return self._wrapped.write(text)

    def flush(self) -> None:
        with _recognised():
            self._wrapped.flush()


@contextmanager
def _recognised() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _Refused(error.errno, error.strerror) from error


def _told(argv: Sequence[str] | None) -> int:
    """Run a command, and say what its stdout did not take; returns the exit status."""
    status = 1
    try:
        try:
            status = _status(argv)
        finally:  # argparse ends the process after --help
            sys.stdout.flush()
    except _Refused as refused:
        if refused.errno != errno.EPIPE:  # as in `emc2dist ... | head`, whose reader has seen enough
            say(f"emc2dist: stdout: {refused.strerror}; the result could not be written there")
        return status or 1
    return status


def _status(argv: Sequence[str] | None) -> int:
    try:
        _refuse_lost_folder()
        _refuse_no_home()
        if argv is None and Path(sys.argv[0]).stem.startswith("ipykernel"):  # whose words are the kernel's own
            raise SpecError(
                "in a notebook give main the words: main(['train', 'SPEC', 'KEY=VALUE']), or run !emc2dist train SPEC"
            )
        _refuse_returns(sys.argv[1:] if argv is None else argv)
        _refuse_dashes(sys.argv[1:] if argv is None else argv)
        arguments = parse(argv)
        return arguments.command(arguments) or 0
    except _Refused:
        raise
    except RunStopped as stopped:
        say(f"emc2dist: {stopped}; the same command resumes")
        return 143
    except RayEnded:  # told when it was seen
        return 1
    except Emc2Error as error:
        say(f"emc2dist: {error}")
        unusable = isinstance(error, SpecError | DataError | StorageError)
        return 2 if unusable and not isinstance(error, StorageUnreachable) else 1
    except KeyboardInterrupt as interrupt:
        say(f"emc2dist: {str(interrupt) or 'interrupted; the same command resumes from what is finished'}")
        return 130
    except MemoryError:
        say("emc2dist: out of memory; lower batch_size, views.size or data.loaders, or use a machine with more")
        return 1
    except (ImportError, AttributeError) as error:
        from emc2dist.cli import imports

        told = imports.explained(error)
        if told is None:
            raise
        say(f"emc2dist: {told}")
        return 1
    except RuntimeError as error:
        told = _of_torch(" ".join(str(error).split())[:300])
        if told is None:
            raise
        say(f"emc2dist: {told}")
        return 1
    except OSError as error:  # that nobody has explained
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        reason = " ".join(str(error.strerror or error).split())
        say(f"emc2dist: {' -> '.join(names) or type(error).__name__}: {reason}")
        return 2 if names else 1


def _of_torch(said: str) -> str | None:
    """What to do about an error of torch in this process, of which workers tell more; None where it is another."""
    if unusable_gpu(said):
        return f"this machine has a GPU, and a torch that cannot use it ({said}); CUDA_VISIBLE_DEVICES= does without it"
    if out_of_memory(said):
        return (
            f"out of memory ({said}); use a machine with more, or, where it is a GPU's, another GPU, which "
            "CUDA_VISIBLE_DEVICES names; where that is empty none is used"
        )
    return None


def _refuse_lost_folder() -> None:
    """Raise StorageError where the working folder is gone: torch's libraries would end the process."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise StorageError(
            "the working folder is gone, deleted or made anew since it was entered; cd into one that is there"
        ) from None


def _refuse_no_home() -> None:
    """Raise StorageError where `~` is no home: Ray ends with a traceback, others make a folder of that name."""
    home = os.path.expanduser("~")
    if os.path.isabs(home):
        return
    given = os.environ.get("HOME")
    why = f"is not set, and this user ({os.getuid()}) has no entry in /etc/passwd" if given is None else f"is {given!r}"
    raise StorageError(f"HOME: {why}; set it to a folder by its whole path, best to one that may be written to")


def _refuse_returns(words: Sequence[str]) -> None:
    """Raise SpecError where a word, or a variable that is read here, ends in a carriage return or a newline."""
    ours = ("EMC2DIST_", "RAY_", "AWS_", "CUDA_", "TMPDIR", "MLFLOW_", "WANDB_")
    last = {name: value[-1:] for name, value in os.environ.items() if name.startswith(ours)}
    last |= {repr(word): word[-1:] for word in words if word.endswith("\r")}
    for what, end in last.items():  # no value: it may be a secret
        if end == "\r":
            raise SpecError(f"{what}: ends in a carriage return: the script has Windows line ends; run dos2unix on it")
        if end == "\n":
            raise SpecError(f"{what}: ends in a newline, as of `echo KEY | base64`; set it without (echo -n KEY)")


def _refuse_dashes(words: Sequence[str]) -> None:
    """Raise SpecError where a word begins with a dash, as an editor makes one of the hyphens of an option."""
    from emc2dist.config import is_key
    from emc2dist.config.characters import dash_for_hyphens, named

    for word in words:
        if (dash := dash_for_hyphens(word)) and not os.path.lexists(word):
            meant = word.lstrip(f"-{dash}")
            key, is_one, _ = meant.partition("=")
            option = meant if is_one and is_key(key) else f"--{meant}"
            raise SpecError(f"{word!r}: begins with a dash, {named(dash)}; write {option}")


def _let_go(stream: TextIO) -> None:
    """Have what a stream would not take go nowhere: Python tries once more when it ends, and would exit with 120."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; a command line is for `parse`."""
    from emc2dist.cli import (
        asking,
        certificates,
        checkpoints,
        clusters,
        data,
        drafts,
        jobs,
        reports,
        runs,
        sweeps,
        texts,
        vectors,
        watching,
    )

    parser = _Parser(prog="emc2dist", description="Global contrastive learning on Ray.")
    text = "print the versions of emc2dist, torch, Ray and Python, and end"
    parser.add_argument("--version", action=_Version, nargs=0, help=text)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    running = (runs, sweeps, checkpoints, certificates, watching, reports)
    for module in (*running, vectors, texts, drafts, data, asking, jobs, clusters):
        module.add_to(commands)
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of a command line; ends the process where they are not understood."""
    arguments, rest = parser().parse_known_args(argv)
    # argparse gives up on KEY=VALUE after an option, as in `train SPEC --json lr=1e-3`.
    unknown = [word for word in rest if word.startswith("-")]
    if unknown or (rest and "overrides" not in arguments):
        given = sys.argv[1:] if argv is None else argv
        hint = _hint(unknown, given, prefix="" if "spec" in arguments else "s3.") if "overrides" in arguments else ""
        arguments.parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    _refuse_swapped(arguments)
    _refuse_further(arguments)
    return arguments


def _refuse_swapped(arguments: argparse.Namespace) -> None:
    """Raise SpecError where KEY=VALUE stands in the place of what comes before it, as in `train lr=1e-3 SPEC`."""
    positional = arguments.parser._get_positional_actions()
    for action in positional if "overrides" in arguments else ():
        word = getattr(arguments, action.dest)
        if action.nargs is None and re.match(r"[\w.]+=", word) and not os.path.lexists(word):
            name = action.metavar
            raise SpecError(
                f"{word!r}: {name} comes before {positional[-1].metavar}; if this is meant as {name}, write ./{word}"
            )


def _refuse_further(arguments: argparse.Namespace) -> None:
    """Raise SpecError where a word follows that is no KEY=VALUE: of `*.tar` a shell makes several."""
    from emc2dist.config.characters import misleading

    positional = arguments.parser._get_positional_actions()
    taken = [f"one {action.metavar}" for action in positional if action.nargs is None]
    further = next((word for word in getattr(arguments, "overrides", ()) if "=" not in word), None)
    if further is None or not taken:  # a report takes any number of runs
        return
    words = arguments.overrides
    is_torn = any(word.count(one) != word.count(other) for word in words for one, other in ("[]", "{}"))
    if is_torn or any(word.startswith(("=", ",")) or word.endswith(("=", ",")) for word in words):
        raise SpecError(
            f"{' '.join(words)}: a key and its value are one word: without spaces, or in quotes, as in "
            "'views.crop=[0.3, 0.9]'"
        )
    several = "run it once for each"
    if "source" in arguments:
        *sources, _ = (word for word in (arguments.source, arguments.dest, *arguments.overrides) if "=" not in word)
        levels = zip(*(source.split("/")[:-1] for source in sources), strict=False)
        common = [names[0] for names in takewhile(lambda names: len(set(names)) == 1, levels)] or ["."]
        several = f"give the folder that holds them ({'/'.join(common)}/)"
    raise SpecError(
        f"{further!r}: {' and '.join(taken)} {'is' if len(taken) == 1 else 'are'} taken, and what follows is written "
        f"{positional[-1].metavar}; for several files {several}{misleading(further)}"
    )


class _Parser(argparse.ArgumentParser):
    """A parser that what it parsed names: where arguments are left over, their own command is to blame."""

    def error(self, message: str) -> NoReturn:
        from emc2dist.config.characters import misleading

        super().error(message + misleading(message))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        found, rest = super().parse_known_args(args, namespace)
        found.parser = getattr(found, "parser", self)
        return found, rest


class _Version(argparse.Action):
    """`--version`: what every report of a fault should tell; neither torch nor Ray is imported for it."""

    @override
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        packages = ", ".join(f"{name} {_installed(name)}" for name in ("torch", "ray"))
        print(f"emc2dist {__version__} ({packages}, Python {platform.python_version()})")
        parser.exit()


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "is not installed"


def _hint(unknown: Sequence[str], argv: Sequence[str], prefix: str) -> str:
    """How keys of a spec are written, where an option is called as one of them that begins so; and Hydra's sweeps."""
    from emc2dist.config import is_key

    if {"-m", "--multirun"} & set(unknown):
        return "; several values of a key are for `emc2dist sweep`, see jobs/sweep.yaml"
    for word in unknown:
        name, equals, value = word.partition("=")
        key = name.lstrip("-").replace("-", "_")
        if not (key.startswith(prefix) and is_key(key)):
            continue
        after = argv[argv.index(word) + 1 :] if word in argv else []
        if not equals:
            value = after[0] if after and not after[0].startswith("-") else "VALUE"
        return f"; keys of a spec are no options: write {key}={value}"
    return ""
