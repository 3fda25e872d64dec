"""From the facts of single steps to one row: what the interval comes to, over its steps and all ranks.

What is averaged goes through as (total, weight): the totals and the weights are summed over steps and ranks, and only
then divided, so a step with few valid proposals, or a rank with few carried states, counts for what it is.
"""

from collections import defaultdict
from collections.abc import Mapping
from time import perf_counter

import torch
from torch import Tensor

from emc2dist.core.diagnostics import fact_value
from emc2dist.train import collectives
from emc2dist.train.step import Facts
from emc2dist.train.timing import Stopwatch

_WAITS = ("data_wait", "store_wait")
_MOST_WAITING = 2_000
"""Facts that stay on the device, 512 bytes each there, before they are fetched."""


class Meter:
    """Facts since the last reading; `images_per_step` counts those of all ranks."""

    def __init__(self, images_per_step: int, stopwatch: Stopwatch) -> None:
        self._images_per_step, self._stopwatch = images_per_step, stopwatch
        self.restart()

    def restart(self) -> None:
        """Forget, and start the clock: what lies between (evaluation, checkpoint) is not training time."""
        self._totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._waiting: list[tuple[str, Tensor, Tensor | None]] = []
        self._ages: Mapping[str, Tensor] = {}
        self._retries, self._steps = 0, 0
        self._stopwatch.restart()
        self._began = perf_counter()

    def add(self, facts: Facts) -> None:
        """Take one step's facts; they stay on the device until read."""
        for name, fact in facts.values.items():
            total, weight = fact if isinstance(fact, tuple) else (fact, None)
            self._waiting.append((name, total.detach(), None if weight is None else weight.detach()))
        if len(self._waiting) > _MOST_WAITING:
            self._fetch()
        traffic = {"data_hits": facts.traffic.hits, "data_misses": facts.traffic.misses}
        for name, number in {**traffic, "data_fetched_bytes": facts.traffic.fetched_bytes}.items():
            self._count(name, number, 1)
        self._retries += facts.traffic.retries
        self._ages = facts.ages
        self._steps += 1

    def read(self) -> dict[str, float]:
        """The row, and start anew. Every rank calls it."""
        row = self._means() | self._percentiles() | self._seconds()
        retries = collectives.gather_numbers(torch.tensor([float(self._retries)])).sum()
        images = self._images_per_step * self._steps
        row |= {"data_retries": int(retries), "images": images}
        self.restart()
        return row

    def _means(self) -> dict[str, float]:
        self._fetch()
        names = sorted(self._totals)
        pairs = torch.tensor([self._totals[name] for name in names], dtype=torch.float64)
        totals, weights = collectives.gather_numbers(pairs).sum(0).unbind(1)
        means = zip(names, totals.tolist(), weights.tolist(), strict=True)
        return {name: fact_value(name, total, weight) for name, total, weight in means if weight}

    def _fetch(self) -> None:
        """Add up the facts that wait, all fetched at once: one by one a GPU would be asked for each."""
        numbers = iter(_on_host([n for _, *pair in self._waiting for n in pair if n is not None]))
        for name, _, weight in self._waiting:
            self._count(name, next(numbers), 1 if weight is None else next(numbers))
        self._waiting = []

    def _count(self, name: str, total: float, weight: float) -> None:
        self._totals[name][0] += total
        self._totals[name][1] += weight

    def _percentiles(self) -> dict[str, float]:
        """Of the last step, over all ranks."""
        row = {}
        for name in sorted(self._ages):
            ages = collectives.gather_numbers(self._ages[name].double())
            known = ages[ages >= 0]
            if len(known):
                row[f"{name}_p95_steps"] = float(known.quantile(0.95))
        return row

    def _seconds(self) -> dict[str, float]:
        """Of a step: whole and parts."""
        whole = (perf_counter() - self._began) / self._steps
        parts = self._stopwatch.read()
        ranks = collectives.gather_numbers(torch.tensor(list(parts.values()), dtype=torch.float64)) / self._steps
        row = {f"{name}_seconds": seconds for name, seconds in zip(parts, ranks.mean(0).tolist(), strict=True)}
        slowest = zip(parts, ranks.amax(0).tolist(), strict=True)
        row |= {f"{name}_slowest_seconds": seconds for name, seconds in slowest if name in _WAITS}
        return row | {"step_seconds": whole, "images_per_second": self._images_per_step / whole}


def _on_host(numbers: list[Tensor]) -> list[float]:
    """Tensors of one number each, of any types, by a copy for each device and type."""
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
    for place, number in enumerate(numbers):
        kinds[number.device, number.dtype].append(place)
    found = [0.0] * len(numbers)
    for places in kinds.values():
        values = torch.stack([numbers[place] for place in places]).double().tolist()
        for place, value in zip(places, values, strict=True):
            found[place] = value
    return found
