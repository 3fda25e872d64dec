"""`negatives`: what the chains of a run over pairs hold, for those who train elsewhere."""

import argparse

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
    text = "data.path=PATH where the run's set has moved; s3.endpoint=URL"
    sub.add_argument("overrides", metavar="KEY=VALUE", nargs="*", default=[], help=text)
    add_json(sub)
    sub.set_defaults(command=_negatives)


def _negatives(arguments: argparse.Namespace) -> None:
    s3 = parse_s3(arguments.overrides, others=("data",))
    from emc2dist.run.negatives import negatives

    form, number = arguments.format, arguments.per_query
    result = negatives(arguments.run, arguments.out, arguments.overrides, form=form, per_query=number, s3=s3)
    print_result(result, as_json=arguments.json)
