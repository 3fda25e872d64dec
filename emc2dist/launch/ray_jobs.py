"""A running Ray cluster as a target, by its job API (Ray 2.60).

What Ray's own command line does not do: the driver's exit code is passed on; a log is followed over lost connections;
every request has a limit; and a job that was started is found again, not started twice.
"""

import logging
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import ray
import requests
import yaml
from ray.dashboard.modules.dashboard_sdk import SubmissionClient
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient
from typing_extensions import override

from emc2dist.errors import LaunchError
from emc2dist.launch.plan import SPEC_FILE, JobState, Plan, Status, Target, grace_of, printable, refuse_second
from emc2dist.run.access import WRONG_TOKEN, by_proxy
from emc2dist.run.scratch import temporary
from emc2dist.terminal import say

REQUEST_S = 30.0
POLL_S = 1.0
LOG_RATE = 2**20
"""Characters of a log that are asked for in a second, at most."""
PATIENCE_S = 600.0
"""How long a cluster may give no answer before a follower gives up; the job itself goes on meanwhile."""

_NO_DASHBOARD = (
    "what answers is no Ray dashboard; give the address of one, as `ray start` prints it, and see that no login stands "
    "before it"
)
_VERSION = "/api/version"  # which every dashboard has, and is asked for first
_RUN = "emc2dist_run"  # metadata of every job of ours
T = TypeVar("T")


def preview(plan: Plan) -> str:
    """The request of `RayJobs.submit`, as YAML."""
    sent = {"target": plan.launch.target, "submission_id": plan.id, **_request(plan)}
    return yaml.safe_dump({**sent, "working_dir": {SPEC_FILE: plan.spec}}, sort_keys=False)


class RayJobs(Target):
    """The jobs of one cluster."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        """Raises LaunchError where no cluster answers, or it refuses the token."""
        self.url = url.rstrip("/")
        self._headers = headers
        for name in ("ray", SubmissionClient.__module__):  # what it packs and uploads is not worth a line
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client = self._call(lambda: _Client(self.url, dict(headers)))

    @override
    def submit(self, plan: Plan) -> JobState:
        refuse_second(plan, self.jobs())
        for attempt in count(1):
            job = plan.id if attempt == 1 else f"{plan.id}-{attempt}"
            found = self._find(job)
            if found is None:
                if (other := self._client.version()) != ray.__version__:
                    say(
                        f"{self.url}: runs Ray {other}, and here is Ray {ray.__version__}: the job takes the emc2dist "
                        "that is installed there, which must fit that"
                    )
                self._send(plan, job)
                return self.state(job)
            if not found.final or found.status in plan.over:
                return found
        raise AssertionError("an attempt is free, or its job is found")

    @override
    def state(self, job: str) -> JobState:
        found = self._find(job) or next((state for state in self.jobs() if state.run == job), None)
        if found is None:
            raise LaunchError(
                f"{job}: {self.url} knows no such job or run (one of `emc2dist train` is no job); `emc2dist list` "
                "shows what it knows"
            )
        return found

    @override
    def jobs(self) -> list[JobState]:
        details = [d for d in self._call(self._client.list_jobs) if d.submission_id and _RUN in (d.metadata or {})]
        return [_state(d) for d in sorted(details, key=lambda d: d.start_time or 0, reverse=True)]

    @override
    def logs(self, job: str, *, follow: bool) -> Iterator[str]:
        job = self.state(job).id
        if not follow:
            yield self._log(job)
            return
        seen, heard = 0, time.monotonic()
        while True:
            try:
                final = self.state(job).final  # asked first, so that what a job says last is still read
                log = self._log(job)
            except _Unreachable as error:
                if time.monotonic() - heard > PATIENCE_S:
                    raise LaunchError(f"{job}: {self.url} has given no answer for {PATIENCE_S:g} s") from error
            else:
                if len(log) > seen:
                    yield log[seen:]
                if final:
                    return
                seen, heard = max(seen, len(log)), time.monotonic()
            time.sleep(POLL_S + seen / LOG_RATE)  # each answer is the whole log: a long one is asked for less often

    @override
    def stop(self, job: str) -> JobState:
        state = self.state(job)
        details = self._call(lambda: self._client.get_job_info(state.id))
        variables = (details.runtime_env or {}).get("env_vars")
        grace_s = grace_of(variables if isinstance(variables, dict) else {})
        self._call(lambda: self._client.stop_job(state.id))
        deadline = time.monotonic() + grace_s + 2 * REQUEST_S
        while not (state := self.state(state.id)).final:
            if time.monotonic() > deadline:
                raise LaunchError(f"{state.id}: has not ended {grace_s:g} s after it was asked to; look at its log")
            time.sleep(POLL_S)
        return state

    def _find(self, job: str) -> JobState | None:
        try:
            return _state(self._call(lambda: self._client.get_job_info(job)))
        except _NotFound:
            return None

    def _log(self, job: str) -> str:
        """All that the driver has written so far."""
        return self._call(lambda: _text(self._client.get_job_logs(job)))

    def _send(self, plan: Plan, job: str) -> None:
        request = _request(plan)
        with temporary("emc2-submit-") as folder:
            (Path(folder) / SPEC_FILE).write_text(plan.spec)
            request["runtime_env"]["working_dir"] = folder
            try:
                self._call(lambda: self._client.submit_job(submission_id=job, **request))
            except LaunchError:
                if self._find(job) is None:  # else it has arrived: sent twice at once, or the answer was lost
                    raise

    def _call(self, request: Callable[[], T]) -> T:
        """Ask the cluster; what it answers with instead becomes a LaunchError. (Ray raises RuntimeError for all.)"""
        try:
            return request()
        except (ConnectionError, requests.ConnectionError, requests.Timeout) as error:
            raise _Unreachable(
                f"{self.url}: no Ray cluster answers there ({type(error).__name__}); is its dashboard reached, by "
                "`kubectl port-forward` or `ray dashboard` for instance?"
            ) from error
        except AuthenticationError as error:
            raise LaunchError(f"{self.url}: {WRONG_TOKEN}") from error
        except (requests.JSONDecodeError, ValueError, TypeError, LookupError, AttributeError) as error:
            if isinstance(error, OSError) and not isinstance(error, requests.JSONDecodeError):  # an InvalidURL
                raise LaunchError(f"{self.url}: {error}") from error
            raise LaunchError(f"{self.url}: {_NO_DASHBOARD}") from error
        except (RuntimeError, OSError) as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise _kind_of(text)(f"{self.url}: {text[:500]}") from error


class _Unreachable(LaunchError):
    """No answer: the cluster may be gone, or the connection."""


class _NotFound(LaunchError):
    """The cluster answers, and knows no such job."""


def _kind_of(said: str) -> type[LaunchError]:
    """The error for what Ray's client says: status 404 is an unknown job, 5xx a head that cannot answer for now."""
    if "status code 404" in said:
        return _NotFound
    return _Unreachable if "status code 5" in said else LaunchError


