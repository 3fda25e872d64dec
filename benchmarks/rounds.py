"""Rounds in which every contestant takes its turn, and what is told of them: medians, quartiles, ratios round by round.

A ratio is taken within a round, so that what else the machine does meets both sides of it alike.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from statistics import median, quantiles
from typing import NamedTuple, TypeVar

_Found = TypeVar("_Found")


def in_turns(contestants: Mapping[str, Callable[[], _Found]], rounds: int) -> dict[str, list[_Found]]:
    """What each of them finds in each round; every second round goes backwards. A first round is thrown away."""
    found: dict[str, list[_Found]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        names = list(contestants)
        for name in names if number % 2 == 0 else reversed(names):
            outcome = contestants[name]()
            if number > 0:
                found[name].append(outcome)
    return found


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median and, in brackets, the quartiles."""
    low, _, high = quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return f"{median(values):,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours over theirs, round by round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


class Cost(NamedTuple):
    """What one turn took, both in one unit."""

    wall: float
    """By the clock."""
    cpu: float
    """Of the CPU."""


def compared(ours: str, found: Mapping[str, Sequence[Cost]]) -> str:
    """A row of a table for each contestant: its costs, and `ours` over them, by the clock and by CPU time."""
    lines = []
    for name, costs in found.items():
        wall = ratios([cost.wall for cost in found[ours]], [cost.wall for cost in costs])
        cpu = ratios([cost.cpu for cost in found[ours]], [cost.cpu for cost in costs])
        cells = [spread([cost.wall for cost in costs]), spread([cost.cpu for cost in costs]), spread(wall), spread(cpu)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def load() -> str:
    """The machine's load average of the last minute, for a line under the table."""
    return f"{os.getloadavg()[0]:.1f}"
