"""A mixture of experts: a backbone whose MLP blocks are copied, one copy for the texts of each domain.

Hallee et al. 2024 (arXiv:2401.15713) so train one model for several domains that would else need a model each; the
attention is shared. The routing is hard and by text: its domain is told, not learnt, so there is no gate and no loss
of balance. A text goes through one expert of each block, so a mixture computes what the backbone alone does, and takes
the memory of all experts.

Before training all experts of a block are the same, and representations are those of the backbone: to the bit where a
batch is of one domain, but for rounding in others, for a product of fewer rows may be rounded in another way.
"""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from typing_extensions import override

from emc2dist.core.transfer import to_device

_NAMES = ("mlp", "ffn", "ffn_output", "feed_forward")


def mlp_blocks(module: nn.Module) -> list[str]:
    """Names of a transformer's MLP blocks, in order, by what models call them.

    `mlp`, `ffn` (with `ffn_output`) or `feed_forward`; `intermediate` and the `output` beside it, as BERT has them.
    """
    names = [name for name, _ in module.named_modules()]
    found = {name for name in names if name.rpartition(".")[2] in _NAMES}
    for name in names:
        layer, _, own = name.rpartition(".")
        output = f"{layer}.output".lstrip(".")
        if own == "intermediate" and output in names:
            found |= {name, output}
    return [name for name in names if name in found]


class Mixture(nn.Module):
    """A backbone with `experts` copies of some of its blocks; gives what the backbone gives.

    Args:
        backbone: module of any views [n, ...], with `width`. It becomes part of the mixture.
        experts: number of domains.
        blocks: names of the submodules to copy, each from tensors [n, ...] to a tensor [n, ...]; None: all of
            `mlp_blocks`. One alone, the last, may do: it costs less memory.

    Raises:
        ValueError: there is no block to copy.
    """

    def __init__(self, backbone: nn.Module, experts: int, blocks: Sequence[str] | None = None) -> None:
        super().__init__()
        blocks = mlp_blocks(backbone) if blocks is None else blocks
        if not blocks:
            raise ValueError(f"{type(backbone).__name__} has no MLP blocks by their usual names; name its blocks")
        self.width = backbone.width
        self._experts, self._route = experts, _Route()
        for name in blocks:
            backbone.set_submodule(name, _Experts(backbone.get_submodule(name), experts, self._route))
        self.backbone = backbone

    @override
    def forward(self, views: Tensor, domains: Tensor) -> Tensor:
        """Representations [n, width] of views [n, ...] whose domains are int64 [n], in [0, experts), on the CPU.

        Raises:
            ValueError: there are more or fewer domains than views, or one is out of range.
        """
        if domains.shape != views.shape[:1]:
            raise ValueError(f"domains of shape {list(domains.shape)} for {len(views)} views")
        if ((domains < 0) | (domains >= self._experts)).any():
            raise ValueError(f"domains from {domains.min()} to {domains.max()}; there are {self._experts} experts")
        counts = domains.bincount(minlength=self._experts).tolist()
        order = domains.argsort(stable=True)
        sent, back = to_device([order, order.argsort()], views.device)
        self._route.rows, self._route.back = sent.split(counts), back
        try:
            return self.backbone(views)
        finally:
            self._route.rows = ()


class _Route:
    """Which texts of the batch go to which expert, while there is a batch; shared by all blocks of a mixture."""

    rows: Sequence[Tensor] = ()
    """Of each expert."""
    back: Tensor
    """Where each text stands when those of all experts lie one behind the other."""


class _Experts(nn.Module):
    """A block and its copies."""

    def __init__(self, block: nn.Module, count: int, route: _Route) -> None:
        super().__init__()
        self.experts = nn.ModuleList([block, *(deepcopy(block) for _ in range(count - 1))])
        self._route = route

    @override
    def forward(self, *given: Tensor) -> Tensor:
        """Of tensors [n, ...], a text's by its own expert.

        Without a text an expert runs too: its parameters then have a gradient, 0, which all workers can reduce.
        """
        if not self._route.rows:
            raise RuntimeError("the experts of a mixture were called without it; call the Mixture, with domains")
        made = [
            expert(*(one.index_select(0, rows) for one in given))
            for expert, rows in zip(self.experts, self._route.rows, strict=True)
        ]
        return torch.cat(made).index_select(0, self._route.back)
