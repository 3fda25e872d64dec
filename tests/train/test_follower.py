"""A follower in training: behind the encoder, in the checkpoint, for keys alone; and the rows that a cache brings."""

import pytest
import torch
from train.harness import Run, small_spec
from train.test_loop import files

from emc2dist.core.estimators import FEATURES
from emc2dist.data.digits import DigitsImages
from emc2dist.data.images import open_images
from emc2dist.errors import SpecError
from emc2dist.store import Layout, LocalStore
from emc2dist.train import checkpoint, memory
from emc2dist.train.loop import dear_reads, initial_encoder, order_for
from emc2dist.train.memory import Memory, schema_for


def towers(run, step):
    state = checkpoint.load_trainer(run.checkpoints[step])
    return state["encoder"], state["follower"]


def test_the_follower_stands_in_the_checkpoint_between_where_it_was_and_where_the_encoder_is(tmp_path):
    """By hand: from the initial encoder, over the encoders of all steps."""
    spec = small_spec("objective=moco", "encoder.momentum=0.7", "checkpoint.minutes=1e-9")
    run = Run(spec, tmp_path).go()
    expected = dict(initial_encoder(spec, torch.device("cpu")).state_dict())
    for step in range(1, 13):
        encoder, follower = towers(run, step)
        expected = {name: 0.7 * value + 0.3 * encoder[name] for name, value in expected.items()}
        for name, value in expected.items():
            torch.testing.assert_close(follower[name], value, msg=f"{name}, step {step}")
    assert any(not encoder[name].equal(follower[name]) for name in encoder)


def test_without_momentum_there_is_none(tmp_path):
    assert towers(Run(small_spec("epochs=1"), tmp_path).go(), 6)[1] == {}


def test_a_follower_without_delay_gives_the_losses_of_keys_held_still(tmp_path):
    """With momentum 0 it is the encoder of today: the first loss is that of the encoder alone, the gradient is not."""
    plain, followed = (
        Run(small_spec("objective=dcl", "epochs=1", *more), tmp_path / str(len(more))).go()
        for more in ([], ["encoder.momentum=0"])
    )
    assert followed.column("loss")[0] == pytest.approx(plain.column("loss")[0], abs=1e-5)
    ratio = followed.column("gradient_norm")[0] / plain.column("gradient_norm")[0]
    assert 0.3 < ratio < 0.8
    encoder, follower = towers(followed, 6)
    assert all(encoder[name].equal(value) for name, value in follower.items())


def test_an_update_moves_the_follower_and_a_micro_batch_does_not(tmp_path):
    one = Run(small_spec("objective=moco", "epochs=1", "optimiser.accumulate=6", "batch_size=48"), tmp_path).go()
    encoder, follower = towers(one, 6)
    before = initial_encoder(one.spec, torch.device("cpu")).state_dict()
    for name, value in follower.items():
        torch.testing.assert_close(value, 0.99 * before[name] + 0.01 * encoder[name])


def test_chunks_of_keys_are_the_whole(tmp_path):
    whole, chunks = (
        Run(small_spec("objective=moco", "negatives.draws=8", "epochs=1", *more), tmp_path / str(len(more))).go()
        for more in ([], ["encode_chunk=3"])
    )
    assert chunks.column("loss") == pytest.approx(whole.column("loss"), abs=1e-5)


@pytest.mark.parametrize("more", [[], ["negatives.draws=8"], ["encoder.momentum=0.5"]], ids=str)
def test_the_view_that_is_drawn_from_the_cache_is_encoded_again_and_no_other(more, tmp_path):
    """Where the encoder stands still its feature is the cached one; of another view the score is off by 0.01 or so."""
    still = ["objective=dcl", "negatives.name=gumbel", "negatives.feature_dtype=float32", "lr=1e-12"]
    errors = Run(small_spec(*still, *more), tmp_path).go().column("stale_score_rms_error")
    assert len(errors) > 8
    assert max(errors) < 1e-4


def test_a_queue_is_recalled_three_steps_late_from_the_cache(tmp_path, monkeypatch):
    found = []

    class Watched(Memory):
        def recall(self, step):
            recall = super().recall(step)
            found.append((self._order, step, recall["negatives"].proposed))
            return recall

    monkeypatch.setattr("emc2dist.train.loop.Memory", Watched)
    Run(small_spec("objective=moco", "negatives.rows=30"), tmp_path).go()
    assert len(found) == 12
    for order, step, rows in found:
        assert rows.index.tolist() == order.newest(step - 3, 30).tolist()
        assert rows.present.all()
        assert (rows.written_at <= step - 3).all()
        assert len(rows.index) == min(30, 8 * max(0, step - 2))


def test_an_objectives_rows_and_an_estimators_are_told_apart():
    spec = small_spec("objective=nnclr", "negatives.name=gumbel", "negatives.rows=11", "objective.support=7")
    order = order_for(spec, DigitsImages("train", limit=48))
    store = LocalStore(Layout(48, 1), schema_for(spec))
    store.reset("g")
    one = Memory(spec, store, order, 0, "g", torch.device("cpu"))
    one.start(0, settled=-1)
    recall = one.recall(0)
    assert recall["negatives"].proposed.index.tolist() == one._propose(0).tolist()
    assert recall["objective"].proposed.index.tolist() == one._uniform(memory._SUPPORT, 7, 0).tolist()
    assert len(recall["negatives"].proposed.index) == 11
    assert FEATURES in schema_for(spec)
    one.close()


def test_temperatures_are_remembered_from_visit_to_visit(tmp_path):
    run = Run(small_spec("objective=isogclr", "objective.eta=0.02", "objective.rho=0.01"), tmp_path).go()
    told = run.column("anchor_temperature")
    assert told[:6] == pytest.approx([0.2] * 6)
    assert all(abs(value - 0.2) > 1e-4 for value in told[6:])
    tau = next(value for name, value in files(run.checkpoints[12]).items() if name.endswith("objective/tau"))
    assert tau.shape == (48, 2)
    assert ((tau >= 0.05) & (tau <= 1)).all()
    assert tau.unique().numel() > 40


def test_a_cache_that_is_too_large_to_be_read_in_every_step_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("emc2dist.train.loop._MOST_READ", 48 * 16 * 2 - 1)
    spec = small_spec("objective=dcl", "negatives.name=gumbel")
    message = r"negatives.rows: 48 cached features, 0.0 GiB, .* give fewer negatives.rows .*, or negatives: chain"
    with pytest.raises(SpecError, match=message):
        Run(spec, tmp_path).go()
    monkeypatch.setattr("emc2dist.train.loop._MOST_READ", 48 * 16 * 2)
    images = open_images(spec.data, "train")
    order_for(spec, images)
    assert dear_reads(spec, images) == []
    monkeypatch.setattr("emc2dist.train.loop._DEAR_READ", 48 * 16 * 2 - 1)
    (remark,) = dear_reads(spec, images)
    assert "every step reads 48 cached features" in remark
    assert dear_reads(small_spec("objective=sogclr"), images) == []
