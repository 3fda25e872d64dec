"""`emc2dist`: thin commands over the library.

Exit status: 0 done, 2 a spec, a key=value, data or storage that cannot be used, 1 any other refusal, 130 interrupted.
Progress and messages go to stderr, results to stdout.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from emc2dist.config import dump, load, parse_s3
from emc2dist.errors import DataError, Emc2Error, SpecError, StorageError, StorageUnreachable


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    arguments = _parse(argv)
    try:
        arguments.command(arguments)
    except Emc2Error as error:
        print(f"emc2dist: {error}", file=sys.stderr)
        unusable = isinstance(error, SpecError | DataError | StorageError)
        return 2 if unusable and not isinstance(error, StorageUnreachable) else 1
    except KeyboardInterrupt:
        print("emc2dist: interrupted; the same command resumes from what is finished", file=sys.stderr)
        return 130
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse gives up on KEY=VALUE after an option, as in `train SPEC --json lr=1e-3`.
    if any(word.startswith("-") for word in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.overrides += rest
    return arguments


def _validate(arguments: argparse.Namespace) -> None:
    print(dump(load(arguments.spec, arguments.overrides)), end="")


def _train(arguments: argparse.Namespace) -> None:
    spec = load(arguments.spec, arguments.overrides)
    from emc2dist.service.trainer import train  # late: `validate` and `--help` need no torch and no Ray

    _print(train(spec), arguments.json)


def _evaluate(arguments: argparse.Namespace) -> None:
    from emc2dist.service.results import evaluate

    _print(evaluate(arguments.run, data_path=arguments.data, s3=parse_s3(arguments.overrides)), arguments.json)


def _export(arguments: argparse.Namespace) -> None:
    from emc2dist.service.results import export

    _print(export(arguments.run, arguments.out, s3=parse_s3(arguments.overrides)), arguments.json)


def _report(arguments: argparse.Namespace) -> None:
    # Two lists in a row, of runs and of s3.KEY=VALUE, are one to argparse; what is no s3.KEY=VALUE is a run.
    words = [*arguments.runs, *arguments.overrides]
    overrides = [word for word in words if word.startswith("s3.") and "=" in word]
    s3 = parse_s3(overrides)
    from emc2dist.service.report import report

    result = report([word for word in words if word not in overrides], out=arguments.out, s3=s3)
    if not arguments.json:
        result["pictures"] = f"{len(result['pictures'])}, as PNG beside it"
    _print(result, arguments.json)


def _ingest(arguments: argparse.Namespace) -> None:
    s3 = parse_s3(arguments.overrides)
    from emc2dist.data.ingest import ingest

    result = ingest(
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
        s3=s3,
    )
    _print(result, arguments.json)


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    width = max(len(name) for name in result)
    for name, value in result.items():
        print(f"{name:<{width}}  {value:.4g}" if isinstance(value, float) else f"{name:<{width}}  {value}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="emc2dist", description="Global contrastive learning on Ray.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    for name, command, text in (
        ("train", _train, "train a spec, or resume it: the same name resumes from its newest checkpoint"),
        ("validate", _validate, "check a spec and print it resolved"),
    ):
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("spec", metavar="SPEC", help="a YAML spec, as in jobs/")
        sub.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="override a key, as in lr=1e-3")
        sub.set_defaults(command=command)

    text = "kNN accuracy and linear probe of a run's newest checkpoint"
    evaluate = commands.add_parser("evaluate", help=text, description=text)
    evaluate.add_argument("--data", metavar="PATH", help="data to evaluate on, if not the run's own")
    text = "write a run's backbone as safetensors, under torchvision's own key names"
    export = commands.add_parser("export", help=text, description=text)
    for sub, command in ((evaluate, _evaluate), (export, _export)):
        sub.add_argument("run", metavar="RUN", help="a run folder, as in runs/quickstart")
        sub.set_defaults(command=command)
    export.add_argument("out", metavar="OUT", help="the file to write")
    report, ingest = _add_report(commands), _add_ingest(commands)
    for sub in (evaluate, export, report, ingest):
        sub.add_argument("overrides", metavar="s3.KEY=VALUE", nargs="*", help="how S3 is reached: s3.endpoint=URL")

    for name in ("train", "evaluate", "export", "report", "ingest"):
        sub = commands.choices[name]
        sub.add_argument("--json", action="store_true", help="print the result as one line of JSON, the last on stdout")
    return parser


def _add_report(commands: Any) -> argparse.ArgumentParser:
    text = "pictures of a run, or of several side by side: one HTML file, and PNGs beside it"
    sub = commands.add_parser("report", help=text, description=text)
    sub.add_argument("runs", metavar="RUN", nargs="+", help="a run folder, as in runs/quickstart")
    sub.add_argument("--out", metavar="FOLDER", help="where to write, if not to `report` in the first run's folder")
    sub.set_defaults(command=_report)
    return sub


def _add_ingest(commands: Any) -> argparse.ArgumentParser:
    text = "write images as Parquet that trains fast, on disk or S3; a run that was stopped goes on"
    sub = commands.add_parser("ingest", help=text, description=text)
    sub.add_argument(
        "source",
        metavar="SOURCE",
        help="an ImageFolder, a folder of images, STL-10's binary files, CIFAR's batches, tar shards, or a Parquet set",
    )
    sub.add_argument("dest", metavar="DEST", help="folder to write to, a path or s3://bucket/folder")
    sub.add_argument("--kind", help="imagefolder, flat, stl10, cifar, tar or parquet, if not what is recognised")
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
        "--skip-unreadable", action="store_true", help="leave out and list images that cannot be decoded, not stop"
    )
    sub.set_defaults(command=_ingest)
    return sub


if __name__ == "__main__":
    sys.exit(main())
