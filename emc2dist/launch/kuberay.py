"""A run on a cluster of its own on Kubernetes: a RayJob of KubeRay, sent and watched by kubectl.

How a job is stopped. To suspend or delete a RayJob is to delete its pods: KubeRay does not wait for the job to end
(its controllers/ray/rayjob_controller.go says so), and the pods of workers and head go at the same time. So a job that
Ray has begun is stopped by Ray, `ray job stop` in the head's container, which asks for no more than the right to
`kubectl exec`: the driver is signalled and has `launch.stop_grace_s` to write a checkpoint, KubeRay sees the job
STOPPED, which it does not retry, and shuts the cluster down. Only a job that Ray has not begun is suspended.

A job that is started again is first deleted with all it owns, so there are never two clusters that write one run.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from typing_extensions import override

from emc2dist.errors import LaunchError
from emc2dist.launch.kubectl import Kubectl
from emc2dist.launch.plan import JobState, Plan, Target, grace_of, refuse_second
from emc2dist.launch.rayjob import LABELS, is_ours, name_of, part, render, state_of, text_of

_KIND = "rayjobs.ray.io"
_PATIENCE_S = 600.0  # that Kubernetes may take to delete pods, or be out of reach while logs are followed


def preview(plan: Plan) -> str:
    """The manifests of `KubeRay.submit`, as YAML. Raises SpecError as `rayjob.render` does."""
    return text_of(render(plan))


class KubeRay(Target):
    """The target of `launch.target: kuberay`, in one namespace, asked every `poll_s` seconds where it waits."""

    def __init__(self, namespace: str, *, poll_s: float = 2.0, patience_s: float = _PATIENCE_S) -> None:
        self._kubectl = Kubectl(namespace)
        self._poll_s, self._patience_s = poll_s, patience_s

    @override
    def submit(self, plan: Plan) -> JobState:
        name, objects = name_of(plan.id), preview(plan)
        refuse_second(plan, self.jobs())
        found = self._get(name)
        if found is not None:
            state = state_of(found)
            if not state.final or state.status in plan.over:
                return state
            self._delete(name)
        self._kubectl("apply", "--filename=-", stdin=objects)
        return self.state(plan.id)

    @override
    def state(self, job: str) -> JobState:
        return state_of(self._find(job))

    @override
    def jobs(self) -> list[JobState]:
        return [state_of(rayjob) for rayjob in self._list()]

    @override
    def logs(self, job: str, *, follow: bool) -> Iterator[str]:
        """What the submitter's pod has printed; it is there until the job is deleted or suspended."""
        name = self._find(job)["metadata"]["name"]
        seen, answered = "", time.monotonic()
        while True:
            final = not follow
            try:
                # Before its logs: what it printed before it ended is then among them.
                rayjob = self._get(name)
                final = final or rayjob is None or state_of(rayjob).final
                answered = time.monotonic()
                for stamp, line in self._printed(name, after=seen, follow=not final):
                    seen, answered = stamp, time.monotonic()
                    yield line
            except LaunchError:  # also while there is no pod yet, and when a request has run its time
                if not follow or time.monotonic() - answered > self._patience_s:
                    raise
            if final:
                return
            time.sleep(self._poll_s)

    @override
    def stop(self, job: str) -> JobState:
        rayjob = self._find(job)
        state, reported = state_of(rayjob), part(rayjob, "status").get("jobStatus") or ""
        if state.final:
            return state
        deadline_s = self._patience_s + _grace(rayjob)
        if reported in ("PENDING", "RUNNING"):
            self._ask_ray_to_stop(rayjob)
        elif reported not in ("STOPPED", "SUCCEEDED"):  # which only have to be wound up
            self._kubectl("patch", _KIND, name_of(state.id), "--type=merge", '--patch={"spec":{"suspend":true}}')
        self._until(lambda: self.state(state.id).final, deadline_s, f"{state.id} has not ended")
        return self.state(state.id)

    def _ask_ray_to_stop(self, rayjob: dict[str, Any]) -> None:
        status, container = part(rayjob, "status"), _container(rayjob).get("name")
        pod, job = part(status, "rayClusterStatus", "head").get("podName"), status.get("jobId")
        if not (pod and container and job):
            raise LaunchError(
                f"{rayjob['metadata']['name']}: KubeRay does not name the head's pod, its container and the job in it "
                f"({pod}, {container}, {job}); try again"
            )
        command = ("ray", "job", "stop", "--no-wait", "--address=http://127.0.0.1:8265", job)
        self._kubectl("exec", pod, f"--container={container}", "--", *command)

    def _printed(self, name: str, *, after: str, follow: bool) -> Iterator[tuple[str, str]]:
        """Pairs of time stamp and line that the submitter printed later than the stamp `after`, to nanoseconds."""
        words = ["logs", f"job/{name}", "--timestamps", f"--follow={str(follow).lower()}"]
        if after:
            words.append(f"--since-time={after}")  # which Kubernetes cuts to seconds
        for line in self._kubectl.lines(*words):
            stamp, _, text = line.partition(" ")
            if stamp > after and (line.endswith("\n") or not follow):  # a connection may break within a line
                yield stamp, text

    def _find(self, job: str) -> dict[str, Any]:
        rayjobs = self._list()
        by_id = [rayjob for rayjob in rayjobs if state_of(rayjob).id == job]
        of_run = [rayjob for rayjob in rayjobs if state_of(rayjob).run == job]
        for rayjob in by_id + of_run:
            return rayjob
        raise LaunchError(
            f"{job}: no such job, and no run of this name, in namespace {self._kubectl.namespace}; "
            "`emc2dist list` names those that are there"
        )

    def _list(self) -> list[dict[str, Any]]:
        labels = ",".join(f"{name}={value}" for name, value in LABELS.items())
        found = _parsed(self._kubectl("get", _KIND, f"--selector={labels}", "--output=json"), "items")
        ours = [rayjob for rayjob in found["items"] or [] if is_ours(rayjob)]
        return sorted(ours, key=lambda rayjob: str(rayjob["metadata"].get("creationTimestamp")), reverse=True)

    def _get(self, name: str) -> dict[str, Any] | None:
        found = self._kubectl("get", _KIND, name, "--ignore-not-found", "--output=json")
        rayjob = _parsed(found, "metadata") if found.strip() else None
        if rayjob is not None and not is_ours(rayjob):
            raise LaunchError(f"{name}: is a RayJob of somebody else's; give the run another name, or delete that one")
        return rayjob

    def _delete(self, name: str) -> None:
        self._kubectl("delete", _KIND, name, "--cascade=foreground", "--wait=false", "--ignore-not-found")
        self._until(lambda: self._get(name) is None, self._patience_s, f"{name} has not been deleted")

    def _until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise LaunchError(f"{what} in {seconds:g} s; look at `kubectl describe {_KIND}`, and try again")
            time.sleep(self._poll_s)


def _parsed(text: str, key: str) -> dict[str, Any]:
    """An answer of kubectl's that has that key. Raises LaunchError where it is none of that."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or key not in found or not isinstance(found[key], dict | list | None):
        raise LaunchError(
            f"kubectl get {_KIND}: gives no JSON of Kubernetes' but {text[:100]!r}; is it the real kubectl?"
        )
    return found


def _grace(rayjob: dict[str, Any]) -> float:
    """Seconds that Ray gives the driver to end, from the head's environment; Ray's own where that does not say."""
    variables = _container(rayjob).get("env") or []
    return grace_of({part(each).get("name"): part(each).get("value") for each in variables})


def _container(rayjob: dict[str, Any]) -> Mapping[str, Any]:
    """The head's, in which Ray is."""
    pod = part(rayjob, "spec", "rayClusterSpec", "headGroupSpec", "template", "spec")
    containers = pod.get("containers")
    return part(containers[0]) if isinstance(containers, list) and containers else {}
