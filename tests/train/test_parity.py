"""Certificate 3: W workers and S shards give the loss and gradient of one worker and one shard.

Real processes joined by gloo (Ray actors, so that they can hold a RayStore of real shard actors), the real loop, in
float64: what differs between W and 1 is then the order of summation alone. The optimiser is plain SGD with lr 1, so
that parameters differ by what gradients differ by.
"""

import pytest
import torch
from safetensors.numpy import load_file
from train.harness import Rank, Run, captions_spec, pairs_spec, small_spec, write_captions, write_pairs

from emc2dist import files
from emc2dist.config import dump
from emc2dist.train import checkpoint
from emc2dist.train.sets import open_training_set

MH, ISIR = ["negatives.kernel=mh"], ["negatives.kernel=isir", "negatives.cache_proposals=13"]  # an uneven number
KINDS = [
    (ISIR, [(1, 3), (2, 1)]),
    (MH, [(2, 3), (4, 1)]),
    (["objective=sogclr"], [(2, 3)]),
    pytest.param([*ISIR, "negatives.ceiling=0.99", "negatives.close=[label]"], [(2, 1)], marks=pytest.mark.slow),
    (
        ["objective=infonce", "negatives.name=chain", *ISIR, "negatives.carried=roulette", "negatives.draws=12"],
        [(2, 3)],
    ),
    (["objective=nnclr", "negatives.name=gumbel", "negatives.rows=13", "objective.after=0"], [(2, 3)]),
    (["objective=moco", "negatives.rows=13", "encoder.momentum=0.7"], [(2, 3)]),
    pytest.param(
        ["objective=rgcl", "negatives.name=chain", *ISIR, "encoder.momentum=0.7", "negatives.draws=12"],
        [(2, 3)],
        marks=pytest.mark.slow,
    ),
    (["objective=supcon", "negatives.name=chain", *ISIR, "negatives.close=[label]", "data.per_class=2"], [(2, 1)]),
    (["objective={name: sepclr, width: 8}", "negatives.name=chain", *ISIR], [(2, 3)]),
    (["objective.name=hydra", "objective.classes=10", "negatives.name=gumbel", "negatives.rows=13"], [(2, 1)]),
    pytest.param(ISIR, [(2, 3), (4, 1), (4, 3)], marks=pytest.mark.slow),
    pytest.param(MH, [(1, 3), (2, 1), (4, 3)], marks=pytest.mark.slow),
]
EXACT = ["precision=float64", "optimiser.name=sgd", "optimiser.momentum=0", "lr=0.1", "epochs=2", "eval.every=0"]


@pytest.fixture(scope="module")
def ranks(ray_cluster):
    actors = [ray_cluster.remote(Rank).options(num_cpus=0).remote() for _ in range(4)]
    yield actors
    for actor in actors:
        ray_cluster.kill(actor)


def train(ray, ranks, spec, folder, **options):
    """Train on real processes; returns the rows, and what the last checkpoint holds."""
    from emc2dist.store import Layout
    from emc2dist.store.remote import RayStore
    from emc2dist.train.memory import schema_for

    store = RayStore.create(Layout(len(open_training_set(spec)), spec.shards), schema_for(spec), timeout_s=30)
    folder.mkdir()
    calls = [
        ranks[rank].train.remote(dump(spec), store, rank, str(folder / "rendezvous"), str(folder), **options)
        for rank in range(spec.workers)
    ]
    rows = ray.get(calls, timeout=240)
    store.close()
    assert not any(rows[1:])  # rank 0 speaks for all
    return rows[0], contents(folder)


def contents(folder):
    """Encoder parameters, and the store's rows in the order of samples whatever the sharding."""
    manifest = checkpoint.verify(files.at(folder))
    state = checkpoint.load_trainer(folder)["encoder"]
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
        for name in ("loss", "gradient_norm", "knn_accuracy", "log_z_error", "log_z_rms_error"):
            values = [row[name] for row in rows if name in row]
            assert values == pytest.approx(oracle.column(name), abs=1e-6), (name, workers, shards)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0, msg=f"{name}, W={workers} S={shards}")


@pytest.mark.parametrize("key", ["start_from", "encoder.weights"])
def test_a_run_begins_alike_on_any_workers_and_shards(key, ray_cluster, ranks, tmp_path):
    slower = "optimiser.layer_decay=0.8"
    first = Run(small_spec(*EXACT, *ISIR, slower, "epochs=1"), tmp_path / "first").go().checkpoints[6]
    begins = [*EXACT, *ISIR, slower, f"{key}={first}", "seed=3", "encoder.freeze=1"]
    if key == "start_from":
        begins.pop()  # the optimiser that it takes up is of all
    start = first if key == "start_from" else None
    alone = Run(small_spec(*begins), tmp_path / "alone").go(start=start)
    spec = small_spec(*begins, "workers=2", "shards=3")
    rows, found = train(ray_cluster, ranks, spec, tmp_path / "together", start=start)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses == pytest.approx(alone.column("loss"), abs=1e-6)
    expected = contents(alone.checkpoints[12])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0, msg=name)