class _Client(JobSubmissionClient):
    """Ray's client, which speaks to `url` alone, and to nobody on the way that could read the token."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self._direct = {} if by_proxy(url) else {"proxies": {"no_proxy": urlsplit(url).hostname or ""}}
        self._client_ray_version = ray.__version__
        # Past Ray's own, which prefers what RAY_ADDRESS or RAY_API_SERVER_ADDRESS say to the URL that it is given.
        SubmissionClient.__init__(self, url, headers=headers)
        self._check_connection_and_version("2.0")

    def version(self) -> str:
        """The version of Ray that the cluster runs."""
        return str(self._server_ray_version)

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        ours = {
            "timeout": REQUEST_S,
            "allow_redirects": False,
            "auth": lambda request: request,  # else an entry in ~/.netrc would take the token's place
        }
        answer = super()._do_request(method, endpoint, **ours, **self._direct, **options)
        if answer.is_redirect:
            raise LaunchError(
                f"{self._address}: has moved to {answer.headers['location']}; give that address, if it is yours"
            )
        if endpoint == _VERSION and 400 <= answer.status_code < 500:  # Ray would blame a cluster's version for it
            raise LaunchError(f"{self._address}: {_NO_DASHBOARD}")
        return answer


def _request(plan: Plan) -> dict[str, Any]:
    """The request, but for the working directory."""
    request: dict[str, Any] = {
        "entrypoint": plan.entrypoint(),
        "runtime_env": {"env_vars": plan.environment()},
        "metadata": {_RUN: plan.run},
    }
    asked = plan.base.resources
    if asked.driver_cpus:  # else it runs on the head
        request["entrypoint_num_cpus"] = asked.driver_cpus
    if asked.driver_cpus and asked.shard_labels:
        request["entrypoint_label_selector"] = asked.shard_labels
    return request


def _text(answer: Any) -> str:
    if not isinstance(answer, str):
        raise TypeError(f"no text: {answer!r}")
    return answer


def _state(details: JobDetails) -> JobState:
    status: Status = details.status.value.lower()
    return JobState(
        id=printable(details.submission_id),
        run=printable((details.metadata or {}).get(_RUN, "-")),
        status=status,
        exit_code=getattr(details, "driver_exit_code", None),
        message=printable(next(iter((details.message or "").strip().splitlines()), "")[:200]),
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
    )
