"""Jobs for people: a log to its end, a state, a table of all."""

import sys
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from emc2dist.config import Launch
from emc2dist.launch.plan import JobState, Target
from emc2dist.terminal import columns, say


def follow(target: Target, job: str) -> JobState:
    """Write the job's log to stdout until it ends; returns how it ended, of which `exit_status` makes a number."""
    write(target.logs(job, follow=True))
    state = target.state(job)
    if state.status != "succeeded":
        say(f"emc2dist: {state.id}: {state.status}. {state.message}")
    return state


def exit_status(state: JobState) -> int:
    """The driver's own where the target knows it; 143 for a job that was stopped, 1 for one that failed otherwise."""
    if state.status == "succeeded":
        return 0
    code = state.exit_code or (143 if state.status == "stopped" else 1)
    if -128 < code < 0:  # ended by a signal, for which shells have 128 and its number
        return 128 - code
    return code if 0 < code < 256 else 1


def write(chunks: Iterable[str]) -> None:
    """Write a log to stdout as it comes."""
    for chunk in chunks:
        sys.stdout.write(chunk)
        sys.stdout.flush()


def hint(state: JobState, launch: Launch, *, follows: bool) -> str:
    """One line on what was submitted and how to go on, or that its log follows."""
    where = f" --target {launch.target}" if launch.target != "local" else ""
    where += f" --namespace {launch.namespace}" if launch.target == "kuberay" else ""
    command = f"`emc2dist logs -f {state.id}{where}`"
    if follows:
        return f"{state.id}: {state.status}; its log follows; after Ctrl-C, which ends no job, {command} shows it again"
    return f"{state.id}: {state.status}; follow it with {command}"


def facts(state: JobState) -> dict[str, Any]:
    """A job's state as names and values; times as people read them."""
    return {
        "job": state.id,
        "run": state.run,
        "status": state.status,
        "exit_code": state.exit_code,
        "started": _clock(state.started),
        "ended": _clock(state.ended),
        "message": state.message,
    }


def table(states: Iterable[JobState]) -> str:
    """A line for each job, below a heading."""
    rows = [("JOB", "RUN", "STATUS", "STARTED", "TOOK")]
    rows += [(s.id, s.run, s.status, _clock(s.started) or "-", _took(s)) for s in states]
    return columns(rows)


def _clock(time_s: float | None) -> str | None:
    if not time_s:
        return None
    return datetime.fromtimestamp(time_s).astimezone().isoformat(" ", "seconds")


def _took(state: JobState) -> str:
    if state.started is None:
        return "-"
    ended = state.ended or time.time()
    minutes, seconds = divmod(int(ended - state.started), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
