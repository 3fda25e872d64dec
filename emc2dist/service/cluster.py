"""A Ray cluster to run on: the one that RAY_ADDRESS names, or one of our own on this machine.

Importing this module sets Ray's defaults for us (an environment that sets them wins), so import it before ray.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from emc2dist.service.environment import DEFAULTS

for _name, _value in DEFAULTS.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402

from emc2dist.config import Spec  # noqa: E402
from emc2dist.errors import SpecError  # noqa: E402


@contextmanager
def connected(spec: Spec) -> Iterator[None]:
    """A connection to a cluster with room for the run; one that was started here ends with it.

    Raises:
        SpecError: the cluster is too small for `workers`.
    """
    ours = not ray.is_initialized()
    if ours:
        _connect(spec)
    try:
        _check_room(spec)
        yield
    finally:
        if ours:
            ray.shutdown()


def use_gpu(spec: Spec) -> bool:
    """Whether the workers get a GPU each."""
    return spec.device == "cuda" or (spec.device == "auto" and _capacity("GPU") >= spec.workers)


def _connect(spec: Spec) -> None:
    quiet = {"log_to_driver": False, "logging_level": "warning"}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
        return
    # One CPU a worker is Ray's ticket to run, not a promise of a core: more workers than cores are slow but fine.
    cpus = max(os.cpu_count() or 1, spec.workers)
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)


def _check_room(spec: Spec) -> None:
    kind = "GPU" if use_gpu(spec) else "CPU"
    if _capacity(kind) < spec.workers:
        raise SpecError(
            f"workers: {spec.workers} need a {kind} each, the cluster has {_capacity(kind):g}; "
            f"lower workers or add nodes"
        )


def _capacity(kind: str) -> float:
    return float(ray.cluster_resources().get(kind, 0))
