"""What commands share: arguments that mean the same everywhere, and how results are printed."""

import argparse
from typing import Any

from emc2dist.terminal import as_json as json_of

Commands = Any
"""What `add_subparsers` gives; argparse keeps its type to itself."""


def add_spec(parser: argparse.ArgumentParser) -> None:
    """A spec file and overrides of its keys."""
    parser.add_argument("spec", metavar="SPEC", help="a YAML spec, as in jobs/")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", default=[], help="override a key, as in lr=1e-3")


def add_s3(parser: argparse.ArgumentParser) -> None:
    """How S3 is reached, for commands that have no spec to say it."""
    text = "how S3 is reached, before what a run's spec says: s3.endpoint=URL"
    parser.add_argument("overrides", metavar="s3.KEY=VALUE", nargs="*", default=[], help=text)


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json`, for `print_result`."""
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON, the last on stdout")


def count(text: str) -> int:
    """An argument that is a number of things, at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text}; give at least 1")
    return number


def print_result(result: dict[str, Any], *, as_json: bool) -> None:
    """Print names and values, one a line, or all as one line of JSON, where null stands for what is not finite."""
    if as_json:
        print(json_of(result))
        return
    width = max(len(name) for name in result)
    for name, value in result.items():
        print(f"{name:<{width}}  {value:.4g}" if isinstance(value, float) else f"{name:<{width}}  {value}")
