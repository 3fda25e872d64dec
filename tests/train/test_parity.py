"""Certificate 3: W workers and S shards give the loss and gradient of one worker and one shard.

Real processes joined by gloo (Ray actors, so that they can hold a RayStore of real shard actors), the real loop, in
float64: what differs between W and 1 is then the order of summation alone. The optimiser is plain SGD with lr 1, so
that parameters differ by what gradients differ by.
"""

import pytest
import torch
from safetensors.numpy import load_file
from train.harness import Rank, Run, small_spec

from emc2dist.config import dump
from emc2dist.train import checkpoint

WORLDS = [(1, 3), (2, 1), (2, 3), (4, 1), (4, 3)]
KINDS = [(["kernel=mh"], WORLDS), (["kernel=isir", "cache_proposals=12"], WORLDS), (["objective=sogclr"], [(2, 3)])]
EXACT = ["precision=float64", "optimiser.name=sgd", "optimiser.momentum=0", "lr=1", "epochs=2", "eval.every=0"]


@pytest.fixture(scope="module")
def ranks(ray_cluster):
    actors = [ray_cluster.remote(Rank).options(num_cpus=0).remote() for _ in range(4)]
    yield actors
    for actor in actors:
        ray_cluster.kill(actor)


def train(ray, ranks, spec, folder):
    """Train on real processes; returns the rows, and what the last checkpoint holds."""
    from emc2dist.store import Layout
    from emc2dist.store.remote import RayStore
    from emc2dist.train.memory import schema_for

    store = RayStore.create(Layout(48, spec.shards), schema_for(spec), timeout_s=30)
    folder.mkdir()
    calls = [
        ranks[rank].train.remote(dump(spec), store, rank, str(folder / "rendezvous"), str(folder))
        for rank in range(spec.workers)
    ]
    rows = ray.get(calls, timeout=240)
    store.close()
    assert not any(rows[1:])  # rank 0 speaks for all
    return rows[0], contents(folder)


def contents(folder):
    """Encoder parameters, and the store's rows in the order of samples whatever the sharding."""
    manifest = checkpoint.read_manifest(folder)
    state = checkpoint.load_trainer(folder, torch.device("cpu"))["encoder"]
    rows = {}
    for shard in range(manifest.shards):
        path = folder / f"shard-{shard:05d}-of-{manifest.shards:05d}.safetensors"
        for name, column in load_file(path).items():
            whole = rows.setdefault(name, torch.zeros(manifest.samples, *column.shape[1:], dtype=torch.float64))
            whole[shard :: manifest.shards] = torch.from_numpy(column).double()
    return state | rows


@pytest.mark.parametrize(("kind", "worlds"), KINDS, ids=lambda value: " ".join(map(str, value)))
def test_workers_and_shards_do_not_change_loss_or_gradient(kind, worlds, ray_cluster, ranks, tmp_path):
    oracle = Run(small_spec(*EXACT, *kind), tmp_path / "oracle")  # one process, no group, no Ray
    oracle.folder.mkdir()
    oracle.go()
    expected = contents(oracle.checkpoints[12])
    for workers, shards in worlds:
        spec = small_spec(*EXACT, *kind, f"workers={workers}", f"shards={shards}")
        rows, found = train(ray_cluster, ranks, spec, tmp_path / f"{workers}-{shards}")
        for name in ("loss", "gradient_norm", "knn_accuracy"):
            values = [row[name] for row in rows if name in row]
            assert values == pytest.approx(oracle.column(name), abs=1e-6), (name, workers, shards)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0, msg=f"{name}, W={workers} S={shards}")
