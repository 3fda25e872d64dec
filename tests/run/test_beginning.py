"""What a run begins with, as the command has it: checked, pinned, and not needed any more when the run resumes."""

import json
from pathlib import Path

import pytest
import torch
from command import in_process
from safetensors.torch import save_file
from train.harness import SMALL, Run, small_spec

from emc2dist import files
from emc2dist.config import Spec
from emc2dist.errors import RunError, SpecError
from emc2dist.run import beginning
from emc2dist.run.folder import RunFolder, checkpoint_name
from emc2dist.train import checkpoint
from emc2dist.train.loop import encoder_for
from emc2dist.train.sets import open_training_set


def trained(runs: Path, *overrides: str, stop_after: float = 100) -> RunFolder:
    """A run's folder with its checkpoints, trained in this process."""
    spec = small_spec("epochs=1", "eval.every=0", f"run_dir={runs}", *overrides)
    folder = RunFolder.prepare(spec)
    run = Run(spec, folder.place.path, stop_after).go()
    for step, made in run.checkpoints.items():
        made.rename(folder.place.path / checkpoint_name(step))
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A finished run of one epoch, of 6 steps."""
    return trained(tmp_path_factory.mktemp("runs"), "name=first")


def check(spec: Spec) -> list[str]:
    return beginning.check(spec, open_training_set(spec))


def test_a_run_that_can_begin_with_another_says_with_what(first):
    spec = small_spec(f"start_from={first.place}", "name=second", "lr=1", "temperature=0.5", "batch_size=16")
    place = first.place / checkpoint_name(6)
    assert check(spec) == [
        f"start_from: {place}: encoder, optimiser, chains and cache are those of its step 6",
        "seed: 0 is also that of start_from, so that this run takes batches and views that it took already; another "
        "seed would take others",
    ]
    pinned = beginning.pinned(spec)
    assert pinned.start_from == str(place)
    assert check(pinned) == check(spec)
    assert len(check(small_spec(f"start_from={first.place}", "seed=1"))) == 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.limit=40"], r"data\.path: digits holds 40 training images, not the 48 of that run"),
        (["encoder.backbone=resnet18", "encoder.norm=group"], r"encoder\.backbone: conv4 -> resnet18; .*norm"),
        (["optimiser.name=adamw"], r"optimiser\.name: sgd -> adamw: these have to be"),
        (["optimiser.layer_decay=0.5"], r"optimiser\.layer_decay: None -> 0\.5"),
        (["encoder.momentum=0.9"], r"encoder\.momentum: None -> 0\.9"),
        (["encoder.freeze=1"], r"encoder\.freeze: None -> 1"),
        (["negatives.feature_dtype=float16"], r"negatives\.feature_dtype: float32 -> float16"),
        (["views.count=3"], r"views\.count: 2 -> 3"),
    ],
)
def test_what_has_to_be_equal_is_named_by_its_key(overrides, said, first):
    spec = small_spec(f"start_from={first.place}", *overrides)
    with pytest.raises(RunError, match=rf"start_from: .*checkpoint-0+6: .*{said}"):
        check(spec)


def test_a_checkpoint_within_an_epoch_is_passed_over(tmp_path):
    early = trained(tmp_path, "name=early", "epochs=2", stop_after=8)
    assert [place.name for place in early.checkpoints()] == [checkpoint_name(8), checkpoint_name(6)]
    remarks = check(small_spec(f"start_from={early.place}", "seed=1"))
    assert remarks == [
        f"start_from: {early.place / checkpoint_name(6)}: encoder, optimiser, chains and cache are those of its step 6",
        f"start_from: passed over, as made within an epoch: {early.place / checkpoint_name(8)}",
    ]
    (early.place / checkpoint_name(6)).remove()
    with pytest.raises(RunError, match=r"holds no whole checkpoint of the end of an epoch .*train it to one"):
        check(small_spec(f"start_from={early.place}"))


def test_a_frozen_share_and_what_was_taken_are_said(first):
    spec = small_spec(f"encoder.weights={first.place}", "encoder.freeze=2")
    taken, frozen = check(spec)
    assert taken.endswith("all 8 tensors of the backbone were taken, and 2 of the projector")
    assert frozen == "encoder.freeze: 2: 19,392 of 392,528 parameters stay as they are"
    assert beginning.pinned(spec).encoder.weights == str(first.place / checkpoint_name(6) / "trainer.safetensors")


def test_weights_that_do_not_fit_are_refused_before_anything_starts(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(
        SpecError, match=r"1 of its tensors have no place here \(a\); 8 of the backbone's are not in it"
    ):
        check(small_spec(f"encoder.weights={tmp_path / 'a.safetensors'}"))


def test_a_resumed_run_takes_no_other_weights_and_needs_none(tmp_path):
    encoders, paths = [], []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        encoders.append(encoder_for(small_spec()))
        paths.append(tmp_path / f"{len(paths)}.safetensors")
        save_file(dict(encoders[-1].backbone.state_dict()), paths[-1])
    folder = trained(tmp_path / "runs", f"encoder.weights={paths[0]}")
    manifest = checkpoint.read_manifest(folder.checkpoints()[0])

    def refuse(*overrides):
        beginning.refuse_other(folder, manifest, small_spec(*overrides))

    refuse(f"encoder.weights={paths[1]}")  # the same, elsewhere
    with pytest.raises(
        RunError, match=rf"encoder\.weights: {paths[2]} is not what .* began with, {paths[0]}; give that"
    ):
        refuse(f"encoder.weights={paths[2]}")
    with pytest.raises(RunError, match=rf"encoder\.weights: None, but .* began with {paths[0]}"):
        refuse()
    bare = manifest.model_copy(update={"began": {}})
    with pytest.raises(RunError, match=r"start_from: a, but .* began with none"):
        beginning.refuse_other(folder, bare, small_spec("start_from=a"))
    for path in paths:
        path.unlink()
    refuse(f"encoder.weights={paths[0]}")
    refuse(f"encoder.weights={paths[2]}")  # nobody knows any more


def test_longer_is_refused_with_what_does_it(first):
    with pytest.raises(RunError, match=rf"\(epochs: 1 -> 3\); .*start_from={first.place} to begin with what that one"):
        first.refuse_other_spec(first.spec().model_copy(update={"epochs": 3}))


def test_the_command_begins_where_another_run_ended(ray_cluster, tmp_path):
    """Two workers and three shards, from a run of one and one."""
    (tmp_path / "small.yaml").write_text(SMALL + f"run_dir: {tmp_path / 'runs'}\nthreads: 1\n")
    first = trained(tmp_path / "runs", "name=first")
    words = ["train", tmp_path / "small.yaml", "name=second", f"start_from={first.place}", "workers=2", "shards=3"]
    done = in_process(*words, "seed=7", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    place = first.place / checkpoint_name(6)
    assert f"start_from: {place}: encoder, optimiser, chains and cache are those of its step 6" in summary["remarks"]
    rows = [json.loads(line) for line in (tmp_path / "runs/second/metrics.jsonl").read_text().splitlines()]
    assert [row["visited_ratio"] for row in rows if row.get("step") == 1 and "loss" in row] == [1]
    second = RunFolder.open(tmp_path / "runs/second")
    assert second.spec().start_from == str(first.place)
    manifest = checkpoint.read_manifest(second.checkpoints()[0])
    assert manifest.began == {"start_from": checkpoint.fingerprint(Path(str(place)))}
    assert files.at(manifest.parsed_spec().start_from).name == checkpoint_name(6)
