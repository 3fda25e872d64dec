"""The job that a spec becomes, the same wherever it goes; and the targets that can run it.

The id of a job is made of the name and of all that the spec says, so a submission that is repeated, after a lost
connection for instance, names the job that it has already started. The entrypoint is a command of ours and never
comes from a spec.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Literal, Protocol

from emc2dist import files
from emc2dist.config import BUILT_IN, Launch, Spec, Sweep, base_of, dump
from emc2dist.errors import LaunchError, SpecError

SPEC_FILE = "spec.yaml"
GRACE = "RAY_JOB_STOP_WAIT_TIME_S"
"""The variable by which Ray is told what time a job has to end, seconds."""
_RAYS_GRACE_S = 3.0

Status = Literal["pending", "running", "succeeded", "failed", "stopped"]
FINAL: frozenset[Status] = frozenset({"succeeded", "failed", "stopped"})


@dataclass(frozen=True)
class Plan:
    """A job that could be sent."""

    id: str
    """Name of the run or the sweep, '-', and eight hexadecimal digits of a hash of the spec."""
    job: Spec | Sweep
    """Resolved: it means the same wherever the job runs."""

    @property
    def run(self) -> str:
        """The name of the run or the sweep."""
        return self.job.name

    @property
    def spec(self) -> str:
        """The job's spec, YAML; it finds it in a file."""
        return dump(self.job)

    @property
    def base(self) -> Spec:
        """The spec of a run of it, see `base_of`."""
        return base_of(self.job)

    @property
    def launch(self) -> Launch:
        """The place where it is started, and how."""
        return self.base.launch

    @property
    def workers(self) -> int:
        """Workers at once, of all trials; where a sweep leaves that to the cluster, those of one."""
        trials = self.job.budget.concurrent if isinstance(self.job, Sweep) else None
        return self.base.workers * (trials or 1)

    @property
    def over(self) -> frozenset[Status]:
        """The ends of a job that leave nothing to do. A sweep that succeeds may have lost trials, to be tried again."""
        return frozenset() if isinstance(self.job, Sweep) else frozenset({"succeeded"})

    def entrypoint(self, folder: str = "") -> str:
        """The job's command, for a spec that lies in `folder`. Nothing in it is for a shell to expand."""
        return f"emc2dist {'sweep' if isinstance(self.job, Sweep) else 'train'} {folder}{SPEC_FILE}"

    def environment(self) -> dict[str, str]:
        """Environment variables of the job and of all its processes."""
        return {**self.launch.environment, GRACE: str(self.launch.stop_grace_s)}


@dataclass(frozen=True)
class JobState:
    """The state of a submitted job."""

    id: str
    run: str
    status: Status
    exit_code: int | None
    """The driver's, where it has ended and the target tells."""
    message: str
    """What the target says of it, one line."""
    started: float | None
    """Unix time, seconds."""
    ended: float | None

    @property
    def final(self) -> bool:
        """Whether it has ended."""
        return self.status in FINAL


class Target(Protocol):
    """A place that runs jobs. Every wait has a limit; a target that does not answer raises LaunchError."""

    def submit(self, plan: Plan) -> JobState:
        """Start the job, unless it is pending or running, or is over; then that one is returned.

        A job of this plan that has ended otherwise is started again, and goes on. Raises LaunchError where another job
        of the same name has not ended.
        """

    def state(self, job: str) -> JobState:
        """The job of this id, or the newest one of the run of this name. Raises LaunchError where there is none."""

    def jobs(self) -> list[JobState]:
        """All jobs of ours, newest first."""

    def logs(self, job: str, *, follow: bool) -> Iterator[str]:
        """The driver's output, piece by piece; `follow` goes on to the job's end, over lost connections."""

    def stop(self, job: str) -> JobState:
        """Ask the job to write a checkpoint and end, and wait until it has ended."""


def plan_of(job: Spec | Sweep) -> Plan:
    """The job of a spec. Raises SpecError where a path of the spec would mean another place on the cluster."""
    job = job.model_copy(update={"base": _anywhere(job.base)}) if isinstance(job, Sweep) else _anywhere(job)
    digest = hashlib.sha256(dump(job).encode()).hexdigest()[:8]
    return Plan(f"{job.name}-{digest}", job)


def grace_of(environment: Mapping[Any, Any]) -> float:
    """Seconds that Ray gives a job of that environment to end: its own default where that says no number."""
    try:
        seconds = float(environment[GRACE])
    except (KeyError, TypeError, ValueError):
        return _RAYS_GRACE_S
    return seconds if 0 <= seconds < inf else _RAYS_GRACE_S


def printable(said: object) -> str:
    """A name that somebody else has given, for a terminal: without characters that would steer it."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in str(said))


def refuse_second(plan: Plan, jobs: Iterable[JobState]) -> None:
    """Raise LaunchError where another job of the plan's run has not ended: two must not write one run folder."""
    unfinished = (job.id for job in jobs if job.run == plan.run and not job.final)
    others = [job for job in unfinished if not job.startswith(plan.id)]
    if others:
        raise LaunchError(
            f"{plan.run}: job {others[0]} runs under this name, with another spec; wait for it, end it with "
            f"`emc2dist stop {others[0]}`, or give this run another name"
        )


def _anywhere(spec: Spec) -> Spec:
    """The spec with paths that hold where it is sent."""
    if spec.launch.target == "local":
        return _absolute(spec)
    begins = {"encoder.weights": spec.encoder.weights, "start_from": spec.start_from}
    for key, path in {"run_dir": spec.run_dir, "data.path": spec.data.path, **begins}.items():
        if path is not None:
            _refuse_relative(key, path)
    return spec


def _refuse_relative(key: str, path: str) -> None:
    if not (files.is_remote(path) or path.startswith(("/", "file:///")) or (key == "data.path" and path in BUILT_IN)):
        raise SpecError(
            f"{key}: {path} is a path on this machine; give one that the cluster's nodes see: s3://bucket/folder, "
            "or an absolute path of a file system that they share"
        )


def _absolute(spec: Spec) -> Spec:
    """The same machine, but another working directory."""

    def absolute(path: str | None) -> str | None:
        return path if path is None or files.is_remote(path) else str(files.local(path).resolve())

    path = spec.data.path
    data = spec.data.model_copy(update={"path": path if path in BUILT_IN else absolute(path)})
    encoder = spec.encoder.model_copy(update={"weights": absolute(spec.encoder.weights)})
    here = {"run_dir": absolute(spec.run_dir), "start_from": absolute(spec.start_from)}
    return spec.model_copy(update=here | {"data": data, "encoder": encoder})
