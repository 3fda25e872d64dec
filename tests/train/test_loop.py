"""The loop in one process: every objective runs, and a resumed run equals an unbroken one bit for bit."""

import io
import math
import re
from itertools import count

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from train.harness import Run, captions_spec, pairs_spec, small_spec, write_captions, write_pairs

from emc2dist.data.images import open_images
from emc2dist.errors import DataError, NonFiniteError, RunError
from emc2dist.metrics import ROW
from emc2dist.store import LocalStore, Pending
from emc2dist.towers.batched import Packer
from emc2dist.train import checkpoint, collectives, loop, step
from emc2dist.train.step import Temperature

KINDS = [
    ["negatives.kernel=mh", "optimiser.name=adamw"],
    ["negatives.kernel=mh", "negatives.cache_proposals=12", "negatives.carried=cached"],
    ["negatives.kernel=isir", "negatives.carried=cached", "shards=3"],
    ["objective=sogclr"],
    ["objective=simclr", "negatives.draws=12"],
    ["negatives.kernel=isir", "negatives.cache_proposals=12", "negatives.draws=12", "negatives.carried=roulette"],
    ["negatives.kernel=isir", "negatives.cache_proposals=12", "temperature_end=0.5", "temperature_period=1.5"],
    ["negatives.ceiling=0.99", "negatives.close=[label, duplicates]"],
    ["objective=moco", "negatives.rows=20", "encoder.momentum=0.7"],
    ["objective=nnclr", "negatives.name=gumbel", "negatives.rows=20", "objective.support=20", "objective.after=0.5"],
    ["objective=isogclr"],
    ["objective=supcon", "negatives.name=chain", "negatives.close=[label]", "data.per_class=2"],
    ["objective.name=cacr", "negatives.kernel=isir", "views.count=3"],
    ["objective.name=groco", "negatives.kernel=isir", "negatives.cache_proposals=12", "negatives.carried=cached"],
    # Each differs little from one of those:
    pytest.param(["negatives.kernel=isir"], marks=pytest.mark.slow),
    pytest.param(["negatives.kernel=isir", "negatives.cache_proposals=12"], marks=pytest.mark.slow),
    pytest.param(["objective=dcl"], marks=pytest.mark.slow),
]


def files(folder):
    """Everything that a checkpoint holds, comparable bit for bit."""
    state = checkpoint.load_trainer(folder)
    tensors = {f"encoder/{k}": v for k, v in state["encoder"].items()}
    for parameter, slots in state["optimiser"]["state"].items():
        tensors |= {f"optimiser/{parameter}/{k}": torch.as_tensor(v) for k, v in slots.items()}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= {f"{path.name}/{k}": torch.from_numpy(v) for k, v in load_file(path).items()}
    return tensors


def assert_equal(whole, again, step):
    """Parameters, optimiser, chains and cache, bit for bit."""
    expected, found = files(whole.checkpoints[step]), files(again.checkpoints[step])
    assert expected.keys() == found.keys()
    assert [name for name in expected if not expected[name].equal(found[name])] == []


@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
def test_resuming_equals_never_having_stopped(kind, tmp_path):
    """Certificate 4, on one worker: from the end of an epoch, and from where the run was asked to stop."""
    spec = small_spec("epochs=2", *kind)
    whole = Run(spec, tmp_path).go()
    again = Run(spec, tmp_path / "again").go(resume=whole.checkpoints[6])
    assert (list(whole.checkpoints), list(again.checkpoints)) == ([6, 12], [12])
    assert_equal(whole, again, 12)
    assert whole.column("loss")[6:] == again.column("loss")

    stopped = Run(spec, tmp_path / "stopped", stop_after=8).go()
    assert stopped.steps == list(stopped.checkpoints)[-1] == 8
    again = Run(spec, tmp_path / "again2").go(resume=stopped.checkpoints[8])
    assert_equal(whole, again, 12)
    assert whole.column("loss") == stopped.column("loss") + again.column("loss")


