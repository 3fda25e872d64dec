"""What a run remembers of every sample of the dataset, and for which step: floor 2, numpy only.

    layout   dataset-wide index <-> (shard, row)
    shard    one shard: commits, reads as of a step, snapshots, generations; the semantics are told there
    base     ChainStore, the contract; ShardedStore, the sharding that all stores share
    local    LocalStore: all shards in this process
    remote   RayStore: one Ray actor per shard. Import it from there; nothing here imports Ray

One step of a rank, in one line: `store.exchange(generation, commit_of_last_step, read, as_of).result()`. Workers of one
node may make their exchanges together: `store.joined`.
"""

from emc2dist.core.columns import Column, Schema
from emc2dist.store.base import ChainStore, Pending, ShardedStore
from emc2dist.store.layout import Layout, Part
from emc2dist.store.local import LocalStore
from emc2dist.store.shard import Commit, Read, Rows, Shard, ShardStats, Tables, nbytes

__all__ = [
    "ChainStore",
    "Column",
    "Commit",
    "Layout",
    "LocalStore",
    "Part",
    "Pending",
    "Read",
    "Rows",
    "Schema",
    "Shard",
    "ShardStats",
    "ShardedStore",
    "Tables",
    "nbytes",
]
