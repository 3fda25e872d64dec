"""Where workers leave their rows and their last words for the driver: one small actor.

Rank 0 posts without waiting; the driver takes what has come and writes `metrics.jsonl`. An error that would only come
again (bad data, diverged features) is left here too: workers that Ray starts anew find it and stop at once, and the
driver raises it.
"""

from typing import Any

import ray

from emc2dist.errors import DataError, Emc2Error, NonFiniteError, RunError, SpecError, StorageError
from emc2dist.metrics import Row

FATAL = (SpecError, DataError, RunError, StorageError, NonFiniteError)
TIMEOUT_S = 60.0


class Board:
    """Rows in the order posted, and the first fatal error."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._failure: Emc2Error | None = None

    def post(self, row: Row) -> None:
        """Add a row."""
        self._rows.append(row)

    def take(self) -> list[Row]:
        """All rows posted since the last call."""
        rows, self._rows = self._rows, []
        return rows

    def fail(self, error: Emc2Error) -> None:
        """Leave a fatal error; the first one stays."""
        self._failure = self._failure or error

    def failure(self) -> Emc2Error | None:
        """The fatal error, if there is one."""
        return self._failure


class BoardHandle:
    """The board from another process; a Recorder."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    @classmethod
    def create(cls) -> "BoardHandle":
        """A new board; it lives as long as the driver's job."""
        return cls(ray.remote(Board).options(num_cpus=0).remote())

    def record(self, row: Row) -> None:
        """Post a row without waiting."""
        self._actor.post.remote(dict(row))

    def take(self) -> list[Row]:
        """See `Board.take`."""
        return list(ray.get(self._actor.take.remote(), timeout=TIMEOUT_S))

    def fail(self, error: Emc2Error) -> None:
        """See `Board.fail`; returns when it is left."""
        ray.get(self._actor.fail.remote(error), timeout=TIMEOUT_S)

    def failure(self) -> Emc2Error | None:
        """See `Board.failure`."""
        return ray.get(self._actor.failure.remote(), timeout=TIMEOUT_S)