def test_false_negatives_are_counted_and_a_ceiling_waits_for_its_epoch(tmp_path):
    plain = Run(small_spec(), tmp_path / "plain").go()
    assert len(plain.column("same_label_weight_ratio")) == 12
    assert plain.column("closed_ratio") == []
    closing = Run(small_spec("negatives.ceiling=0.95"), tmp_path / "ceiling").go()
    ratios = closing.column("closed_ratio")
    assert ratios[:6] == [0] * 6
    assert min(ratios[6:]) > 0
    labels = Run(small_spec("negatives.close=[label]"), tmp_path / "label").go()
    assert labels.column("same_label_weight_ratio") == [0] * 12
    assert set(labels.column("same_label_closed_ratio")) == {1}


AUGMENTED = ["views.flip=0.5", "views.jitter_probability=0.8", "views.grey=0.2", "views.rotate=20", "views.blur=0.5"]


def test_views_made_on_the_device_train_as_those_of_the_cpu(tmp_path, monkeypatch):
    """Batches, draws, and what is encoded again; on a CPU the pixels are the same, and so are the numbers."""
    packed = []
    monkeypatch.setattr(Packer, "__call__", lambda *given, pack=Packer.__call__: packed.append(given) or pack(*given))
    keys = [*AUGMENTED, "negatives.carried=complete", "negatives.draws=12"]
    runs = [Run(small_spec(f"views.made_on={where}", *keys), tmp_path / where).go() for where in ("cpu", "device")]
    assert len(packed) > 12
    assert sum(runs[1].column("reencoded_images")) > 0
    assert runs[1].column("loss") == pytest.approx(runs[0].column("loss"), rel=1e-3)


def test_more_draws_than_images_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"negatives.draws: 49 is more than the 48 training images; use fewer"):
        Run(small_spec("negatives.draws=49"), tmp_path).go()


def test_draws_write_the_cache(tmp_path):
    """24 draws of 48 samples: every second step all have been drawn."""
    drawing = small_spec("negatives.kernel=isir", "negatives.draws=24", "negatives.carried=cached", "epochs=1")
    plain = small_spec("negatives.kernel=isir", "negatives.carried=cached", "epochs=1")
    written = []
    for spec, folder in ((drawing, "drawing"), (plain, "plain")):
        run = Run(spec, tmp_path / folder).go()
        tables = load_file(run.checkpoints[6] / "shard-00000-of-00001.safetensors")
        written.append(next(values for name, values in tables.items() if name.endswith("written_at")))
    assert (written[0] >= 4).all()
    assert sorted(written[1]) == sorted([*range(6)] * 8)


def test_checkpoints_within_an_epoch_change_nothing(tmp_path):
    """Made as often as may be, and gone on from without a restart; and from one of them."""
    spec = small_spec("negatives.kernel=isir", "negatives.cache_proposals=12")
    whole = Run(spec, tmp_path).go()
    often = Run(
        small_spec("negatives.kernel=isir", "negatives.cache_proposals=12", "checkpoint.minutes=1e-9"),
        tmp_path / "often",
    ).go()
    assert list(often.checkpoints) == list(range(1, 13))
    assert_equal(whole, often, 12)
    again = Run(spec, tmp_path / "again").go(resume=often.checkpoints[10])
    assert_equal(whole, again, 12)


def test_how_often_checkpoints_are_written_changes_nothing(tmp_path):
    """Of chains that are recalled across the turn of an epoch."""
    kind = ["negatives.kernel=isir", "data.limit=16", "epochs=6"]  # two steps an epoch
    often, once = (Run(small_spec(*kind, f"checkpoint.every={n}"), tmp_path / str(n)).go() for n in (1, 6))
    assert [len(run.checkpoints) for run in (often, once)] == [6, 1]
    assert_equal(often, once, 12)


def test_a_run_stops_where_nothing_is_lost(tmp_path):
    """Where the next samples were visited within the last three steps, but not between the parts of an update."""
    spec = small_spec("epochs=4", "checkpoint.every=4", "data.limit=16")  # two steps an epoch
    whole = Run(spec, tmp_path).go()
    stopped = Run(spec, tmp_path / "stopped", stop_after=3).go()
    assert stopped.steps == 3
    resumed = Run(spec, tmp_path / "resumed").go(resume=stopped.checkpoints[3])
    assert stopped.column("loss") + resumed.column("loss") == whole.column("loss")
    parts = Run(small_spec("optimiser.accumulate=2"), tmp_path / "parts", stop_after=3).go()
    assert parts.steps == 4


