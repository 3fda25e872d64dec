"""A run watched from its folder alone, on disk or S3: from any machine that can read it, and unknown to the run.

`metrics.jsonl` grows, and is written anew without its last rows where the run goes back to a checkpoint. What differs
from the lines that were there before is therefore what is new, wherever in the file it begins.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import takewhile
from pathlib import Path
from typing import Any

from emc2dist import files
from emc2dist.config import S3
from emc2dist.errors import RunError, StorageUnreachable
from emc2dist.files import Entry
from emc2dist.metrics import EXPORTED, Row
from emc2dist.run import lock
from emc2dist.run.folder import RunFolder, runs_near
from emc2dist.run.listeners.terminal import Display
from emc2dist.terminal import say

_INTERVAL_S = 0.5
_REMOTE_INTERVAL_S = 5.0  # a run writes its rows to S3 every 10 s
_QUIET_S = 120.0
_STOPPED = ("free", "suspended")


def follow(run: str | Path, s3: S3 | None = None, *, quiet_s: float = _QUIET_S) -> dict[str, Any]:
    """Show on stderr where the run stands and then its rows as they come; returns its summary when it is finished.

    A run that is not there yet is waited for. Says so, once, where there is no run, where nobody trains it, or where
    none of its rows has come for `quiet_s`.

    Raises:
        RunError: a file of it is damaged.
        StorageError: the folder cannot be read. (While S3 does not answer, it is asked again.)
    """
    folder = RunFolder(files.at(run, s3))
    with closing(_Watch(folder, quiet_s, lambda: runs_near(str(run), s3))) as watch:
        while (summary := watch.look()) is None:
            time.sleep(_REMOTE_INTERVAL_S if folder.place.remote else _INTERVAL_S)
    return summary


def newest(run: str | Path, s3: S3 | None = None) -> dict[str, float]:
    """The newest value of each metric that the run's rows have, in the order of the table; of a counter, the sum.

    Raises:
        RunError: there is no run, or it has no rows yet.
    """
    folder = RunFolder.open(run, s3)
    values: dict[str, float] = {}
    for row in folder.rows():
        for name in row.keys() & EXPORTED.keys():
            values[name] = row[name] + (values.get(name, 0) if EXPORTED[name].kind == "counter" else 0)
    if not values:
        if folder.summary():
            raise RunError(f"{folder.metrics}: holds no rows, though the run is finished; put it back")
        silent = f"{folder.place}: no rows yet; the run is starting, or ended before its first step"
        raise RunError(remark(run, s3) or silent)
    return {name: values[name] for name in EXPORTED if name in values}


def remark(run: str | Path, s3: S3 | None = None, *, quiet_s: float = _QUIET_S) -> str:
    """What `newest` does not tell of an unfinished run: that nobody trains it, or that none of its rows is newer than
    `quiet_s`; empty where neither is so.
    """
    folder = RunFolder(files.at(run, s3))
    standing = lock.state(folder.place)
    if folder.summary() is not None:  # asked last, for a driver writes it before it lets go of the lock
        return ""
    if standing in _STOPPED:
        return _stopped(folder, standing)
    age_s = folder.metrics.age_s() or 0
    return _unheard(folder, standing, age_s) if standing is None and age_s >= quiet_s else ""


def _stopped(folder: RunFolder, standing: str) -> str:
    """Of a run whose driver is known not to train it now."""
    driver = f"its driver ({lock.driver(folder.place)})"
    if standing == "suspended":
        return f"{folder.place}: {driver} is suspended, as by Ctrl-Z; `fg` in its shell has it go on"
    row = next((row for row in reversed(folder.rows()) if row.get("epoch")), None)
    if row is None:
        where = "before its first step"
    else:
        where = f"at step {row['step']} of {_steps_from(row, folder.spec().epochs)}"
    return f"nobody trains {folder.place}: {driver} has ended {where}; the same command resumes it"


def _unheard(folder: RunFolder, standing: str | None, age_s: float) -> str:
    """Of a run that writes no rows; whether it lives may be known."""
    ended = "" if standing else ", or it ended unfinished"
    which = "; its own log says which" + ("" if standing else ", and the command that started it resumes it")
    silent = f"{age_s:.0f} s" if age_s < 600 else f"{age_s / 60:.0f} minutes"
    return f"{folder.place}: no rows for {silent}: the run is starting or evaluating{ended}{which}"


def _steps_from(row: Row, epochs: int) -> int:
    """Steps of the whole run: its spec knows the epochs, a row how many steps one has; the data need no opening."""
    return epochs * round(float(row["step"]) / float(row["epoch"]))


class _Watch:
    def __init__(self, folder: RunFolder, quiet_s: float, near: Callable[[], str]) -> None:
        self._folder, self._quiet_s, self._look_near = folder, quiet_s, near
        self._near: str | None = None
        """The runs near a folder that is none yet; None: not looked for."""
        self._display: Display | None = None
        self._epochs: int | None = None
        self._steps: int | None = None
        self._entry: Entry | None = None
        self._lines: list[bytes] = []
        self._heard, self._said = time.monotonic(), ""
        """When the newest row was written, and what kind of silence has been told since."""

    def close(self) -> None:
        if self._display is not None:
            self._display.close()

    def look(self) -> dict[str, Any] | None:
        """Show what is new; returns the summary once there is one."""
        try:
            if self._epochs is None and self._folder.exists():
                self._epochs = self._folder.spec().epochs
            elif self._epochs is None and self._near is None:
                self._near = self._look_near()
            standing = lock.state(self._folder.place)  # before the summary, which a driver writes before it lets go
            summary = self._folder.summary()  # before the rows, for when it is there, so are all of them
            rows = self._new_rows()
        except StorageUnreachable as error:
            summary, rows, silence = None, [], ("storage", f"still watching, but for now: {error}")
        else:
            silence = self._silence(standing) if summary is None and not rows else ("", "")
        if rows:
            self._show(rows)
        kind, text = silence
        if kind not in ("", self._said):
            say(text)
            self._said = kind
        return summary

    def _new_rows(self) -> Sequence[Row]:
        entry = self._folder.metrics.entry()
        if entry == self._entry:
            return []
        before, self._lines, self._entry = self._lines, self._folder.lines(), entry
        same = takewhile(lambda pair: pair[0] == pair[1], zip(before, self._lines, strict=False))
        known = sum(1 for _ in same)
        return self._folder.parsed(self._lines[known:], known)

    def _silence(self, standing: str | None) -> tuple[str, str]:
        """A kind of message and the message where no row has come; empty: nothing to say yet."""
        if self._epochs is None:
            near = f"; {self._near}" if self._near else ""
            return "none", f"{self._folder.place}: no run here yet (there is no spec.yaml{near}); waiting for one"
        if standing in _STOPPED:
            return standing, _stopped(self._folder, standing)
        silent_s = time.monotonic() - self._heard
        return ("quiet", _unheard(self._folder, standing, silent_s)) if silent_s >= self._quiet_s else ("", "")

    def _show(self, rows: Sequence[Row]) -> None:
        self._heard, self._said = time.monotonic(), ""
        if self._display is None:
            self._heard -= self._folder.metrics.age_s() or 0
            self._display = Display(None)
            self._display.start_at(int(rows[-1]["step"]))
            rows = _latest(rows)
        for row in rows:
            if self._steps is None and row.get("epoch"):
                assert self._epochs is not None, "a folder with rows has a spec"
                self._steps = _steps_from(row, self._epochs)
                self._display.expect(self._steps)
            self._display.show(row)


def _latest(rows: Sequence[Row]) -> list[Row]:
    """Of all rows so far, the newest evaluation and the newest step."""
    newest = {name: row for row in rows for name in ("knn_accuracy", "ndcg_at_10", "loss") if name in row}
    return sorted(newest.values(), key=lambda row: row["step"])
