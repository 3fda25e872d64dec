"""The driver's monitor: rows go to `metrics.jsonl` and the listeners as they come, and the stop request goes back."""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from types import TracebackType

import emc2dist.run.cluster as cluster  # before ray: sets its defaults

from ray.exceptions import RayError  # isort: skip

from emc2dist.errors import RayEnded, StorageError
from emc2dist.metrics import Recorder, Row
from emc2dist.run.channel import ChannelHandle
from emc2dist.run.folder import RunFolder
from emc2dist.run.listeners import Listener
from emc2dist.run.listeners.prometheus import Exporter
from emc2dist.store import ChainStore
from emc2dist.terminal import brief, say

_INTERVAL_S = 0.5
_SURVEY_S = 10.0
_SURVEY_TIMEOUT_S = 5.0
_PROBLEM_S = 10.0
_REMOTE_S = 10.0  # S3 cannot append: each time the whole of metrics.jsonl is written


class Monitor:
    """A thread that takes rows from the channel to run folder, listener, exporter and other recorders, until stopped.

    It also asks `why_stop` for a reason to have the workers write a checkpoint and end, and leaves that request in the
    channel; and asks the shards how they are. While S3 does not answer, or the disk is full, rows are kept until they
    can be saved. Whatever else it meets has the workers end, with a checkpoint as ever, and is raised then: nothing
    waits for ever.
    """

    def __init__(
        self,
        channel: ChannelHandle,
        folder: RunFolder,
        listener: Listener,
        exporter: Exporter,
        store: ChainStore,
        why_stop: Callable[[], str | None],
        others: Sequence[Recorder] = (),
    ) -> None:
        self._channel, self._folder, self._listener = channel, folder, listener
        self._exporter, self._store, self._recorders = exporter, store, (exporter, *others)
        self._why_stop, self._stop_left = why_stop, False
        self._told_of = ""
        self._pending: list[Row] = []
        self._problem: StorageError | None = None
        self._failure: Exception | None = None
        self._wanted = False
        self._saved, self._saved_at, self._surveyed_at = 0, 0.0, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def __enter__(self) -> "Monitor":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take the last rows and stop.

        Raises:
            Exception: what a listener, a recorder or the shards have raised. StorageError: the last rows cannot be
                saved, and nothing else is wrong.
        """
        self._stop.set()
        self._thread.join()  # each of its calls has a limit
        rows = self._take()
        self._save()
        if self._failure:
            raise self._failure
        self._show(rows)
        self._survey()
        if self._problem and not error:
            raise self._problem

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            try:
                self._look()
            except RayError as error:  # an answer that comes late; the workers themselves find out who is lost
                with suppress(RayEnded):  # which has been told
                    cluster.see_that_own_ray_lives()
                    self._tell(f"the run cannot be watched for now: {brief(error)}")
            except Exception as error:  # of an listener or a service: whatever it is, workers wait for what this does
                self._failure = self._failure or error

    def _tell(self, problem: str) -> None:
        """Say what goes on for a while once."""
        if problem != self._told_of:
            say(problem)
        self._told_of = problem

    def _look(self) -> None:
        rows = self._take()
        if monotonic() - self._saved_at > self._pause_s():
            self._save()
        self._wanted = self._channel.report_saved(self._saved, self._problem)
        self._pass_on_stop()
        if self._failure:
            return
        self._show(rows)
        if monotonic() - self._surveyed_at > _SURVEY_S:
            self._survey()

    def _take(self) -> list[Row]:
        rows = self._channel.take()
        self._pending += rows
        return rows

    def _show(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._listener.show(row)
            for recorder in self._recorders:
                recorder.record(row)

    def _pass_on_stop(self) -> None:
        reason = None if self._stop_left else self._reason_to_stop()
        if reason:
            self._channel.stop()
            self._stop_left = True
            self._listener.say(reason)

    def _reason_to_stop(self) -> str | None:
        if self._failure:
            return f"stopping: the run cannot be watched ({type(self._failure).__name__}: {self._failure})"
        return self._why_stop()

    def _pause_s(self) -> float:
        """Between two times that rows are saved."""
        if self._problem:
            return _PROBLEM_S
        return _REMOTE_S if self._folder.place.remote and not self._wanted else 0

    def _save(self) -> None:
        try:
            self._folder.append(self._pending)
        except StorageError as error:
            self._listener.say(f"{len(self._pending)} rows of metrics wait to be written: {error}")
            self._problem = error
        else:
            self._saved += len(self._pending)
            self._pending, self._problem = [], None
        self._saved_at = monotonic()

    def _survey(self) -> None:
        if self._store.schema:
            began = monotonic()
            shards = self._store.survey(_SURVEY_TIMEOUT_S)
            self._exporter.survey(shards, monotonic() - began)
        self._surveyed_at = monotonic()
