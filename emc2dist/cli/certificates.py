"""`certify`: what a sampler buys, before a cluster is paid for."""

import argparse

from emc2dist.cli.words import Commands, add_json, count, print_result
from emc2dist.config import parse_s3
from emc2dist.terminal import say


def add_to(commands: Commands) -> None:
    """Declare the command."""
    text = "hold the mean gradient of a spec's negatives, and of others, against the exact one: what a sampler buys"
    sub = commands.add_parser("certify", help=text, description=text)
    text = "a YAML spec, whose encoder is untrained, or a run folder, as in runs/quickstart: its newest checkpoint's"
    sub.add_argument("spec", metavar="SPEC|RUN", help=text)
    text = "override a key, as in batch_size=64; of a run those that negatives, batch, views and data are made by"
    sub.add_argument("overrides", metavar="KEY=VALUE", nargs="*", default=[], help=text)
    text = "images that are frozen: 500, or 4 times the batch where that is more"
    sub.add_argument("--samples", metavar="N", type=count, help=text)
    sub.add_argument("--views", metavar="M", type=count, default=20, help="random views of each (%(default)s)")
    text = "time for the steps of all rows together, beside what the encoding takes (%(default)s)"
    sub.add_argument("--seconds", metavar="S", type=_seconds, default=45.0, help=text)
    sub.add_argument("--steps", metavar="T", type=_steps, help="steps of each row, however long they take")
    sub.add_argument("--out", metavar="FILE", help="a picture to write: *.png, *.pdf or *.svg")
    add_json(sub)
    sub.set_defaults(command=_certify)


def _steps(text: str) -> int:
    number = int(text)
    if number < 24:
        raise argparse.ArgumentTypeError(f"got {text}; give at least 24, for the last 20 are compared")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text}; give more than 0")
    return number


def _certify(arguments: argparse.Namespace) -> None:
    from emc2dist.report import certificate as report
    from emc2dist.run.certificate import certify

    s3 = parse_s3([override for override in arguments.overrides if override.startswith("s3.")])
    place = None if arguments.out is None else report.picture_place(arguments.out, s3)
    found = certify(
        arguments.spec,
        arguments.overrides,
        samples=arguments.samples,
        views=arguments.views,
        seconds=arguments.seconds,
        steps=arguments.steps,
    )
    if place is not None:
        place.write(report.picture(found, place.name.rpartition(".")[2]))
        say(f"picture: {place}")
    if arguments.json:
        print_result(report.as_result(found) | {"out": None if place is None else str(place)}, as_json=True)
    else:
        print(f"{report.table(found)}\n{report.words(found)}")
