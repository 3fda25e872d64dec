"""Where the seconds of a step go.

Phases may be nested; a moment belongs to the innermost one, so the parts never add up to more than the whole. On a GPU
the marks are CUDA events: they stand in the GPU's own queue, so a phase takes what it takes there, and nothing waits
for a mark before it is read. A wait of the host counts as far as the GPU runs dry in it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from time import perf_counter
from typing import Any

import torch

PHASES = ("data_wait", "store_wait", "forward", "communication", "sweep", "backward", "optimiser")


class Stopwatch:
    """Adds up the seconds of each of `PHASES`."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        """Forget; not inside a phase."""
        self._phase = ""
        self._marks: list[tuple[str, Any]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Inside, time belongs to the phase `name`."""
        outer = self._phase
        self._enter(name)
        try:
            yield
        finally:
            self._enter(outer)

    def read(self) -> dict[str, float]:
        """Seconds of each phase since the last restart; not inside a phase."""
        totals = dict.fromkeys(("", *PHASES), 0.0)
        if self._cuda and self._marks:
            self._marks[-1][1].synchronize()
        for (name, began), (_, ended) in pairwise(self._marks):
            totals[name] += began.elapsed_time(ended) / 1000 if self._cuda else ended - began
        del totals[""]
        return totals

    def _enter(self, name: str) -> None:
        self._phase = name
        self._marks.append((name, self._mark()))

    def _mark(self) -> Any:
        if not self._cuda:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
