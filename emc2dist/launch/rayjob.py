"""A plan as KubeRay's objects, and KubeRay's objects as the state of a job. Pure: nothing here talks to a cluster.

What is sent are two objects of one name:

    ConfigMap   the resolved spec, immutable
    RayJob      the manifest's cluster, with that spec mounted in every node's first container, which is Ray's, and the
                run's environment in its own; nodes for all its workers; and the driver's command

The environment goes into the containers and not into the RayJob's runtimeEnvYAML, which KubeRay hands to a shell in
double quotes, where `$(...)` in a value would be run.

If the head or the driver is lost, KubeRay makes a new cluster and runs the same command: the run has the same name, so
it resumes from its newest checkpoint.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from math import ceil
from typing import Any

import yaml

from emc2dist.config import Sweep
from emc2dist.errors import SpecError
from emc2dist.launch import manifest, placement
from emc2dist.launch.plan import SPEC_FILE, JobState, Plan, Status, printable

LABELS = {"app": "emc2dist"}
SPEC_FOLDER = "/etc/emc2dist/"
_RUN, _JOB = "emc2dist/run", "emc2dist/job"  # annotations, for a run's name may be too long for a label
_VOLUME = "emc2dist-spec"
_LONGEST = 47  # KubeRay appends to a RayJob's name to name its cluster, and to that to name a service: 63 in all


def name_of(job: str) -> str:
    """The objects' name, for a plan's id: a DNS label of at most 47 characters that begins with a letter."""
    run, _, digest = job.rpartition("-")
    slug = re.sub(r"[^a-z0-9]+", "-", run.lower())
    return f"emc2dist-{slug[: _LONGEST - len(f'emc2dist--{digest}')].strip('-')}-{digest}"


def render(plan: Plan) -> list[dict[str, Any]]:
    """The manifests of a plan. Raises SpecError where its manifest is no RayCluster, or too small for the run."""
    assert plan.launch.cluster is not None, "Launch refuses kuberay without it"
    metadata = {
        "name": name_of(plan.id),
        "namespace": plan.launch.namespace,
        "labels": LABELS,
        "annotations": {_RUN: plan.run, _JOB: plan.id},
    }
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "immutable": True}
    cluster = _cluster(plan)
    job = {
        "entrypoint": plan.entrypoint(SPEC_FOLDER),
        "entrypointNumCpus": plan.base.resources.driver_cpus,
        "backoffLimit": plan.launch.retries,
        "shutdownAfterJobFinishes": True,
        "submitterPodTemplate": _submitter(cluster["headGroupSpec"]["template"]),
        "rayClusterSpec": cluster,
    }
    return [
        {**config, "data": {SPEC_FILE: plan.spec}},
        {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": job},
    ]


def text_of(objects: Sequence[Mapping[str, Any]]) -> str:
    """The objects as YAML documents."""
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=120)


def state_of(rayjob: Mapping[str, Any]) -> JobState:
    """The state of a RayJob of ours, by what KubeRay says."""
    status = part(rayjob, "status")
    known, said = _status(status), str(status.get("message") or "")
    exit_code = {"succeeded": 0, "failed": _exit_code(said) or 1}.get(known)
    lines = [line.strip() for line in said.splitlines() if line.strip()]  # after Ray's own, the end of the driver's log
    times = {**status, **part(status, "rayJobInfo")}
    annotations = part(rayjob, "metadata", "annotations")
    return JobState(
        id=printable(annotations[_JOB]),
        run=printable(annotations[_RUN]),
        status=known,
        exit_code=exit_code,
        message=printable(
            lines[-1] if lines else status.get("reason") or status.get("jobDeploymentStatus") or "submitted"
        ),
        started=_time(times.get("startTime")),
        ended=_time(times.get("endTime")),
    )


def is_ours(rayjob: Any) -> bool:
    """Whether a RayJob came from `render`."""
    metadata = part(rayjob, "metadata")
    return {_RUN, _JOB} <= set(part(metadata, "annotations")) and isinstance(metadata.get("name"), str)


def part(tree: Any, *keys: str) -> Mapping[str, Any]:
    """The mapping below the keys; an empty one where Kubernetes leaves it out, or sets null."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree if isinstance(tree, Mapping) else {}