def test_a_run_that_is_stopped_at_the_end_of_an_epoch_keeps_one_checkpoint(tmp_path):
    stopped = Run(small_spec("epochs=2"), tmp_path, stop_after=6).go()
    assert (stopped.steps, list(stopped.checkpoints)) == (6, [6])


def test_a_run_stopped_within_an_epoch_resumes_with_other_shards(tmp_path):
    whole = Run(small_spec(), tmp_path).go()
    stopped = Run(small_spec("shards=3"), tmp_path / "stopped", stop_after=9).go()
    assert len(list(stopped.checkpoints[9].glob("pending-*"))) == 3
    again = Run(small_spec("shards=2"), tmp_path / "again").go(resume=stopped.checkpoints[9])
    assert again.column("loss") == whole.column("loss")[9:]


def test_chains_remember_and_the_cache_fills(tmp_path):
    run = Run(small_spec("negatives.kernel=mh", "epochs=2"), tmp_path).go()
    tables = load_file(run.checkpoints[12] / "shard-00000-of-00001.safetensors")
    assert tables["negatives/visited"].all()
    assert tables["feature/present"].all()
    assert (tables["negatives/state"] != torch.arange(48)[:, None].numpy()).all()  # never its own negative
    assert (tables["negatives/visited_at"] >= 6).all()  # visited in the last epoch
    norms = torch.from_numpy(tables["feature/feature"]).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(48))
    assert run.column("visited_ratio")[0] == 0
    assert run.column("visited_ratio")[-1] > 0.9


def test_every_reported_metric_is_in_the_table(tmp_path):
    more = ["negatives.cache_proposals=12", "negatives.draws=4", "negatives.close=[label]"]
    infonce = ["objective=infonce", "negatives.name=chain", "negatives.kernel=isir"]
    run = Run(small_spec(*infonce, *more, "epochs=2"), tmp_path).go()
    reported = {name for row in run.rows for name in row}
    for kind in (["objective=rgcl"], ["objective={name: nnclr, after: 0}", "negatives.name=gumbel"]):
        some = Run(small_spec(*kind, "epochs=2"), tmp_path / kind[-1]).go()
        reported |= {name for row in some.rows for name in row}
    of_pairs = Run(pairs_spec(write_pairs(tmp_path / "set", judged=False), "epochs=1"), tmp_path / "pairs").go()
    reported |= {name for row in of_pairs.rows for name in row}
    captions = captions_spec(
        write_captions(tmp_path / "captions", shared=False), "epochs=1", "objective.directions=both"
    )
    reported |= {name for row in Run(captions, tmp_path / "of_captions").go().rows for name in row}
    assert reported == ROW - {"passed_over", "device_changed"}
    assert run.column("cache_moves_ratio")[-1] > 0.1


def test_log_z_is_compared_with_that_of_all_cached_features_where_samples_are_few(tmp_path, monkeypatch):
    """Of an encoder and views that stand still the reference is the exact one, as soon as all samples are cached."""
    still = ["views.crop=[1,1]", "views.aspect=[1,1]", "temperature=0.05", "lr=1e-9", "epochs=8"]
    kind = ["objective=infonce", "negatives.name=chain", "negatives.feature_dtype=float32", *still]
    run = Run(small_spec(*kind), tmp_path).go()
    errors, roots = run.column("log_z_error"), run.column("log_z_rms_error")
    assert len(errors) == len(roots) == 48 - 6  # from the second epoch on
    assert abs(sum(errors[-6:]) / 6) < 0.1
    assert max(abs(error) for error in errors) <= max(roots) < 0.5
    tables = load_file(run.checkpoints[48] / "shard-00000-of-00001.safetensors")
    features, remembered = (torch.from_numpy(tables[name]) for name in ("feature/feature", "negatives/log_mean"))
    exact = (features @ features.T / 0.05).fill_diagonal_(-math.inf).logsumexp(1) + math.log(2 / 47)
    last = (remembered - exact.unsqueeze(1)).square().mean()
    assert sum(value**2 for value in roots[-6:]) / 6 == pytest.approx(float(last), rel=1e-3)

    others = [["objective=emc2"], ["objective=infonce", "negatives.name=moving_average"]]
    for more in others:
        assert Run(small_spec(*more, "epochs=2"), tmp_path / more[-1]).go().column("log_z_error") == []
    monkeypatch.setattr(step, "_MOST_COMPARED", 47)
    assert Run(small_spec(*kind, "epochs=2"), tmp_path / "large").go().column("log_z_error") == []


