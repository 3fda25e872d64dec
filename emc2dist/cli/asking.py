"""`ask`: which two of three images are alike? A person says so."""

import argparse
import sys

from emc2dist.cli.words import Commands, add_json, add_s3, count, print_result
from emc2dist.config import parse_s3
from emc2dist.errors import SpecError
from emc2dist.terminal import say

_SPLITS = ("train", "test", "validation")


def add_to(commands: Commands) -> None:
    """Declare the command."""
    text = "ask a person which two of three images are alike; the answers are what objective: sirl trains on"
    sub = commands.add_parser("ask", help=text, description=text)
    text = "a set of images as in data.path, or a run folder: then three that its newest checkpoint can hardly tell"
    sub.add_argument("subject", metavar="DATA|RUN", help=text)
    sub.add_argument("queries", metavar="QUERIES", help="a folder of answers alone, a file each; asking goes on there")
    text = "page that shows the three images, to be opened in a browser: it looks for the next ones (%(default)s)"
    sub.add_argument("--page", metavar="FILE", default="ask.html", help=text)
    text = "split of the images and of the answers (%(default)s)"
    sub.add_argument("--split", choices=_SPLITS, default="train", help=text)
    sub.add_argument("--count", metavar="N", type=count, help="answers, by default until you end it")
    sub.add_argument("--seed", metavar="N", type=int, default=0, help="which queries (%(default)s)")
    text = "let the set's labels answer, as a person would who goes by them; for trying it out"
    sub.add_argument("--by-labels", action="store_true", help=text)
    add_s3(sub)
    add_json(sub)
    sub.set_defaults(command=_ask)


def _ask(arguments: argparse.Namespace) -> None:
    from emc2dist.run.ask import ask

    s3 = parse_s3(arguments.overrides)
    if arguments.by_labels and arguments.count is None:
        arguments.count = 1_000
    options = {"split": arguments.split, "count": arguments.count, "seed": arguments.seed, "s3": s3}
    person = None if arguments.by_labels else _Person(arguments.page)
    result = ask(arguments.subject, arguments.queries, person, **options)
    shown = {"queries": arguments.queries, **result._asdict()}
    for remark in result.remarks:
        say(remark)
    if not arguments.json:
        shown["remarks"] = len(result.remarks)  # they were said
    print_result(shown, as_json=arguments.json)


class _Person:
    """Who looks at a page and answers on stdin."""

    def __init__(self, page: str) -> None:
        if not page.lower().endswith(".html"):  # whatever is called otherwise may be somebody's
            raise SpecError(f"--page {page}: is written anew for every query; give a name that ends in .html")
        self._page, self._number = page, 0

    def __call__(self, pictures: list[bytes]) -> int | None:
        from emc2dist import files
        from emc2dist.run.ask import page

        self._number += 1
        files.at(self._page).write(page(pictures, self._number).encode())
        if self._number == 1:
            say(f"open {self._page} in a browser; 1, 2 or 3 is the odd one out, s: cannot say, q: end")
        while True:
            say(f"query {self._number}: which is the odd one out? ")
            line = sys.stdin.readline()
            word = line.strip().lower()
            if not line or word == "q":
                raise EOFError
            if word == "s":
                return None
            if word in ("1", "2", "3"):
                return int(word) - 1
            say(f"got {word!r}: answer 1, 2, 3, s or q")