PAIRS = [
    (False, ["objective.directions=both", "negatives.draws=6"]),
    (True, ["negatives.draws=6", "negatives.cache_proposals=7"]),
    (
        True,
        [
            "negatives={name: in_batch, draws: 4}",
            "data.negatives=1",
            "objective={name: infonce, learn_temperature: true, directions: all}",
        ],
    ),
]


@pytest.mark.parametrize(("judged", "kind"), PAIRS, ids=lambda value: str(value))
def test_workers_and_shards_do_not_change_loss_or_gradient_of_pairs(judged, kind, ray_cluster, ranks, tmp_path):
    folder = write_pairs(tmp_path / "set", judged=judged)
    exact = ["precision=float64", "eval.every=1", *kind]
    oracle = Run(pairs_spec(folder, *exact), tmp_path / "oracle")
    oracle.folder.mkdir()
    oracle.go()
    last = max(oracle.checkpoints)
    expected = contents(oracle.checkpoints[last])
    rows, found = train(ray_cluster, ranks, pairs_spec(folder, *exact, "workers=2", "shards=3"), tmp_path / "two")
    for name in ("loss", "gradient_norm", "ndcg_at_10"):
        values = [row[name] for row in rows if name in row]
        assert values, name
        assert values == pytest.approx(oracle.column(name), abs=1e-6), name
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("more", [[], ["encode_chunk=3"]], ids=str)
def test_workers_and_shards_do_not_change_loss_or_gradient_of_captions(more, ray_cluster, ranks, tmp_path):
    """Nor chunks, in which each tower is encoded again: what is reduced last has to reach both."""
    folder = write_captions(tmp_path / "set", shared=True)
    both = ["objective.directions=both", "objective.learn_temperature=true"] if not more else []
    exact = ["precision=float64", "eval.every=1", *both]
    oracle = Run(captions_spec(folder, *exact), tmp_path / "oracle")
    oracle.folder.mkdir()
    oracle.go()
    expected = contents(oracle.checkpoints[max(oracle.checkpoints)])
    spec = captions_spec(folder, *exact, *more, "workers=2", "shards=3")
    rows, found = train(ray_cluster, ranks, spec, tmp_path / "two")
    for name in ("loss", "gradient_norm", "ndcg_at_10", "to_images_ndcg_at_10"):
        values = [row[name] for row in rows if name in row]
        assert values, name
        assert values == pytest.approx(oracle.column(name), abs=1e-6), name
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("more", [[], ["encode_chunk=3"], ["compile=true"]], ids=str)
def test_gradients_are_reduced_once_an_update(more, ray_cluster, ranks, tmp_path):
    """And are those of one process with the whole batch."""
    kind = [*EXACT, *ISIR, "batch_size=16", "optimiser.accumulate=2"]
    oracle = Run(small_spec(*kind), tmp_path / "oracle")
    oracle.folder.mkdir()
    oracle.go()
    rows, found = train(ray_cluster, ranks, small_spec(*kind, "workers=2", *more), tmp_path / "two")
    assert [row["loss"] for row in rows if "loss" in row] == pytest.approx(oracle.column("loss"), abs=1e-6)
    for name, value in contents(oracle.checkpoints[12]).items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0, msg=name)
    assert ray_cluster.get([rank.reductions.remote() for rank in ranks[:2]]) == [6, 6]  # 12 micro-batches


def test_one_rank_asks_all_stop_and_others_go_on(ray_cluster, ranks, tmp_path):
    """The ranks agree one step later; what they leave within an epoch is taken up by other ranks and shards."""
    kind = [*EXACT, *ISIR]
    oracle = Run(small_spec(*kind), tmp_path / "oracle")
    oracle.folder.mkdir()
    oracle.go()
    before, after = small_spec(*kind, "workers=2", "shards=3"), small_spec(*kind, "workers=4", "shards=2")
    first, _ = train(ray_cluster, ranks, before, tmp_path / "first", stop_after=7)
    second, found = train(ray_cluster, ranks, after, tmp_path / "second", resume=tmp_path / "first")
    steps = [[row["step"] for row in rows if "loss" in row] for rows in (first, second)]
    assert steps == [[1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11, 12]]
    losses = [row["loss"] for row in first + second if "loss" in row]
    assert losses == pytest.approx(oracle.column("loss"), abs=1e-6)
    for name, value in contents(oracle.checkpoints[12]).items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0, msg=name)
