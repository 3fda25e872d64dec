"""`negatives`, `embed`: what leaves a run over pairs."""

import argparse
from collections.abc import Callable

from emc2dist.cli.words import Commands, add_json, count, print_result
from emc2dist.config import parse_s3

_FORMATS = ("st", "tevatron", "flag")


def add_to(commands: Commands) -> None:
    """Declare the commands."""
    text = "write what the chains of a run over pairs hold as mined negatives, JSONL, with score, age and margin"
    sub = commands.add_parser("negatives", help=text, description=text)
    sub.add_argument("run", metavar="RUN", help="a run folder, as in runs/code-search")
    sub.add_argument("out", metavar="OUT", help="the file to write, a path or s3://bucket/file")
    text = "for whom: sentence-transformers, Tevatron or FlagEmbedding (%(default)s)"
    sub.add_argument("--format", choices=_FORMATS, default="st", help=text)
    text = "most negatives of a query; those beyond one are what older checkpoints hold (%(default)s)"
    sub.add_argument("--per-query", metavar="N", type=count, default=1, help=text)
    _add_shared(sub, _negatives, "data.path=PATH where the run's set has moved; s3.endpoint=URL")
    text = "write the feature of each text of a file as Parquet: id, text, feature"
    sub = commands.add_parser("embed", help=text, description=text)
    sub.add_argument("run", metavar="RUN", help="the folder of a run over pairs, as in runs/code-search")
    text = "a text file, one a line, or Parquet, JSONL, CSV or TSV with a column of texts"
    sub.add_argument("source", metavar="SOURCE", help=text)
    sub.add_argument("out", metavar="OUT", help="the file to write, a path or s3://bucket/file")
    text = "whose prompt and length the texts are given (%(default)s)"
    sub.add_argument("--side", choices=("query", "document"), default="query", help=text)
    sub.add_argument("--column", metavar="NAME", default="text", help="the column of texts (%(default)s)")
    _add_shared(sub, _embed, "how S3 is reached: s3.endpoint=URL")


def _add_shared(parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], None], text: str) -> None:
    """What can be overridden, which `text` tells; and what it is that is done."""
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", default=[], help=text)
    add_json(parser)
    parser.set_defaults(command=command)


def _negatives(arguments: argparse.Namespace) -> None:
    s3 = parse_s3(arguments.overrides, others=("data",))
    from emc2dist.run.negatives import negatives

    form, number = arguments.format, arguments.per_query
    result = negatives(arguments.run, arguments.out, arguments.overrides, form=form, per_query=number, s3=s3)
    print_result(result, as_json=arguments.json)


def _embed(arguments: argparse.Namespace) -> None:
    s3 = parse_s3(arguments.overrides)
    from emc2dist.run.embedded import embed

    where = (arguments.run, arguments.source, arguments.out)
    result = embed(*where, side=arguments.side, column=arguments.column, s3=s3)
    print_result(result, as_json=arguments.json)
