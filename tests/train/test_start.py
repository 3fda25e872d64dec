"""A run that begins with what another one had learnt, under a schedule of its own."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from train.harness import Run, pairs_spec, small_spec, write_pairs

from emc2dist import files
from emc2dist.core.columns import as_of_step_0
from emc2dist.errors import RunError
from emc2dist.store import Layout, LocalStore
from emc2dist.train import checkpoint
from emc2dist.train.loop import encoder_for
from emc2dist.train.memory import schema_for

KINDS = [
    ["negatives.kernel=isir", "negatives.cache_proposals=13"],
    ["objective=moco", "negatives.rows=13", "encoder.momentum=0.7"],
    ["objective=nnclr", "negatives.name=gumbel", "negatives.rows=13", "objective.after=0"],
]
STILL = ["lr=1e-12", "epochs=1", "eval.every=0", "name=other", "start_from=small"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A finished run."""
    return Run(small_spec("optimiser.name=adamw"), tmp_path_factory.mktemp("first")).go()


def parameters(folder):
    return checkpoint.load_trainer(folder)["encoder"]


def begun(first, tmp_path, *overrides):
    spec = small_spec("optimiser.name=adamw", *STILL, *overrides)
    return Run(spec, tmp_path).go(start=first.checkpoints[12])


def test_it_has_the_encoder_the_optimiser_the_chains_and_the_cache(first, tmp_path):
    other = begun(first, tmp_path)
    for name, tensor in parameters(first.checkpoints[12]).items():
        torch.testing.assert_close(parameters(other.checkpoints[6])[name], tensor, rtol=0, atol=1e-9)
    counts = [slots["step"] for slots in checkpoint.load_trainer(other.checkpoints[6])["optimiser"]["state"].values()]
    assert {float(count) for count in counts} == {12.0 + 6.0}
    assert (first.column("visited_ratio")[0], other.column("visited_ratio")[0]) == (0, 1)
    assert [row["step"] for row in other.rows if "resumed" in row] == [0]
    assert other.column("knn_accuracy")[0] == first.column("knn_accuracy")[-1]


def test_its_schedule_and_its_decay_are_its_own(first, tmp_path):
    other = begun(first, tmp_path, "optimiser.warmup_epochs=1", "optimiser.weight_decay=0.25")
    assert other.column("lr") == pytest.approx([1e-12 * (step + 1) / 6 for step in range(6)])
    groups = checkpoint.load_trainer(other.checkpoints[6])["optimiser"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.25, 0.0]


def test_ages_go_on_from_before_its_first_step(first):
    manifest = checkpoint.read_manifest(files.at(first.checkpoints[12]))
    spec = small_spec()
    store = LocalStore(Layout(48, 1), schema_for(spec))
    checkpoint.restore_store(first.checkpoints[12], manifest, store, "g", views_at_0=spec.views.count)
    tables = store.snapshot("g", 0, -1)
    before = load_file(first.checkpoints[12] / "shard-00000-of-00001.safetensors")
    for name, shift in {"negatives/visited_at": 12, "feature/written_at": 12, "negatives/view": 12 * 4}.items():
        table, column = name.split("/")
        assert (tables[table][column] == before[name].numpy() - shift).all()
        assert (tables[table][column] < 0).all()
    for name in ("negatives/state", "feature/feature", "feature/slot"):
        table, column = name.split("/")
        assert (tables[table][column] == before[name].numpy()).all()


def test_columns_without_steps_stay_as_they_are():
    columns = {"visited_at": np.array([5], np.int32), "view": np.array([21]), "state": np.array([7])}
    moved = as_of_step_0(columns, 6, 2)
    assert {name: values.tolist() for name, values in moved.items()} == {"visited_at": [-1], "view": [-3], "state": [7]}
    assert {name: values.dtype for name, values in moved.items()} == {n: v.dtype for n, v in columns.items()}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0])
def test_it_resumes_bit_for_bit_without_what_it_began_with(kind, tmp_path):
    first = Run(small_spec("epochs=1", "eval.every=0", *kind), tmp_path / "first").go()
    spec = small_spec("name=other", "start_from=first", "seed=1", "eval.every=0", *kind)
    whole = Run(spec, tmp_path).go(start=first.checkpoints[6])
    stopped = Run(spec, tmp_path / "stopped", stop_after=8).go(start=first.checkpoints[6])
    again = Run(spec, tmp_path / "again").go(resume=stopped.checkpoints[8])
    assert whole.column("loss") == stopped.column("loss") + again.column("loss")
    assert again.column("loss")
    one, other = (load_file(run.checkpoints[12] / "trainer.safetensors") for run in (whole, again))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    one, other = (checkpoint.read_manifest(files.at(run.checkpoints[12])) for run in (whole, again))
    assert one.began == other.began == {"start_from": checkpoint.fingerprint(first.checkpoints[6])}


def test_a_run_of_pairs_begins_with_another_too(tmp_path):
    folder = write_pairs(tmp_path / "set", judged=False)
    first = Run(pairs_spec(folder, "eval.every=0"), tmp_path / "first").go()
    step, place = max(first.checkpoints.items())
    spec = pairs_spec(folder, "eval.every=0", "lr=1e-12", "epochs=1", "name=other", f"start_from={place}")
    other = Run(spec, tmp_path).go(start=place)
    for name, tensor in parameters(place).items():
        torch.testing.assert_close(parameters(other.checkpoints[step // 2])[name], tensor, rtol=0, atol=1e-9)
    assert other.column("visited_ratio")[0] == 1


def test_what_it_began_with_does_make_a_difference(tmp_path):
    first = Run(small_spec("epochs=1", "eval.every=0"), tmp_path / "first").go()
    spec = small_spec("name=other", "start_from=first", "epochs=1", "eval.every=0")
    assert Run(spec, tmp_path).go(start=first.checkpoints[6]).column("loss")[0] != first.column("loss")[0]


def test_without_the_other_checkpoint_it_does_not_begin(tmp_path):
    with pytest.raises(RunError, match=r"start_from: is taken up by `emc2dist train` alone"):
        Run(small_spec("start_from=gone"), tmp_path).go()


def test_a_run_that_began_with_weights_resumes_without_their_file(tmp_path):
    file = tmp_path / "w.safetensors"
    torch.manual_seed(5)
    save_file(dict(encoder_for(small_spec()).backbone.state_dict()), file)
    spec = small_spec(
        f"encoder.weights={file}", "encoder.freeze=2", "optimiser.layer_decay=0.5", "epochs=1", "eval.every=0"
    )
    began = load_file(file)
    whole = Run(spec, tmp_path).go()
    stopped = Run(spec, tmp_path / "stopped", stop_after=3).go()
    file.unlink()
    again = Run(spec, tmp_path / "again").go(resume=stopped.checkpoints[3])
    one, other = (parameters(run.checkpoints[6]) for run in (whole, again))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    frozen = {name for name, tensor in began.items() if torch.equal(tensor, one[f"backbone.{name}"])}
    assert frozen == {f"blocks.{block}.0.{name}" for block in (0, 1) for name in ("weight", "bias")}
    assert checkpoint.read_manifest(files.at(again.checkpoints[6])).began.keys() == {"encoder.weights"}
