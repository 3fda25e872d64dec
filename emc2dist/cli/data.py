"""`ingest`: any images, pairs of texts, or texts become a Parquet set."""

import argparse

from emc2dist.cli.words import Commands, add_json, add_s3, print_result
from emc2dist.config import Data, parse_s3
from emc2dist.errors import SpecError

_OF_IMAGES = ("captions", "split", "classes", "rows_per_file", "workers", "no_labels", "cache_dir")
_OF_PAIRS = ("columns",)
"""Arguments that are of use for sets of one kind alone."""


def add_to(commands: Commands) -> None:
    """Declare the command."""
    text = (
        "write images, with captions or without, or pairs of texts as Parquet that trains fast, on disk or S3; a run "
        "that was stopped goes on"
    )
    sub = commands.add_parser("ingest", help=text, description=text)
    sub.add_argument(
        "source",
        metavar="SOURCE",
        help="an ImageFolder, a folder of images, STL-10's binary files, CIFAR's batches, tar shards, a Parquet set; "
        "queries and documents: BEIR's files, or Parquet, JSONL or CSV with columns as query and document; or "
        "documents alone: a corpus, or with --kind texts such tables and .txt",
    )
    sub.add_argument("dest", metavar="DEST", help="folder to write to, a path or s3://bucket/folder")
    sub.add_argument(
        "--kind",
        help="imagefolder, classes, flat, stl10, cifar, tar, parquet, pairs or texts, if not what is recognised",
    )
    sub.add_argument(
        "--split", metavar="S[=NAME]", action="append", default=[], help="take this split alone, as NAME; repeatable"
    )
    sub.add_argument("--classes", metavar="LIST", help="take these classes alone: imagenet100, or a file, one a line")
    sub.add_argument("--seed", metavar="N", type=int, default=0, help="decides the order of the rows (%(default)s)")
    sub.add_argument("--keep-order", action="store_true", help="keep the source's order instead")
    sub.add_argument("--rows-per-file", metavar="N", type=int, default=4096, help="rows of a file (%(default)s)")
    sub.add_argument(
        "--workers", metavar="N", type=int, help="processes, by default one for each CPU, fewer for a small set"
    )
    sub.add_argument(
        "--skip-unreadable", action="store_true", help="leave out and list images or rows that cannot be used, not stop"
    )
    sub.add_argument(
        "--columns",
        metavar="ROLE=COL,...",
        help="of pairs: which column is the query, document, negative, score or split, if names do not tell, or unread",
    )
    sub.add_argument(
        "--vocabulary",
        metavar="N",
        type=int,
        help="of pairs and captions: most tokens of the tokenizer that is trained (16384)",
    )
    sub.add_argument(
        "--captions",
        metavar="NAME",
        help="of images: write captions, too: a column of Parquet, txt or a key of .json members in tars, FILE, COLUMN "
        "or FILE:COLUMN of a table beside a folder; auto: what is called caption, captions, text ...",
    )
    sub.add_argument("--no-labels", action="store_true", help="write no labels, whatever the source says")
    sub.add_argument(
        "--cache-dir",
        metavar="DIR",
        default=Data().cache_dir,
        help="where a Parquet SOURCE is unpacked, as data.cache_dir of a spec (%(default)s)",
    )
    add_s3(sub)
    add_json(sub)
    sub.set_defaults(command=_ingest)


def _ingest(arguments: argparse.Namespace) -> None:
    s3 = parse_s3(arguments.overrides)
    from emc2dist.data.ingest import ingest
    from emc2dist.data.texts.ingest import ingest_pairs
    from emc2dist.data.texts.sources import is_pairs, is_texts
    from emc2dist.data.texts.tables import VOCABULARY

    told = arguments.kind is not None or arguments.captions is not None
    alone = arguments.kind == "texts" or (not told and arguments.columns is None and is_texts(arguments.source))
    of_pairs = (
        alone
        or arguments.kind == "pairs"
        or (not told and (arguments.columns is not None or is_pairs(arguments.source)))
    )
    if not of_pairs and arguments.captions is None and arguments.vocabulary is not None:
        raise SpecError("--vocabulary: is of texts; leave it out, or give --captions, or --kind pairs")
    for name in _OF_IMAGES if of_pairs else _OF_PAIRS:
        if getattr(arguments, name) != arguments.parser.get_default(name):
            kind = "images, and this is one of texts" if of_pairs else "texts, and this is taken for one of images"
            rest = "" if of_pairs else " pairs or texts"
            raise SpecError(f"--{name.replace('_', '-')}: is for sets of {kind}; leave it out, or give --kind{rest}")
    result = (
        ingest_pairs(
            arguments.source,
            arguments.dest,
            alone=alone,
            columns=arguments.columns or "",
            vocabulary=VOCABULARY if arguments.vocabulary is None else arguments.vocabulary,
            seed=arguments.seed,
            keep_order=arguments.keep_order,
            skip_unreadable=arguments.skip_unreadable,
            s3=s3,
        )
        if of_pairs
        else ingest(
            arguments.source,
            arguments.dest,
            kind=arguments.kind,
            splits=arguments.split,
            classes=arguments.classes,
            seed=arguments.seed,
            keep_order=arguments.keep_order,
            rows_per_file=arguments.rows_per_file,
            workers=arguments.workers,
            skip_unreadable=arguments.skip_unreadable,
            labels=not arguments.no_labels,
            captions=arguments.captions,
            vocabulary=VOCABULARY if arguments.vocabulary is None else arguments.vocabulary,
            s3=s3,
            cache_dir=arguments.cache_dir,
        )
    )
    if not arguments.json:
        result["remarks"] = len(result["remarks"])  # they were said
    print_result(result, as_json=arguments.json)
