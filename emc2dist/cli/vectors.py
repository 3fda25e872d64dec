"""`embed`, `neighbours`: vectors out of a run, and what lies nearest among them."""

import argparse

from emc2dist.cli.words import Commands, add_json, count, print_result
from emc2dist.config import parse_s3
from emc2dist.terminal import columns

_S3 = "how S3 is reached: s3.endpoint=URL"
_FIRST = ("cosine", "split", "index", "class", "path", "id", "text")
_LONGEST = 60  # characters of a column


def add_to(commands: Commands) -> None:
    """Declare the commands."""
    text = (
        "write what a run's encoder makes of a set of images or of any texts as Parquet: representation and feature of "
        "each image, feature of each text; the same command goes on where it was cut off"
    )
    sub = commands.add_parser("embed", help=text, description=text)
    sub.add_argument("run", metavar="RUN", help="a run folder, as in runs/quickstart, or a checkpoint in it")
    text = (
        "of images: what data.path may be; of texts: a text file, one a line, or Parquet, JSONL, CSV or TSV with a "
        "column of texts"
    )
    sub.add_argument("source", metavar="SOURCE", help=text)
    sub.add_argument("out", metavar="OUT", help="the file to write, a path or s3://bucket/file")
    text = "of images: a split, given once for each that is wanted (all of them)"
    sub.add_argument("--split", dest="splits", action="append", metavar="NAME", help=text)
    text = "of texts: whose prompt and length they are given (query)"
    sub.add_argument("--side", choices=("query", "document"), help=text)
    sub.add_argument("--column", metavar="NAME", help="of a table of texts: the column they stand in (text)")
    sub.set_defaults(command=_embed)
    text = "what lies nearest to an image or a text in a file that embed wrote, by exact search"
    near = commands.add_parser("neighbours", help=text, description=text)
    near.add_argument("vectors", metavar="VECTORS", help="a file that embed wrote, a path or s3://bucket/file")
    text = "a row: by path or index, of texts by id; or something new: an image file, or a text"
    near.add_argument("query", metavar="QUERY", help=text)
    near.add_argument("--count", metavar="N", type=count, default=10, help="how many (%(default)s)")
    text = "of images: by which vectors (representation)"
    near.add_argument("--by", choices=("representation", "feature"), help=text)
    near.add_argument("--split", metavar="NAME", help="whose index it is, where several have it")
    text = "the run or checkpoint that made the vectors, if it has moved; for what is new"
    near.add_argument("--run", metavar="RUN", help=text)
    near.add_argument("--out", metavar="FILE.png", help="draw the images there")
    near.set_defaults(command=_neighbours)
    for parser in (sub, near):
        parser.add_argument("overrides", metavar="s3.KEY=VALUE", nargs="*", default=[], help=_S3)
        add_json(parser)


def _embed(arguments: argparse.Namespace) -> None:
    s3 = parse_s3(arguments.overrides)
    from emc2dist.run.vectors import embed

    options = {"splits": arguments.splits, "side": arguments.side, "column": arguments.column}
    result = embed(arguments.run, arguments.source, arguments.out, s3=s3, **options)
    print_result(result, as_json=arguments.json)


def _neighbours(arguments: argparse.Namespace) -> None:
    s3 = parse_s3(arguments.overrides)
    from emc2dist.run.vectors.nearest import neighbours

    options = {name: getattr(arguments, name) for name in ("count", "by", "split", "run", "out")}
    result = neighbours(arguments.vectors, arguments.query, s3=s3, **options)
    if arguments.json:
        print_result(result, as_json=True)
        return
    found = result.pop("neighbours")
    print_result(result, as_json=False)
    names = [name for name in _FIRST if any(row.get(name) is not None for row in found)]
    rows = [[_shown(row.get(name)) for name in names] for row in found]
    print(f"\n{columns([names, *rows], [])}", end="")


def _shown(value: object) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else "-" if value is None else " ".join(str(value).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
