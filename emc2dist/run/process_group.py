"""The process group that torch.distributed joins the workers in: as Ray Train's own, set up without torch around it.

Ray Train's controller tells the workers to join and to leave. `ray.train.torch.TorchConfig` would have it import torch
for that: 2 s at the start of every attempt, and 200 MB while it lasts.
"""

import os
from contextlib import suppress
from typing import Any

import emc2dist.run.cluster  # noqa: F401  before ray: sets its defaults

import ray  # isort: skip
from ray.exceptions import GetTimeoutError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from typing_extensions import override

LEAVE_S = 30.0


class ProcessGroup(BackendConfig):
    """What a trainer takes as `backend_config`: NCCL where workers have GPUs, else gloo."""

    @property
    @override
    def backend_cls(self) -> type[Backend]:
        return _Backend

    @property
    @override
    def train_func_context(self) -> Any:
        from ray.train.torch import TorchConfig  # late: the controller never asks for it

        return TorchConfig().train_func_context


class _Backend(Backend):
    """Lives in the controller."""

    share_cuda_visible_devices = True

    @override
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        address, port = worker_group.execute_single(0, get_address_and_port)
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) > 0 else "gloo"
        ranks = range(len(worker_group))
        ray.get(
            [worker_group.execute_single_async(r, _join, backend, address, port, r, len(worker_group)) for r in ranks]
        )

    @override
    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        left = worker_group.execute_async(_leave, destroy_process_group=len(worker_group) > 1)
        with suppress(GetTimeoutError):  # Ray Train ends the workers in any case
            ray.get(left, timeout=LEAVE_S)


def _join(backend: str, address: str, port: int, rank: int, workers: int) -> None:
    """In a worker: join, as Ray Train has it."""
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group

    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    _set_torch_distributed_env_vars()
    _setup_torch_process_group(backend, rank, workers, "env://")


def _leave(destroy_process_group: bool) -> None:
    """In a worker: leave, as Ray Train has it."""
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy_process_group)
