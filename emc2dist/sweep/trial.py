"""One trial: a run of ours inside an actor of Tune, which asks for the metric one epoch at a time.

    Tune's actor:  step() gives epoch and metric, the last time with how the run ended
    its thread:    `emc2dist.run.driver.train`, whose listener the actor is

Tune ends a trial by ending its actor, and Ray Train's controller, placement group and shards with it, more or less. So
nothing here is ended by Tune: a trial gets a stop request, writes a checkpoint, gives everything back as any run does,
and only then says that it is done. A place is free for another trial when its resources are.
"""

import queue
import threading
from contextlib import ExitStack
from typing import Any

import emc2dist.run.cluster as cluster  # before ray: sets its defaults

import ray  # isort: skip
from ray import tune

from emc2dist import files
from emc2dist.config import Spec, parse
from emc2dist.errors import DataError, Emc2Error, NonFiniteError, RunStopped, SpecError
from emc2dist.metrics import Row
from emc2dist.run.channel import TIMEOUT_S, StopPoller
from emc2dist.run.folder import RunFolder
from emc2dist.sweep.folder import State
from emc2dist.terminal import say

_HOPELESS = (SpecError, DataError, NonFiniteError)
"""What would only come again."""
_POLL_S = 0.5
_PATIENCE_S = 300.0


class StopRequests:
    """The trials that are asked to stop: an actor of the sweep's driver.

    One that dies is started again by Ray with an empty list, and `StopRequestsHandle.repeat` fills it again.
    """

    def __init__(self) -> None:
        self._names: set[str] = set()

    def add(self, names: list[str]) -> None:
        """Ask these to stop."""
        self._names.update(names)

    def has(self, name: str) -> bool:
        """Whether this one is asked to."""
        return name in self._names


class StopRequestsHandle:
    """The stop requests from another process, for one trial where it has a name; a `StopSource`."""

    def __init__(self, actor: Any, name: str = "") -> None:
        self._actor, self._name = actor, name
        self._asked: set[str] = set()

    @classmethod
    def create(cls) -> "StopRequestsHandle":
        """A new actor, on the driver's node: it lives as long as the driver."""
        lasting = {"max_restarts": -1, "max_task_retries": -1}
        return cls(ray.remote(StopRequests).options(num_cpus=0, scheduling_strategy=cluster.here(), **lasting).remote())

    def of(self, name: str) -> "StopRequestsHandle":
        """The handle of the trial of this name."""
        return StopRequestsHandle(self._actor, name)

    def add(self, names: list[str]) -> None:
        """Ask these to stop; returns when the request is left."""
        self._asked.update(names)
        self.repeat()

    def repeat(self) -> None:
        """Ask again all that were asked through this handle, for the actor may have lost what it knew."""
        ray.get(self._actor.add.remote(sorted(self._asked)), timeout=TIMEOUT_S)

    def close(self) -> None:
        """End the actor: a handle that Tune has kept would keep it alive."""
        ray.kill(self._actor)

    def stopping(self) -> bool:
        """Whether this trial is asked to stop."""
        return ray.get(self._actor.has.remote(self._name), timeout=TIMEOUT_S)


class Trial(tune.Trainable):
    """A trial as Tune sees it; an Listener of its run."""

    def setup(self, config: dict[str, Any], stops: StopRequestsHandle) -> None:
        """Start the run of config["spec"], or resume it."""
        self._metric: str = config["metric"]
        self._judged = 0.0
        self._latest: dict[str, float] = {"epoch": 0, self._metric: float("nan")}
        self._results: queue.Queue[dict[str, Any]] = queue.Queue()
        self._stop = threading.Event()
        self._over = ExitStack()
        self._poller = self._over.enter_context(StopPoller(stops.of(config["name"])))
        self._thread = threading.Thread(target=self._run, args=(config["spec"],), name="run", daemon=True)
        self._thread.start()

    def step(self) -> dict[str, Any]:
        """Wait for the next epoch that is judged, or for the end."""
        while True:
            if self._poller.is_set():
                self._stop.set()
            try:
                result = self._results.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            self._latest |= result
            return dict(self._latest)

    def cleanup(self) -> None:
        """End the run, if it has not ended, and wait for it."""
        self._stop.set()
        self._thread.join(timeout=_PATIENCE_S)
        self._over.close()

    def show(self, row: Row) -> None:
        """Take a row: only the ends of epochs count, and each once, also where a run went back to a checkpoint."""
        epoch = float(row.get("epoch", 0))
        if self._metric in row and epoch.is_integer() and epoch > self._judged:
            self._judged = epoch
            self._results.put({"epoch": int(epoch), self._metric: float(row[self._metric])})

    def say(self, text: str) -> None:
        """Take a message; it goes to the actor's log."""
        say(text)

    def close(self) -> None:
        """The run is over; nothing is to be closed."""

    def _run(self, text: str) -> None:
        state, reason = self._outcome(parse(text))
        self._results.put({"done": True, "state": state, "reason": reason})

    def _outcome(self, spec: Spec) -> tuple[State, str]:
        from emc2dist.run.driver import train  # here, on the thread: it takes seconds, and Tune waits for `setup`

        try:
            for row in RunFolder(files.at(spec.run_dir, spec.s3) / spec.name).rows():  # of an earlier start
                self.show(row)
            train(spec, listener=self, stop=self._stop)
        except RunStopped:
            return "running", ""
        except Emc2Error as error:
            return "failed" if isinstance(error, _HOPELESS) else "lost", str(error)
        except Exception as error:  # whatever it is: one trial is not the end of the sweep
            return "lost", f"{type(error).__name__}: {error}"
        return "finished", ""
