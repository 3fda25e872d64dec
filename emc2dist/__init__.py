"""emc2dist: global contrastive learning with Markov chains that outlive the batch, on Ray.

The maths is public and knows nothing of Ray: `sweep` moves the chains over samples with all their views,
`unit_scores` scores those and `view_shares` shares a sample's weight among its views; `global_contrastive_loss` is the
exact loss whose gradient is estimated.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
_HOME = {
    "Sweep": "emc2dist.core.chain",
    "global_contrastive_loss": "emc2dist.core.exact",
    "sweep": "emc2dist.core.chain",
    "unit_scores": "emc2dist.core.scores",
    "view_shares": "emc2dist.core.scores",
}
__all__ = ["Sweep", "__version__", "global_contrastive_loss", "sweep", "unit_scores", "view_shares"]


def __getattr__(name: str) -> Any:
    # Lazy, so that reading a spec or asking for help does not wait for torch.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'emc2dist' has no attribute {name!r}")
