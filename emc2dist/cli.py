"""`emc2dist`: thin commands over the library.

Exit status: 0 done, 2 a spec, a key=value or data that cannot be used, 1 any other refusal, 130 interrupted.
Progress and messages go to stderr, results to stdout.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from emc2dist.config import dump, load
from emc2dist.errors import DataError, Emc2Error, SpecError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    arguments = _parse(argv)
    try:
        arguments.command(arguments)
    except Emc2Error as error:
        print(f"emc2dist: {error}", file=sys.stderr)
        return 2 if isinstance(error, SpecError | DataError) else 1
    except KeyboardInterrupt:
        print("emc2dist: interrupted; the same command resumes from the newest checkpoint", file=sys.stderr)
        return 130
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse gives up on KEY=VALUE after an option, as in `train SPEC --json lr=1e-3`.
    if any(word.startswith("-") for word in rest) or (rest and "overrides" not in arguments):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
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

    _print(evaluate(arguments.run, data_path=arguments.data), arguments.json)


def _export(arguments: argparse.Namespace) -> None:
    from emc2dist.service.results import export

    _print(export(arguments.run, arguments.out), arguments.json)


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

    for name in ("train", "evaluate", "export"):
        sub = commands.choices[name]
        sub.add_argument("--json", action="store_true", help="print the result as one line of JSON, the last on stdout")
    return parser


if __name__ == "__main__":
    sys.exit(main())