def _status(status: Mapping[str, Any]) -> Status:
    job = status.get("jobStatus") or ""
    match status.get("jobDeploymentStatus"):
        case "Complete":
            return "stopped" if job == "STOPPED" else "failed" if job == "FAILED" else "succeeded"
        case "Failed" | "ValidationFailed":
            return "failed"
        case "Suspended":
            return "stopped"
    # Until KubeRay has wound up, a job that has ended is still running: its logs may be incomplete.
    return "pending" if job in ("", "PENDING") else "running"


def _exit_code(said: str) -> int | None:
    """By Ray, which gives KubeRay no number."""
    code = re.search(r"failed with exit code (-?\d{1,5})\b", said)
    return int(code[1]) if code else None


def _time(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


class _Dumper(yaml.SafeDumper):
    """Text of several lines as it stands, and no references, for people to read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _cluster(plan: Plan) -> dict[str, Any]:
    """The manifest's spec, made ready for the run."""
    source = str(plan.launch.cluster)
    tree = manifest.read(source)
    if not manifest.is_raycluster(tree):
        raise SpecError(f"launch.cluster: {source} is for `ray up`; target: kuberay needs a RayCluster")
    placed = placement.place(plan.base, manifest.groups(tree, source), source)
    spec: dict[str, Any] = copy.deepcopy(tree["spec"])
    workers = spec.get("workerGroupSpecs", [])
    for group, declared in zip(workers, manifest.groups(tree, source)[1:], strict=True):
        only_gpus = declared.has["GPU"] > 0 and not (declared.has["CPU"] or declared.has["MiB"])
        idle = only_gpus and not isinstance(plan.job, Sweep)  # a sweep's trials take what there is
        _size(group, placed.nodes.get(declared.name, 0), idle, bool(spec.get("enableInTreeAutoscaling")))
    for group in (spec["headGroupSpec"], *workers):
        _equip(group["template"]["spec"], plan)
    return spec


def _size(group: dict[str, Any], nodes: int, idle: bool, autoscaled: bool) -> None:
    """Nodes for what the run places in the group.

    They are not fewer than declared, except where any more would be `idle`, for nothing but workers can be there: a GPU
    that no worker takes only costs. With an autoscaler it is that which adds nodes.
    """
    needed, declared = ceil(nodes / group.get("numOfHosts", 1)), group.get("replicas", 0)
    if not autoscaled:
        group["replicas"] = needed if idle else max(needed, declared)
        group["minReplicas"] = min(group.get("minReplicas", 0), group["replicas"])


def _equip(pod: dict[str, Any], plan: Plan) -> None:
    """Give a node's first container the spec and the run's environment."""
    container, run = pod["containers"][0], plan.environment()
    # Kubernetes expands $(NAME) in a value; $$ stands for one that stays.
    values = [{"name": name, "value": value.replace("$", "$$")} for name, value in run.items()]
    container["env"] = [each for each in container.get("env", []) if each.get("name") not in run] + values
    mount = {"name": _VOLUME, "mountPath": SPEC_FOLDER.rstrip("/"), "readOnly": True}
    container["volumeMounts"] = [*container.get("volumeMounts", []), mount]
    volume = {"name": _VOLUME, "configMap": {"name": name_of(plan.id)}}
    pod["volumes"] = [*pod.get("volumes", []), volume]


def _submitter(head: Mapping[str, Any]) -> dict[str, Any]:
    """The pod that submits the job and prints its output, where the head may run.

    KubeRay's own would run as the image's user, and a network policy for `LABELS` would not let it in.
    """
    pod, container = head["spec"], head["spec"]["containers"][0]
    return {
        "metadata": {"labels": {**head.get("metadata", {}).get("labels", {}), **LABELS}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            **{key: pod[key] for key in ("imagePullSecrets", "nodeSelector", "tolerations") if key in pod},
            "containers": [
                {
                    "name": "submitter",
                    "image": container["image"],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    "resources": {
                        "requests": {"cpu": "500m", "memory": "1Gi"},
                        "limits": {"cpu": "1", "memory": "1Gi"},
                    },
                }
            ],
        },
    }
