"""Whether a run can be placed on the nodes that a cluster's manifest declares, and on which.

Ray does not refuse what no node can hold: it waits for one, for ever. So the run's parts, driver, workers and shards,
are held against the groups of the manifest before anything starts. What is refused here could never have run; what
passes may still have to wait, for nodes or for other runs. An amount that the manifest does not tell refuses nothing.

Imports neither torch nor ray, so `emc2dist validate` stays instant.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from emc2dist.config import Spec
from emc2dist.errors import SpecError
from emc2dist.launch import manifest
from emc2dist.launch.manifest import ACCELERATOR, UNKNOWN, Group

# Labels that Ray or KubeRay may give a node by themselves; a manifest that does not state them does not deny them.
_FOUND_BY_RAY = frozenset(
    f"ray.io/{name}"
    for name in ("node-id", "node-group", "market-type", "availability-zone", "availability-region", "accelerator-type")
)


@dataclass(frozen=True)
class Placement:
    """The nodes that the parts of a run can go to."""

    lines: tuple[str, ...]
    """A line for each part: how many, of what size, on which groups."""
    nodes: Mapping[str, int]
    """Nodes that the run needs of a group, at least; groups that it does not need are left out."""


@dataclass(frozen=True)
class _Part:
    """Like processes of the run."""

    name: str
    """Of one: driver, worker or shard."""
    count: int
    takes: Mapping[str, float]
    """What one of them takes: CPU, GPU, and MiB of memory. What it does not ask for is left out."""
    homes: Sequence[Group]
    """The groups that may hold it."""
    why: str = ""
    """Why it takes that, where one may wonder."""

    def room(self, group: Group) -> float:
        """The number of them that one node of the group holds; UNKNOWN where nothing is known to limit them."""
        limits = [_times(unit, group.has[unit], amount) for unit, amount in self.takes.items()]
        return min(limits, default=UNKNOWN)


def check(spec: Spec) -> list[str]:
    """Lines that say what of the run goes where on the cluster of `launch.cluster`, which must be set.

    Raises:
        SpecError: the manifest cannot be read, or the run could never be placed; with the numbers.
    """
    assert spec.launch.cluster is not None
    tree = manifest.read(spec.launch.cluster)
    return list(place(spec, manifest.groups(tree, spec.launch.cluster), spec.launch.cluster).lines)


def place(spec: Spec, groups: Sequence[Group], source: str) -> Placement:
    """The placement of a run's parts on `groups`; `source` names them in messages. Raises SpecError, see `check`."""
    asked = spec.resources
    driver = _Part("driver", 1, _some(CPU=asked.driver_cpus), groups)
    workers = _workers(spec, groups, source)
    homes = _carrying(groups, asked.shard_labels, "resources.shard_labels", source)
    shards = _Part("shard", spec.shards, _some(MiB=asked.shard_mib or 0), homes)
    lines, nodes = [], dict[str, int]()
    for part, beside in ((driver, 0), (workers, _displaced(driver, workers)), (shards, 0)):
        taken = _fill(part, source, beside)
        nodes |= {name: max(count, nodes.get(name, 0)) for name, count in taken.items()}
        lines.append(_line(part, taken))
    return Placement(tuple(lines), nodes)


def _workers(spec: Spec, groups: Sequence[Group], source: str) -> _Part:
    asked = spec.resources
    homes = _carrying(groups, asked.worker_labels, "resources.worker_labels", source)
    gpus = sum(group.nodes * group.has["GPU"] for group in homes if group.nodes and group.has["GPU"])
    enough = gpus >= spec.workers * asked.worker_gpus  # as emc2dist.run.cluster decides on the running cluster
    if spec.device == "cpu" or (spec.device == "auto" and not enough):
        cpus = 1.0 if asked.worker_cpus is None else asked.worker_cpus
        why = f" (device: auto finds {gpus:g} GPUs)" if spec.device == "auto" else ""
        return _Part("worker", spec.workers, _some(CPU=cpus), homes, why)
    homes = homes if asked.accelerator is None else _with_accelerator(homes, asked.accelerator, source)
    return _Part("worker", spec.workers, _some(GPU=asked.worker_gpus, CPU=asked.worker_cpus or 0.0), homes)


def _some(**amounts: float) -> dict[str, float]:
    return {unit: amount for unit, amount in amounts.items() if amount}


def _with_accelerator(homes: Sequence[Group], wanted: str, source: str) -> list[Group]:
    """The groups that have such GPUs, or may: most manifests do not tell."""
    found = [group for group in homes if group.labels.get(ACCELERATOR, wanted) == wanted]
    if any(group.has["GPU"] for group in found):
        return found
    kinds = sorted({group.labels[ACCELERATOR] for group in homes if ACCELERATOR in group.labels})
    raise SpecError(
        f"resources.accelerator: {wanted}, but the groups of {source} that may hold workers have "
        f"{', '.join(kinds) or 'no GPUs'}"
    )


