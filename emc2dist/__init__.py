"""emc2dist: global contrastive learning with Markov chains that outlive the batch, on Ray.

The maths knows nothing of Ray and is imported from where it stands: `emc2dist.core.chain.sweep` moves the chains,
`emc2dist.core.exact.global_contrastive_loss` is the exact loss whose gradient is estimated.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
