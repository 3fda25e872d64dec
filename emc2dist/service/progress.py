"""What a person sees of a run: a progress bar in a terminal, plain lines in a log; and `metrics.jsonl` beside it."""

import sys
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Protocol

from tqdm import tqdm

from emc2dist.errors import StorageUnreachable
from emc2dist.metrics import Recorder, Row
from emc2dist.service.board import BoardHandle
from emc2dist.service.exporter import Exporter
from emc2dist.service.runs import RunFolder
from emc2dist.store import ChainStore

_SHOWN = {"loss": "loss {:.3f}", "acceptance_rate": "acceptance {:.3f}", "images_per_second": "{:.0f} images/s"}


class Onlooker(Protocol):
    """Whoever is told of a run's rows as they come, on a thread."""

    def show(self, row: Row) -> None:
        """Take a row."""

    def say(self, text: str) -> None:
        """Take a message for people."""

    def close(self) -> None:
        """The run is over."""


class Display:
    """Shows rows on stderr; an Onlooker."""

    def __init__(self, steps: int, *, terminal: bool | None = None) -> None:
        terminal = sys.stderr.isatty() if terminal is None else terminal
        self._bar = tqdm(total=steps, unit="step", dynamic_ncols=True) if terminal else None
        self._steps = steps

    def show(self, row: Row) -> None:
        """Show a row."""
        if "passed_over" in row:
            self.say(f"passed over, as not whole: {row['passed_over']}")
        elif row.get("resumed") is not None:
            self._restart(int(row["step"]), resumed=bool(row["resumed"]))
        elif "knn_accuracy" in row:
            pixels = f", raw pixels {row['knn_pixels']:.3f}" if "knn_pixels" in row else ""
            self.say(f"epoch {row['epoch']:g}: kNN accuracy {row['knn_accuracy']:.3f}{pixels}")
        elif "loss" not in row:  # a checkpoint was kept: nothing that a person waits for
            return
        elif self._bar is not None:
            self._bar.update(int(row["step"]) - self._bar.n)
            self._bar.set_postfix_str(_summary(row))
        else:
            self.say(f"step {row['step']}/{self._steps} epoch {row['epoch']:.2f} {_summary(row)}")

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def _restart(self, step: int, *, resumed: bool) -> None:
        if resumed:
            self.say(f"resumed from the checkpoint at step {step}")
        if self._bar is not None:
            self._bar.initial = step
            self._bar.reset(self._steps)
            self._bar.update(step)

    def say(self, text: str) -> None:
        """Show a line, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)


_INTERVAL_S = 0.5
_SURVEY_S = 10.0
_SURVEY_TIMEOUT_S = 5.0
_REMOTE_S = 10.0  # S3 cannot append: each time the whole of metrics.jsonl is written


class Monitor:
    """Takes rows from the board, on a thread, to display, exporter, run folder and all else, until stopped.

    And asks `why_stop` for a reason to have the workers write a checkpoint and end, takes word of it to the board, and
    asks the shards how they are. While S3 does not answer, rows are kept until it does.
    """

    def __init__(
        self,
        board: BoardHandle,
        folder: RunFolder,
        display: Onlooker,
        exporter: Exporter,
        store: ChainStore,
        why_stop: Callable[[], str | None],
        others: Sequence[Recorder] = (),
    ) -> None:
        self._board, self._folder, self._display = board, folder, display
        self._exporter, self._store, self._recorders = exporter, store, (exporter, *others)
        self._why_stop, self._told = why_stop, False
        self._pending: list[Row] = []
        self._saved, self._surveyed = 0.0, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def __enter__(self) -> "Monitor":
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        """Take the last rows and stop. Raises StorageError where they cannot be saved."""
        self._stop.set()
        self._thread.join(timeout=60)
        self._take()
        self._survey()
        self._folder.append(self._pending)

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            self._take()
            self._pass_on_word()
            if monotonic() - self._saved > (_REMOTE_S if self._folder.place.remote else 0):
                self._save()
            if monotonic() - self._surveyed > _SURVEY_S:
                self._survey()

    def _take(self) -> None:
        for row in self._board.take():
            self._pending.append(row)
            self._display.show(row)
            for recorder in self._recorders:
                recorder.record(row)

    def _pass_on_word(self) -> None:
        reason = None if self._told else self._why_stop()
        if reason:
            self._board.stop()
            self._told = True
            self._display.say(reason)

    def _save(self) -> None:
        try:
            self._folder.append(self._pending)
            self._pending = []
        except StorageUnreachable as error:
            self._display.say(f"{len(self._pending)} rows of metrics wait to be written: {error}")
        self._saved = monotonic()

    def _survey(self) -> None:
        if self._store.schema:
            began = monotonic()
            shards = self._store.survey(_SURVEY_TIMEOUT_S)
            self._exporter.survey(shards, monotonic() - began)
        self._surveyed = monotonic()


def _summary(row: Row) -> str:
    return ", ".join(text.format(row[name]) for name, text in _SHOWN.items() if name in row)
