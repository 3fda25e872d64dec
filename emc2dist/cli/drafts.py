"""`new`: a spec to begin with, from five questions."""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

from emc2dist.cli.words import Commands
from emc2dist.config import load
from emc2dist.config.draft import GOALS, KINDS, Answers, draft
from emc2dist.errors import SpecError, StorageError
from emc2dist.terminal import say


class _Question(NamedTuple):
    """What is asked, unless an option has answered it."""

    option: str
    text: str
    default: dict[str, str]
    """By what the data are; under "" whatever they are."""
    help: str


_QUESTIONS = {
    "kind": _Question("--data", "What do you have: images, pairs (queries and documents) or texts?", {"": "images"},
                      ", ".join(KINDS)),
    "path": _Question("--path", "Where is the set, or where will `emc2dist ingest` write it?",
                      {"": "sets/mine", "images": "omniglot-small"}, "of the set, a path or s3://bucket/folder"),
    "size": _Question("--size", "How large: pixels of an image's side, or tokens of a document?",
                      {"": "128", "images": "28"}, "pixels of an image's side, or tokens of a document"),
    "gpus": _Question("--gpus", "How many GPUs, over all machines?", {"": "0"}, "over all machines; 0: CPUs alone"),
    "goal": _Question("--goal", f"What for: {', '.join(GOALS)}?", {"": GOALS[0], "images": GOALS[1]},
                      "features are compared as they are, a representation takes a classifier, classes are learnt"),
}  # fmt: skip


def add_to(commands: Commands) -> None:
    """Declare the command."""
    text = "ask five questions and write NAME.yaml, a spec with a comment on each choice; options answer beforehand"
    sub = commands.add_parser("new", help=text, description=text)
    sub.add_argument("name", metavar="NAME", help="the run's name; the spec is NAME.yaml in this folder")
    for key, question in _QUESTIONS.items():
        sub.add_argument(question.option, dest=key, metavar=key.upper(), help=question.help)
    sub.set_defaults(command=_new)


def _new(arguments: argparse.Namespace) -> None:
    file = Path(f"{arguments.name}.yaml")
    if file.exists():
        raise StorageError(f"{file}: is there already; give another name")
    given = {key: getattr(arguments, key) for key in _QUESTIONS}
    open_questions = [key for key, answer in given.items() if answer is None]
    if open_questions and not sys.stdin.isatty():
        options = ", ".join(_QUESTIONS[key].option for key in open_questions)
        raise SpecError(f"nobody is there to be asked, as stdin is no terminal; give {options}")
    for key in open_questions:
        given[key] = _answer(_QUESTIONS[key], given["kind"] or "")
    size, gpus = (_number(key, given[key]) for key in ("size", "gpus"))
    text = draft(Answers(arguments.name, given["kind"], given["path"], size, gpus, given["goal"]))
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror or error}; go to a folder that may be written to") from error
    try:
        load(file)
    except SpecError:
        file.unlink()
        raise
    say(f"{file}: written; read it, and then: emc2dist train {file}")


def _answer(question: _Question, kind: str) -> str:
    default = question.default.get(kind, question.default[""])
    say(f"{question.text} [{default}]")
    return sys.stdin.readline().strip() or default


def _number(key: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise SpecError(f"{_QUESTIONS[key].option}: got {text!r}; give a whole number") from None
