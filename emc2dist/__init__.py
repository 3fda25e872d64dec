"""emc2dist: global contrastive learning with Markov chains that outlive the batch, on Ray.

The maths is public and knows nothing of Ray: `sweep` moves the chains, `global_contrastive_loss` is the exact loss
that they estimate the gradient of.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Sweep", "__version__", "global_contrastive_loss", "sweep"]


def __getattr__(name: str) -> Any:
    # Lazy, so that reading a spec or asking for help does not wait for torch.
    if name in {"sweep", "Sweep"}:
        from emc2dist.core import chain

        return getattr(chain, name)
    if name == "global_contrastive_loss":
        from emc2dist.core.exact import global_contrastive_loss

        return global_contrastive_loss
    raise AttributeError(f"module 'emc2dist' has no attribute {name!r}")