def _carrying(groups: Sequence[Group], labels: Mapping[str, str], key: str, source: str) -> list[Group]:
    """The groups that carry the labels, or may."""
    found = [group for group in groups if all(_meets(group, name, value) for name, value in labels.items())]
    if found:
        return found
    carried = sorted({f"{name}: {value}" for group in groups for name, value in group.labels.items()})
    for name, value in labels.items():
        if not any(_meets(group, name, value) for group in groups):
            nearest = difflib.get_close_matches(f"{name}: {value}", carried, n=1, cutoff=0.0)
            hint = f"the nearest that one carries is {nearest[0]}" if nearest else "they carry none"
            raise SpecError(f"{key}: no group of {source} carries {name}: {value}; {hint}")
    wanted = ", ".join(f"{name}: {value}" for name, value in labels.items())
    raise SpecError(f"{key}: no group of {source} carries all of {wanted}; give labels that one group has together")


def _meets(group: Group, name: str, wanted: str) -> bool:
    """Ray's label selectors: a value, `in(a,b)`, and either after `!` for what must not be."""
    if name in _FOUND_BY_RAY and name not in group.labels:
        return True
    denied = wanted.startswith("!")
    among = re.fullmatch(r"in\((.*)\)", wanted.removeprefix("!"))
    values = re.split(r",\s*", among[1]) if among else [wanted.removeprefix("!")]
    return (group.labels.get(name) in values) != denied


def _times(unit: str, have: float, amount: float) -> float:
    """The number of amounts in what a node has."""
    if have == UNKNOWN:
        return UNKNOWN
    if unit == "GPU":  # a share is of one GPU: the rests of two do not make another
        return have * math.floor(1 / amount + 1e-9)
    return math.floor(have / amount + 1e-9)


def _displaced(driver: _Part, workers: _Part) -> int:
    """Workers' places that the driver takes with its CPUs, in the group where it takes the fewest."""
    if not (driver.takes and "CPU" in workers.takes):
        return 0
    losses = []
    for group in driver.homes:
        if group.nodes and driver.room(group):
            left = group.has["CPU"] - driver.takes["CPU"]
            beside = replace(group, has={**group.has, "CPU": left})
            ours = group in workers.homes and workers.room(group) < UNKNOWN
            losses.append(workers.room(group) - workers.room(beside) if ours else 0)
    return int(min(losses, default=0))


def _fill(part: _Part, source: str, beside: int) -> dict[str, int]:
    """Nodes that the part takes of each group, in the manifest's order, when `beside` places are not for it."""
    if not part.takes:
        return {}
    rooms = [(group, part.room(group)) for group in part.homes if group.nodes]
    if not any(room for _, room in rooms):
        raise SpecError(_too_large(part, source))
    left, taken = float(part.count + beside), dict[str, int]()
    for group, room in rooms:
        if left > 0 and room > 0:
            nodes = 1 if room == UNKNOWN else int(min(group.nodes, math.ceil(left / room)))
            taken[group.name] = nodes
            left -= nodes * room
    if left <= 0:
        return taken
    held = ", ".join(f"{group.name} {group.nodes:g} x {room:g}" for group, room in rooms if room)
    raise SpecError(
        f"{part.name}s: {part.count} of {_words(part.takes)}{part.why} do not fit on {source}, which has room for "
        f"{part.count - left:g}{' beside the driver' if beside else ''} (nodes x {part.name}s on a node: {held}); "
        "ask for fewer or less, or declare more nodes"
    )


def _too_large(part: _Part, source: str) -> str:
    keys = {"CPU": f"resources.{part.name}_cpus", "GPU": "resources.worker_gpus", "MiB": "resources.shard_mib"}
    have = (f"{group.name} {_words({unit: group.has[unit] for unit in part.takes})}" for group in part.homes)
    return (
        f"{keys[next(iter(part.takes))]}: a {part.name} takes {_words(part.takes)}, which no node that may hold it "
        f"has; by {source} they have: {', '.join(have)}"
    )


def _line(part: _Part, taken: Mapping[str, int]) -> str:
    if not part.takes:
        where = "the head" if part.name == "driver" else f"any of {', '.join(group.name for group in part.homes)}"
        return f"{part.name}: {part.count}, asking for nothing, on {where}"
    unknown = {group.name for group in part.homes if part.room(group) == UNKNOWN}
    sizes = {name: f"{nodes} nodes" if nodes > 1 else "1 node" for name, nodes in taken.items()}
    sizes |= {name: "size unknown" for name in taken.keys() & unknown}
    where = ", ".join(f"{name} ({size})" for name, size in sizes.items())
    return f"{part.name}: {part.count} of {_words(part.takes)}{part.why}, on {where}"


def _words(amounts: Mapping[str, float]) -> str:
    return " and ".join(
        f"{unit} unknown" if amount == UNKNOWN else f"{amount:.10g} {unit}" for unit, amount in amounts.items()
    )
