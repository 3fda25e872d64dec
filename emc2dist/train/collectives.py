"""What ranks say to each other; the only module that knows torch.distributed.

Without a process group every function degenerates to the plain path, so one process runs the same code.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

# Torch 2.13 has a new name for it.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Processes in the group; 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for every rank (up to the process group's timeout)."""
    if world_size() > 1:
        dist.barrier()


def broadcast_text(text: str) -> str:
    """Rank 0's text, on every rank."""
    box = [text]
    if world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_texts(text: str) -> list[str]:
    """Every rank's text, in rank order, on every rank."""
    texts = [text] * world_size()
    if world_size() > 1:
        dist.all_gather_object(texts, text)
    return texts


def gather_features(features: Tensor) -> Tensor:
    """[V, b, D] of every rank, as [V, W * b, D] in rank order, with gradient to the rank that owns each slot.

    The gradient summed over ranks, together with DDP's average over ranks of parameter gradients, is the gradient of
    the mean over ranks of their losses: that of one process with the whole batch.
    """
    return cast(Tensor, _Gather.apply(features)) if world_size() > 1 else features


def gather_rows(rows: Tensor) -> Tensor:
    """[n, ...] of every rank, as [W * n, ...] in rank order; no gradient. All ranks bring the same n."""
    if world_size() == 1 or not len(rows):
        return rows
    gathered = rows.new_empty(world_size() * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(gathered, rows.contiguous())
    return gathered


def gather_numbers(values: Tensor) -> Tensor:
    """`values` of every rank, [W, *shape], where they were; all ranks bring the same shape."""
    if world_size() == 1:
        return values.unsqueeze(0)
    # NCCL moves nothing but CUDA tensors.
    return gather_rows(values.to("cuda" if dist.get_backend() == "nccl" else "cpu").unsqueeze(0)).to(values.device)


class Vote:
    """Which things any rank wants: asked in one step and answered in the next, so that nobody waits for it.

    Over a group of its own, on the CPU: the answer must not wait for what the GPU still has to do.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo") if world_size() > 1 else None
        self._round: tuple[Tensor, dist.Work] | None = None

    def cast(self, *wanted: bool) -> list[bool]:
        """Cast this rank's votes; returns the outcome of the last round, the same on every rank. Every rank casts."""
        if self._group is None:
            return list(wanted)
        outcome = self.close() or [False] * len(wanted)
        ballot = torch.tensor(wanted, dtype=torch.int32)
        work = dist.all_reduce(ballot, dist.ReduceOp.MAX, self._group, async_op=True)
        self._round = (ballot, work)
        return outcome

    def close(self) -> list[bool]:
        """Wait for the round under way; returns its outcome, nothing where there is none."""
        if self._round is None:
            return []
        ballot, work = self._round
        work.wait()
        self._round = None
        return [bool(vote) for vote in ballot]


def data_parallel(model: nn.Module) -> nn.Module:
    """The model with gradients averaged over ranks in buckets, while backward goes on (DDP)."""
    if world_size() == 1:
        return model
    # Constants are alike everywhere; running statistics alone are not, and rank 0's count.
    moving = any(isinstance(layer, _BatchNorm) for layer in model.modules())
    return DistributedDataParallel(model, broadcast_buffers=moving, gradient_as_bucket_view=True)


def unwrapped(model: nn.Module) -> Any:
    """The model without its data-parallel wrapper."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def without_sync(model: nn.Module) -> AbstractContextManager[None]:
    """Around forward and backward: the gradients stay this rank's own, to be reduced with those of a later backward."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        return gather_rows(features.unsqueeze(0)).transpose(0, 1).flatten(1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        by_rank = gradient.unflatten(1, (world_size(), -1)).transpose(0, 1).contiguous()  # [W, V, b, D]
        own = torch.empty_like(by_rank[0])
        _reduce_scatter(own, by_rank.flatten(0, 1))
        return own
