"""Listeners, which are told of a run's rows as they come.

    terminal.py     a person, on stderr: a progress bar, or plain lines in a log
    prometheus.py   the newest values, on an endpoint of the run and on Ray's
    tensorboard.py  event files in the run folder
    alarms.py       warnings in plain words where a run goes wrong
    trackers.py     Weights & Biases, MLflow; and which of these a spec asks for

`emc2dist.run.monitor` tells them, on the driver.
"""

from typing import Protocol

from emc2dist.metrics import Row


class Listener(Protocol):
    """It is told of a run's rows as they come, on a thread, and of what a person should know."""

    def show(self, row: Row) -> None:
        """Take a row."""

    def say(self, text: str) -> None:
        """Take a message for people."""

    def close(self) -> None:
        """The run is over."""
