"""The environment that Ray is started with, here or on a node; what a person has set wins. Imports no Ray."""

from collections.abc import Mapping

DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray starts workers at nice 15: beside any other load they starve.
    "RAY_worker_niceness": "0",
    # A report to Ray Train takes one interval, 2 s by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # A worker that does not answer is given up after 10 minutes by default, and all others wait for it.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
    # On a loaded machine it takes more than the default minute until all workers have imported torch.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    # The driver itself looks for nodes that are about to go (`emc2dist.run.elastic`): no process for that beside it.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Where there is no GPU, leave CUDA_VISIBLE_DEVICES alone.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Between SIGTERM and SIGKILL for a job that is stopped: 3 s by default, too short for a checkpoint.
    "RAY_JOB_STOP_WAIT_TIME_S": "120",
}

_DIRECT = ("localhost", "127.0.0.1", "127.0.0.2", "127.0.0.0/8", "::1", "169.254.169.254", "metadata.google.internal")
"""This machine, the head of a Ray of several nodes on it, and where clouds tell an instance of itself and its role."""


def past_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """`no_proxy` as the environment has it, and with what no proxy is ever to be asked for."""
    kept = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    names = [name.strip() for name in kept.split(",") if name.strip()]
    value = ",".join([*names, *(name for name in _DIRECT if name not in names)])
    return {"no_proxy": value, "NO_PROXY": value}
