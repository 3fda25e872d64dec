"""Targets by name: `local`, `kuberay`, or the URL of a cluster's dashboard."""

import os
from urllib.parse import urlsplit

from emc2dist.errors import LaunchError, SpecError
from emc2dist.launch.plan import Plan, Target
from emc2dist.machine import cpus
from emc2dist.run.access import headers_for


def default_target() -> str:
    """The target if none is named: the cluster that Ray's RAY_API_SERVER_ADDRESS names, else this machine."""
    return os.environ.get("RAY_API_SERVER_ADDRESS", "").strip() or "local"


def preview(plan: Plan) -> str:
    """The request that would be sent, as YAML. Nothing is asked of anybody."""
    if plan.launch.target == "kuberay":
        from emc2dist.launch import kuberay

        return kuberay.preview(plan)
    from emc2dist.launch import ray_jobs

    return ray_jobs.preview(plan)


def open_target(name: str, *, namespace: str = "default", start_for: int = 0) -> Target:
    """The target of that name; for `local`, a Ray is started for so many workers, if that is not 0, and none runs.

    Raises:
        SpecError: the name means no target.
        LaunchError: it does not answer, refuses, or would be spoken to without a token; or no Ray runs here.
    """
    if name == "kuberay":
        from emc2dist.launch.kuberay import KubeRay

        return KubeRay(namespace)
    if name != "local":
        name = _url(name)
    from emc2dist.launch.ray_jobs import RayJobs  # late: it imports Ray

    if name != "local":
        return RayJobs(name, headers_for(name))
    from emc2dist.launch.local import LocalCluster

    cluster = LocalCluster()
    connection = cluster.running()
    if connection is None and start_for:
        # A CPU is Ray's ticket to run, not a promise of a core: more workers than cores are slow but fine.
        connection = cluster.start(cpus=max(cpus(), start_for))
    if connection is None:
        raise LaunchError(
            "no Ray of ours runs on this machine; `emc2dist submit` and `emc2dist cluster start` start one. A run of "
            "`emc2dist train` is no job: Ctrl-C in its terminal stops it, and `emc2dist watch RUN` shows it"
        )
    return RayJobs(connection.dashboard, headers_for(connection.dashboard, connection.token))


def _url(name: str) -> str:
    """The URL of a dashboard as Ray takes it: its scheme is compared letter by letter."""
    name = name.strip()
    try:
        parts = urlsplit(name)
        if parts.scheme in ("http", "https") and parts.hostname and "@" not in name and parts.port != 0:
            return parts.geturl()  # with the scheme in small letters
    except ValueError:  # of the port, or of brackets
        pass
    if "@" in name:
        raise SpecError(
            "--target, RAY_API_SERVER_ADDRESS: the URL holds credentials (it is not shown); give it without: a cluster "
            "is spoken to with its token (RAY_AUTH_TOKEN_PATH)"
        )
    raise SpecError(
        f"{name}: is no target; give local, kuberay or the URL of a dashboard, as in http://HOST:8265 "
        "(--target, launch.target, RAY_API_SERVER_ADDRESS)"
    )
