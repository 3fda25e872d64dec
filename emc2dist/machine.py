"""This machine as far as a process may use it: its CPUs, and GPUs that torch cannot use or that have no room left."""

import math
import os
import re
from contextlib import suppress
from pathlib import Path

_QUOTA = "/sys/fs/cgroup/cpu.max"  # `200000 100000`: microseconds in each period; or `max 100000`
_QUOTA_V1 = ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us")  # -1 in the first: none
_NO_KERNELS = re.compile(
    "no kernel image is available|not compiled with CUDA|No CUDA GPUs are available|no GPUs found|NCCL built in"
    "|NVIDIA driver on your system is too old|driver version is insufficient|Found no NVIDIA driver"
    "|compiled with an unsupported toolchain|invalid device ordinal"
)
_MEMORY = re.compile(r"out of memory|(can't|cannot) allocate memory|ALLOC_FAILED", re.IGNORECASE)


def cpus() -> int:
    """The CPUs that this process may use, at least one: those that it is bound to (Slurm, taskset, a container's
    cpuset), and no more than a container's quota (`docker run --cpus`, a pod's limit), rounded up.

    The machine may have many more: as many threads would wait for each other.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return bound if quota is None else max(1, min(bound, math.ceil(quota)))


def _quota() -> float | None:
    """CPUs that the container's quota comes to; None where there is none."""
    with suppress(OSError, ValueError):  # no such file, or `max`
        allowed, period = map(int, Path(_QUOTA).read_text().split())
        return allowed / period
    with suppress(OSError, ValueError):
        allowed, period = (int(Path(path).read_text()) for path in _QUOTA_V1)
        return allowed / period if allowed > 0 else None
    return None


def unusable_gpu(said: str) -> bool:
    """Whether torch says that it cannot use a GPU at all: no driver that fits, or no code for such a GPU."""
    return _NO_KERNELS.search(said) is not None


def out_of_memory(said: str) -> bool:
    """Whether torch says that memory does not suffice, of a GPU or of the machine."""
    return _MEMORY.search(said) is not None
