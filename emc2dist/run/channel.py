"""The channel between workers and driver, one small actor: rows and errors one way, the stop request the other.

Rank 0 posts rows without waiting; the driver takes what has come and writes `metrics.jsonl`. A checkpoint waits until
the rows before it are written, so that a driver that dies takes none with it. An error that would only come again
(`emc2dist.run.failures`) is left here too, and the driver raises it. The driver leaves the stop request, for which rank
0 looks every second.

A channel that dies ends its attempt: rank 0 finds that out as it looks, and the driver waits for nothing but that.
"""

import logging
import threading
from time import monotonic, sleep
from types import TracebackType
from typing import Any, Protocol

import ray
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError

from emc2dist.errors import Emc2Error, StorageError, StorageUnreachable
from emc2dist.metrics import Row
from emc2dist.terminal import brief

TIMEOUT_S = 60.0
DEAD = (ActorDiedError, OutOfMemoryError)
"""What Ray says of an actor that will never answer again: the latter where it ended it itself, for want of memory."""
_POLL_S = 0.1

logger = logging.getLogger(__name__)


class Channel:
    """Rows in the order posted, the first fatal error, and the stop request."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._posted, self._saved, self._wanted = 0, 0, 0
        self._problem: StorageError | None = None
        self._failure: Emc2Error | None = None
        self._stopping = False
        self._nodes: set[str] = set()
        self._late: set[str] | None = None

    def enter(self, node: str) -> None:
        """Leave the id of the node that a worker is on."""
        self._nodes.add(node)

    def nodes(self) -> set[str]:
        """Ids of the nodes that workers are on."""
        return self._nodes

    def give_up(self, nodes: set[str]) -> None:
        """The workers have not started in time; `nodes` are the ids of those to blame."""
        self._late = nodes

    def late(self) -> set[str] | None:
        """Ids of the nodes that have not started their workers in time, where the start was given up."""
        return self._late

    def post(self, row: Row) -> None:
        """Add a row."""
        self._rows.append(row)
        self._posted += 1

    def take(self) -> list[Row]:
        """All rows posted since the last call."""
        rows, self._rows = self._rows, []
        return rows

    def want_saved(self) -> int:
        """Ask that all rows posted so far be saved; returns how many they are."""
        self._wanted = self._posted
        return self._posted

    def report_saved(self, rows: int, problem: StorageError | None = None) -> bool:
        """The first `rows` are saved, and why no more are; returns whether somebody waits for more."""
        self._saved, self._problem = rows, problem
        return self._wanted > rows

    def saved(self) -> tuple[int, StorageError | None]:
        """The number of rows that are saved, and why no more are, where that is known."""
        return self._saved, self._problem

    def fail(self, error: Emc2Error) -> None:
        """Leave a fatal error; the first one stays."""
        self._failure = self._failure or error

    def failure(self) -> Emc2Error | None:
        """The fatal error, if there is one."""
        return self._failure

    def stop(self) -> None:
        """Ask the run to write a checkpoint and end."""
        self._stopping = True

    def stopping(self) -> bool:
        """Whether the run is asked to end."""
        return self._stopping


class ChannelHandle:
    """The channel from another process; a `Recorder` of rows."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    @classmethod
    def create(cls) -> "ChannelHandle":
        """A new channel, on the driver's node: it lives as long as the driver."""
        from emc2dist.run import cluster  # late: the actor itself does without, and is there sooner

        return cls(ray.remote(Channel).options(num_cpus=0, scheduling_strategy=cluster.here()).remote())

    def enter(self) -> None:
        """This process's node has a worker."""
        self._actor.enter.remote(ray.get_runtime_context().get_node_id())

    def nodes(self) -> set[str]:
        """Ids of the nodes that workers are on; none where the channel has died."""
        return _answer(self._actor.nodes.remote(), set[str]())

    def give_up(self, nodes: set[str]) -> None:
        """The workers have not started in time, because of these nodes; returns when that is left."""
        ray.get(self._actor.give_up.remote(nodes), timeout=TIMEOUT_S)

    def late(self) -> set[str] | None:
        """Ids of the nodes that have not started their workers in time, where the start was given up."""
        return _answer(self._actor.late.remote(), None)

    def record(self, row: Row) -> None:
        """Post a row without waiting."""
        self._actor.post.remote(dict(row))

    def take(self) -> list[Row]:
        """All rows posted since the last call."""
        return _answer(self._actor.take.remote(), list[Row]())

    def report_saved(self, rows: int, problem: StorageError | None = None) -> bool:
        """The first `rows` are saved, and why no more are; returns whether somebody waits for more."""
        return _answer(self._actor.report_saved.remote(rows, problem), False)

    def wait_until_saved(self, timeout_s: float) -> None:
        """Return once the rows that this process has posted so far are saved.

        Raises:
            StorageError: they are not after `timeout_s`; why, where that is known.
        """
        wanted, deadline = ray.get(self._actor.want_saved.remote(), timeout=TIMEOUT_S), monotonic() + timeout_s
        while True:
            saved, problem = ray.get(self._actor.saved.remote(), timeout=TIMEOUT_S)
            if saved >= wanted:
                return
            if monotonic() > deadline:
                raise problem or StorageUnreachable(f"the driver has not written its metrics for {timeout_s:g} s")
            sleep(_POLL_S)

    def fail(self, error: Emc2Error) -> None:
        """Leave a fatal error; returns when it is left."""
        ray.get(self._actor.fail.remote(error), timeout=TIMEOUT_S)

    def failure(self) -> Emc2Error | None:
        """The fatal error, if there is one."""
        return _answer(self._actor.failure.remote(), None)

    def stop(self) -> None:
        """Ask the run to write a checkpoint and end; returns when that is left."""
        _answer(self._actor.stop.remote(), None)

    def stopping(self) -> bool:
        """Whether the run is asked to end."""
        return ray.get(self._actor.stopping.remote(), timeout=TIMEOUT_S)


def _answer(reference: Any, otherwise: Any) -> Any:
    """The channel's answer to the driver; `otherwise` where it has died."""
    try:
        return ray.get(reference, timeout=TIMEOUT_S)
    except DEAD:
        return otherwise


class StopSource(Protocol):
    """A stop request that lies in another process."""

    def stopping(self) -> bool:
        """Whether the run is asked to end."""


class StopPoller:
    """A thread that asks for the stop request, so that a step can look without waiting; a `loop.StopRequest`."""

    def __init__(self, source: StopSource, interval_s: float = 1.0) -> None:
        self._source, self._interval_s = source, interval_s
        self._seen, self._over = threading.Event(), threading.Event()
        self._dead: RayError | None = None
        self._thread = threading.Thread(target=self._run, name="stop poller", daemon=True)

    def is_set(self) -> bool:
        """Whether the run is asked to stop. Raises one of `DEAD` where nobody will ever answer again."""
        if self._dead:
            raise self._dead
        return self._seen.is_set()

    def __enter__(self) -> "StopPoller":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()

    def _run(self) -> None:
        while not self._seen.is_set() and not self._over.wait(self._interval_s):
            try:
                if self._source.stopping():
                    self._seen.set()
            except DEAD as error:
                self._dead = error
                return
            except RayError as error:  # the channel's node may be cut off for a while, and training goes on without it
                logger.warning("cannot tell whether the run is asked to stop: %s", brief(error))
