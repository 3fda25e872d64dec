"""A cluster's manifest: the groups of like nodes that it declares, with what Ray will see on a node of each.

Two kinds are known by their keys, a RayCluster of KubeRay and what `ray up` takes. Nothing here talks to a cluster.

RayCluster, by the rules of KubeRay 1.6 (its controllers/ray/common/pod.go): the group's `resources` go before its
`rayStartParams`, and those before the limits of the first container, which is Ray's; CPUs without a limit are those
requested, and are rounded up. Memory is the whole limit: KubeRay gives it to `ray start --memory`, which then sets
nothing aside. (A `ray start` without it keeps 30% of what is free for the object store.)

`ray up`: what a node type's `resources` say. What they leave out, the launcher looks up at the cloud or Ray finds on
the node, so here it is unknown: no limit is assumed, and nothing is refused for it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from emc2dist.config import text
from emc2dist.errors import SpecError

ACCELERATOR = "ray.io/accelerator-type"
UNKNOWN = math.inf
MIB = 2**20


@dataclass(frozen=True)
class Group:
    """Nodes that are alike. `UNKNOWN` stands for what the manifest does not tell."""

    name: str
    nodes: float
    """As many as there can be."""
    has: Mapping[str, float]
    """What Ray can give away of one node: CPU, GPU, and MiB of memory."""
    labels: Mapping[str, str]


def read(path: str) -> dict[str, Any]:
    """The manifest's tree. Raises SpecError where it cannot be read or is neither of the two kinds."""
    try:
        tree = yaml.safe_load(text.read(path, "the cluster's manifest"))
    except SpecError as error:
        raise SpecError(f"launch.cluster: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none; brackets without end
        raise SpecError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(tree, dict) or not (is_raycluster(tree) or "available_node_types" in tree):
        raise SpecError(
            f"{path}: neither a RayCluster of KubeRay (kind: RayCluster) nor what `ray up` takes "
            "(available_node_types); launch.cluster names one of them"
        )
    return tree


def is_raycluster(tree: Mapping[str, Any]) -> bool:
    """Whether the manifest is for KubeRay."""
    return tree.get("kind") == "RayCluster"


def groups(tree: Mapping[str, Any], source: str) -> list[Group]:
    """The manifest's groups, the head's first; `source` names it in messages. Raises SpecError at a bad key."""
    return _of_raycluster(tree, source) if is_raycluster(tree) else _of_launcher(tree, source)


def _of_raycluster(tree: Mapping[str, Any], source: str) -> list[Group]:
    spec = _field(tree, "spec", dict, f"{source}: ")
    where = f"{source}: spec."
    head = _field(spec, "headGroupSpec", dict, where)
    found = [_pods(head, "head", "headgroup", 1, f"{where}headGroupSpec.")]
    autoscaled = bool(spec.get("enableInTreeAutoscaling"))
    for position, group in enumerate(_field(spec, "workerGroupSpecs", list, where, [])):
        at = f"{where}workerGroupSpecs[{position}]."
        name = _field(group, "groupName", str, at)
        fixed = UNKNOWN if autoscaled else _field(group, "replicas", int, at, 0)
        nodes = _field(group, "maxReplicas", int, at) if "maxReplicas" in group else fixed
        found.append(_pods(group, name, name, nodes * _field(group, "numOfHosts", int, at, 1), at))
    return found


_LIMITS, _REQUESTS = (f"template.spec.containers[0].resources.{kind}" for kind in ("limits", "requests"))
_CPUS = (("resources", "cpu"), ("rayStartParams", "num-cpus"), (_LIMITS, "cpu"), (_REQUESTS, "cpu"))
_GPU = r".*gpu|nvidia\.com/mig-.*"
_GPUS = (("resources", _GPU), ("rayStartParams", "num-gpus"), (_LIMITS, _GPU))
_MEMORY = (("resources", "memory"), ("rayStartParams", "memory"), (_LIMITS, "memory"))


def _pods(group: Mapping[str, Any], name: str, label: str, nodes: float, where: str) -> Group:
    template = _field(group, "template", dict, where)
    pod = _field(template, "spec", dict, f"{where}template.")
    containers = _field(pod, "containers", list, f"{where}template.spec.")
    if not containers:
        raise SpecError(f"{where}template.spec.containers: empty; the first container runs Ray")
    at = f"{where}template.spec.containers[0]."
    asked = _field(_mapping(containers[0], at), "resources", dict, at, {})
    tables = {
        "resources": _field(group, "resources", dict, where, {}),
        "rayStartParams": _field(group, "rayStartParams", dict, where, {}),
        _LIMITS: _field(asked, "limits", dict, f"{at}resources.", {}),
        _REQUESTS: _field(asked, "requests", dict, f"{at}resources.", {}),
    }
    has = {
        "CPU": _amount(tables, _CPUS, UNKNOWN, where),
        "GPU": _amount(tables, _GPUS, 0.0, where),
        "MiB": _amount(tables, _MEMORY, UNKNOWN, where) / MIB,
    }
    return Group(name, nodes, has, {"ray.io/node-group": label, **_labels(group, where)})


def _amount(
    tables: Mapping[str, Mapping[str, Any]], places: Sequence[tuple[str, str]], default: float, where: str
) -> float:
    """The first of `places`, pairs of a table and a pattern of its keys, that is there; whole, as Ray counts."""
    for table, pattern in places:
        for key in sorted(tables[table]):
            if re.fullmatch(pattern, key.lower()):
                amount = _quantity(tables[table][key], f"{where}{table}.{key}")
                return amount if amount == UNKNOWN else math.ceil(amount)
    return default


_SCALE = {"": 1.0, "m": 1e-3} | {
    unit + suffix: base ** (power + 1)
    for power, unit in enumerate("KMGTPE")
    for suffix, base in (("", 1e3), ("i", 1024.0))
}
_SCALE["k"] = _SCALE.pop("K")


def _quantity(value: Any, where: str) -> float:
    """Kubernetes' way to write a number: 16Gi, 500m, 1e9."""
    match = re.fullmatch(r"((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([a-zA-Z]*)", str(value))
    if not match or match[2] not in _SCALE:
        raise SpecError(f"{where}: {value!r} is no amount; write it as in 4, 500m or 16Gi")
    return float(match[1]) * _SCALE[match[2]]


def _of_launcher(tree: Mapping[str, Any], source: str) -> list[Group]:
    where = f"{source}: "
    types = _field(tree, "available_node_types", dict, where)
    head = _field(tree, "head_node_type", str, where)
    if head not in types:
        raise SpecError(f"{where}head_node_type: {head!r} is not one of available_node_types: {', '.join(types)}")
    most = _field(tree, "max_workers", int, where, 2)  # Ray's default
    found = []
    for name in sorted(types, key=lambda name: name != head):
        at = f"{where}available_node_types.{name}."
        kind = _mapping(types[name], at)
        nodes = min(most, _field(kind, "max_workers", int, at, 0 if name == head else most)) + (name == head)
        found.append(_instances(kind, name, nodes, at))
    return found


def _instances(kind: Mapping[str, Any], name: str, nodes: int, where: str) -> Group:
    resources = _field(kind, "resources", dict, where, {})
    has = {
        unit: _field(resources, key, (int, float), f"{where}resources.", UNKNOWN) / scale
        for unit, key, scale in (("CPU", "CPU", 1), ("GPU", "GPU", 1), ("MiB", "memory", MIB))
    }
    types = [key.removeprefix("accelerator_type:") for key in resources if key.startswith("accelerator_type:")]
    accelerator = {ACCELERATOR: types[0]} if types else {}
    return Group(name, nodes, has, accelerator | _labels(kind, where))


def _labels(group: Mapping[str, Any], where: str) -> dict[str, str]:
    labels = _field(group, "labels", dict, where, {})
    return {key: _field(labels, key, str, f"{where}labels.") for key in labels}


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise SpecError(f"{where.removesuffix('.')}: expected a mapping, got {value!r}")
    return value


_KINDS = {dict: "a mapping", list: "a list", str: "text", int: "a whole number"}


def _field(tree: Any, key: str, kind: Any, where: str, default: Any = None) -> Any:
    """`tree[key]`, of type `kind`; `where`, which ends where a key can follow, names the place in messages."""
    value = _mapping(tree, where).get(key, default)
    if value is None:
        raise SpecError(f"{where}{key}: missing")
    if not isinstance(value, kind) or isinstance(value, bool):
        raise SpecError(f"{where}{key}: expected {_KINDS.get(kind, 'a number')}, got {value!r}")
    return value