def test_isir_encodes_carried_negatives_again_and_cached_does_not(tmp_path):
    fresh = Run(small_spec("negatives.kernel=isir"), tmp_path).go()
    assert fresh.column("reencoded_images")[0] == 0
    assert fresh.column("reencoded_images")[-1] > 1
    cached = Run(small_spec("negatives.kernel=isir", "negatives.carried=cached"), tmp_path / "cached").go()
    assert max(cached.column("reencoded_images")) == 0
    assert cached.column("carried_weight_ratio")[-1] > 0


def test_accumulated_micro_batches_make_one_update(tmp_path):
    run = Run(small_spec("optimiser={name: adamw, accumulate: 2}", "batch_size=16", "epochs=1"), tmp_path).go()
    assert run.column("step")[-1] == 6  # 3 updates of 2 micro-batches
    assert len(run.column("gradient_norm")) == 3
    state = checkpoint.load_trainer(run.checkpoints[6])["optimiser"]["state"]
    assert {int(slots["step"]) for slots in state.values()} == {3}


def test_a_snapshot_can_be_read_back_into_another_number_of_shards(tmp_path):
    three = Run(small_spec("shards=3", "epochs=2"), tmp_path).go()
    one = Run(small_spec("shards=1", "epochs=2"), tmp_path / "one").go(resume=three.checkpoints[6])
    assert one.column("loss") == three.column("loss")[6:]


def test_the_temperature_follows_its_cosine(tmp_path):
    rows = Run(small_spec("temperature=0.1", "temperature_end=0.5", "epochs=3"), tmp_path).go().column("temperature")
    expected = [0.5 - 0.2 * (1 + math.cos(math.pi * step / 18)) for step in range(18)]
    assert rows == pytest.approx(expected)
    assert (rows[0], rows[9]) == pytest.approx((0.1, 0.3))  # its ends, and half way

    there_and_back = Temperature.of(small_spec("temperature=0.1", "temperature_end=0.5", "temperature_period=2"), 6)
    assert [there_and_back.at(step) for step in (0, 3, 6, 12)] == pytest.approx([0.1, 0.3, 0.5, 0.1])
    constant = Run(small_spec("temperature=0.3"), tmp_path / "constant").go()
    assert constant.column("temperature") == [0.3] * 12


@pytest.mark.parametrize("objective", ["emc2", "simclr", "dcl", "sogclr"])
def test_every_objective_uses_the_temperature_of_the_step(objective, tmp_path):
    """In the first step the schedule stands at its start; from then on it makes a difference."""
    kind = [f"objective={objective}", "epochs=1"]
    constant = Run(small_spec(*kind), tmp_path).go().column("loss")
    moving = Run(small_spec(*kind, "temperature_end=0.9"), tmp_path / "moving").go().column("loss")
    assert moving[0] == constant[0]
    assert all(a != b for a, b in zip(moving[1:], constant[1:], strict=True))


def test_bf16_trains(tmp_path):
    losses = Run(small_spec("precision=bf16", "epochs=1"), tmp_path).go().column("loss")
    assert all(math.isfinite(loss) for loss in losses)


