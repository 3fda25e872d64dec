"""`watch`, `profile`: what a run does while it runs, and where its steps go."""

import argparse
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING

from emc2dist.cli.words import Commands, add_json, add_s3, add_spec, count, print_result
from emc2dist.config import Spec, load, parse_s3
from emc2dist.metrics import METRICS
from emc2dist.terminal import columns, say

if TYPE_CHECKING:
    from emc2dist.train.profile import Profile


def add_to(commands: Commands) -> None:
    """Declare the commands."""
    text = "show a live run's metrics as they come, from its folder, and its summary when it is finished"
    watch = commands.add_parser("watch", help=text, description=text)
    watch.add_argument("run", metavar="RUN", help="a run folder, a path or s3://bucket/folder, as in runs/quickstart")
    watch.add_argument("--once", action="store_true", help="print the newest value of every metric, and end")
    add_s3(watch)
    text = "run a few real steps of a spec, on one worker here, and tell where a step goes"
    profile = commands.add_parser("profile", help=text, description=text)
    add_spec(profile)
    profile.add_argument("--steps", metavar="N", type=count, default=10, help="steps that are measured (%(default)s)")
    text = "write a trace too, for chrome://tracing or Perfetto; packed if it ends in .gz"
    profile.add_argument("--trace", metavar="FILE", help=text)
    for sub, command in ((watch, _watch), (profile, _profile)):
        add_json(sub)
        sub.set_defaults(command=command)


def _watch(arguments: argparse.Namespace) -> int | None:
    from emc2dist import files
    from emc2dist.run import lock
    from emc2dist.watch import live

    s3 = parse_s3(arguments.overrides)
    if arguments.once:
        values = live.newest(arguments.run, s3)
        if remark := live.remark(arguments.run, s3):
            say(remark)
        _print_values(values, as_json=arguments.json)
        return None
    try:
        print_result(live.follow(arguments.run, s3), as_json=arguments.json)
    except KeyboardInterrupt:
        goes_on = lock.state(files.at(arguments.run, s3)) == "held"
        say(f"emc2dist: no longer watching{'; the run goes on' if goes_on else ''}")
        return 130
    return None


def _print_values(values: dict[str, float], *, as_json: bool) -> None:
    if as_json:
        print_result(values, as_json=True)
        return
    rows = [(name, _text(name, value), METRICS[name].unit) for name, value in values.items()]
    print(columns([("METRIC", "VALUE", "UNIT"), *rows], numbers=[1]), end="")


def _text(name: str, value: float) -> str:
    if name.endswith("_timestamp_seconds"):
        with suppress(ValueError, OverflowError, OSError):  # a time that no clock shows
            return datetime.fromtimestamp(value).astimezone().isoformat(" ", "seconds")
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"


def _profile(arguments: argparse.Namespace) -> None:
    spec = load(arguments.spec, arguments.overrides)
    from emc2dist.train.profile import profile

    result = profile(spec, arguments.steps, arguments.trace)
    say("\n".join(_remarks(spec, result)))
    if arguments.json:
        print_result(asdict(result), as_json=True)
    else:
        print(columns(list(_table(result)), numbers=[1, 2, 3, 4]), end="")
    if arguments.trace:
        say(f"trace: {arguments.trace}; open it in chrome://tracing or https://ui.perfetto.dev")


def _remarks(spec: Spec, result: "Profile") -> Iterator[str]:
    yield f"means of {result.steps} steps of {result.batch_size} samples on {result.device}, after some to warm up"
    if spec.workers > 1:
        yield (
            f"one of workers: {spec.workers}, alone with its share of the batch: communication is not measured, and "
            "the sweep proposes from that share"
        )
    slower = 100 * (result.profiled_step_ms / result.step_ms - 1)
    if result.reencoded_images:
        yield f"carried negatives encoded again: {result.reencoded_images:.1f} images a step, as young encoders have it"
    yield f"operators: self time, of steps under torch's profiler, which took {slower:+.0f} %"


def _table(result: "Profile") -> Iterator[tuple[str, ...]]:
    """Parts of a step against the whole of it, then operators against a step under the profiler."""
    cuda = result.device.startswith("cuda")
    device = ("CUDA MS",) if cuda else ()

    def line(name: str, ms: float, whole: float, *more: str) -> tuple[str, ...]:
        blank = ("",) * (1 + len(device) - len(more))
        return (name, f"{ms:.2f}", f"{100 * ms / whole:.1f}", *more, *blank)

    yield ("PART OR OPERATOR", "MS", "%", "CALLS", *device)
    for name, ms in result.parts_ms.items():
        yield line(name, ms, result.step_ms)
    yield line("sum of the parts", sum(result.parts_ms.values()), result.step_ms)
    yield line("whole step", result.step_ms, result.step_ms)
    for one in result.operators:
        more = (f"{one.calls:.1f}", *([f"{one.cuda_ms:.2f}"] if cuda else []))
        yield line(one.name, one.cpu_ms, result.profiled_step_ms, *more)
