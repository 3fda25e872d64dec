"""What a person who waits is shown: how far a long job is, messages, columns, JSON. Progress and messages go to
stderr.

What is only told to a person never ends a job: a stderr that is full, closed or gone is done without.
"""

import json
import math
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from textwrap import shorten
from typing import Any

from tqdm import tqdm
from tqdm.utils import ObjectWrapper

_LINE_SECONDS = 10.0


class Progress:
    """Counts up to `total` of `unit` (a singular), of which `done` are done: a bar in a terminal, lines in a log.

    Both tell the rate and the time left.
    """

    def __init__(self, total: int, done: int = 0, *, unit: str, terminal: bool | None = None) -> None:
        terminal = sys.stderr.isatty() if terminal is None else terminal
        self._bar = tqdm(total=total, initial=done, unit=unit, dynamic_ncols=True) if terminal else None
        self._total, self._first, self._done, self._unit = total, done, done, unit
        self._began = self._said = time.monotonic()

    def add(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._said >= _LINE_SECONDS:
            self._said = time.monotonic()
            say(self._line())

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def _line(self) -> str:
        rate = (self._done - self._first) / (time.monotonic() - self._began)
        left = tqdm.format_interval((self._total - self._done) / rate) if rate else "unknown time"
        units, digits = f"{self._unit}s", 0 if rate >= 10 else 2
        return f"{self._done:,} of {self._total:,} {units}, {rate:,.{digits}f} {units}/s, {left} to go"


def brief(error: object, longest: int = 300) -> str:
    """The first line of what an error says, cut short: some of Ray's go on for pages."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return shorten(lines[0], longest)


def say(text: str) -> None:
    """A message to the person who waits, above the bar where there is one."""
    with suppress(OSError):
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()


class Around(ObjectWrapper):
    """A stream around another; what is set on it, as W&B sets a `write` of its own, is not set on that one."""

    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


class Patient(Around):
    """A stream that does without what cannot be written: a full disk, a lost terminal, a reader that is gone."""

    def write(self, text: str) -> int:
        """Write, or do without."""
        with suppress(OSError):
            self._wrapped.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or do without."""
        with suppress(OSError):
            self._wrapped.flush()


_said: set[object] = set()


def say_once(what: object, text: str) -> None:
    """A message, unless this process has given one of `what` before."""
    if what not in _said:
        _said.add(what)
        say(text)


def as_json(value: Any, indent: int | None = None) -> str:
    """A value as JSON that any reader takes: it has no NaN and no infinities, which become null.

    Numbers and arrays of numpy are those of Python.
    """
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # numpy's
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def columns(rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Rows of as many cells each as lines; columns are flush left, but those at the places `numbers` flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = zip(range(len(row)), row, widths, strict=True)
        return "  ".join(f"{cell:>{width}}" if at in numbers else f"{cell:<{width}}" for at, cell, width in cells)

    return "".join(line(row).rstrip() + "\n" for row in rows)