def test_non_finite_features_name_rank_step_and_sample(tmp_path):
    with pytest.raises(NonFiniteError, match=r"rank 0, step \d+, sample \d+: .* lower lr"):
        Run(small_spec("lr=1e6", "optimiser.name=sgd", "optimiser.warmup_epochs=0"), tmp_path).go()


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (3, ["log_every=100"]),  # told in the next step
        (3, ["log_every=100", "optimiser.accumulate=2", "batch_size=16"]),
        (5, ["log_every=100"]),  # the last one of an epoch, before it is evaluated
        (3, ["log_every=1"]),  # before its row
        (3, ["log_every=100", "checkpoint.minutes=1e-9"]),  # before its checkpoint
        (3, ["log_every=1", "objective=simclr"]),
        (5, ["log_every=100", "objective=simclr"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None,
)
def test_nothing_of_a_step_with_a_feature_that_is_not_finite_is_kept(bad, kind, tmp_path, monkeypatch):
    """Not in the store, not in a checkpoint, not in a row."""
    gather, exchange, commits = collectives.gather_features, LocalStore.exchange, []
    steps = count()

    def spoilt(features):
        return torch.where(torch.arange(8).unsqueeze(1) == 6, math.nan, features) if next(steps) == bad else features

    def watched(self, generation, commit, *arguments):
        commits.append(commit)
        return exchange(self, generation, commit, *arguments)

    monkeypatch.setattr(collectives, "gather_features", lambda features: gather(spoilt(features)))
    monkeypatch.setattr(LocalStore, "exchange", watched)
    run = Run(small_spec(*kind), tmp_path)
    sample = loop.order_for(run.spec, open_images(run.spec.data, "train")).batch(bad)[6]
    with pytest.raises(NonFiniteError, match=rf"rank 0, step {bad}, sample {sample}: .* lower lr"):
        run.go()
    sent = [commit.step for commit in commits if commit is not None]
    assert sent == ([] if "objective=simclr" in kind else list(range(bad)))
    assert all(step <= bad for step in run.checkpoints)
    assert all(math.isfinite(loss) for loss in run.column("loss"))
    assert len(run.column("knn_accuracy")) == 1  # of the untrained encoder


def test_a_carried_negative_whose_feature_is_not_finite_is_named(tmp_path, monkeypatch):
    encode_again, calls = step.Trainer._encode_again, count()

    def spoilt(*arguments):
        features = encode_again(*arguments)
        return features * math.nan if next(calls) == 3 else features

    monkeypatch.setattr(step.Trainer, "_encode_again", spoilt)
    run = Run(small_spec("negatives.kernel=isir", "log_every=100", "epochs=3"), tmp_path)
    with pytest.raises(NonFiniteError, match=r"rank 0, step \d+, sample \d+: ") as caught:
        run.go()
    now, sample = map(int, re.findall(r"step (\d+), sample (\d+)", str(caught.value))[0])
    assert sample not in loop.order_for(run.spec, open_images(run.spec.data, "train")).batch(now)


def test_data_that_do_not_fit(tmp_path):
    with pytest.raises(DataError, match="batch_size: 64 is more than the 48"):
        Run(small_spec("batch_size=64"), tmp_path).go()
    run = Run(small_spec("epochs=1"), tmp_path).go()
    with pytest.raises(RunError, match="now hold 40 training images, not the 48 that it was made on"):
        Run(small_spec("data.limit=40"), tmp_path).go(resume=run.checkpoints[6])


def test_other_images_are_refused_however_many_and_a_set_may_move(tmp_path):
    def image_set(path, seed):
        rows = []
        for pixels in np.random.default_rng(seed).integers(0, 256, (48, 8, 8, 3), dtype=np.uint8):
            image = io.BytesIO()
            Image.fromarray(pixels).save(image, "PNG")
            rows.append({"bytes": image.getvalue(), "path": ""})
        pq.write_table(pa.table({"image": rows}), path)
        return ["epochs=2", f"data.path={path}", f"data.cache_dir={tmp_path / 'cache'}", "data.limit=null"]

    run = Run(small_spec(*image_set(tmp_path / "a.parquet", 1)), tmp_path).go()
    moved = Run(small_spec(*image_set(tmp_path / "b.parquet", 1)), tmp_path / "moved").go(resume=run.checkpoints[6])
    assert moved.column("loss") == run.column("loss")[6:]
    with pytest.raises(RunError, match="now hold other training images than the 48 that it was made on; resume with"):
        Run(small_spec(*image_set(tmp_path / "b.parquet", 2)), tmp_path).go(resume=run.checkpoints[6])


def test_a_worker_has_at_most_one_exchange_under_way(tmp_path, monkeypatch):
    """So a store that is slow slows its workers, and no queue grows."""
    exchange, under_way, most = LocalStore.exchange, set(), []

    def watched(self, *arguments):
        pending = exchange(self, *arguments)
        under_way.add(id(pending))
        most.append(len(under_way))

        def result():
            under_way.discard(id(pending))
            return pending.result()

        return Pending(result)

    monkeypatch.setattr(LocalStore, "exchange", watched)
    Run(small_spec("negatives.cache_proposals=12", "epochs=2"), tmp_path, stop_after=8).go()
    assert len(most) > 8
    assert max(most) == 1
