"""Four views of every image through the whole system: trained, remembered, taken up again, evaluated, certified."""

import pytest
import torch
from safetensors.numpy import load_file
from train.harness import Run, small_spec

from emc2dist.cli import main
from emc2dist.run.folder import RunFolder, checkpoint_name

FOUR = ["views.count=4", "objective=mv_dhel", "negatives.name=chain", "negatives.kernel=isir"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run folder with both its checkpoints, and the run."""
    spec = small_spec(*FOUR, f"run_dir={tmp_path_factory.mktemp('runs')}", "device=cpu")
    folder = RunFolder.prepare(spec)
    run = Run(spec, folder.place.path).go()
    for step, place in run.checkpoints.items():
        run.checkpoints[step] = place.rename(folder.place.path / checkpoint_name(step))
    return run


def test_every_view_slot_has_a_chain(whole):
    (shard,) = sorted(whole.checkpoints[12].glob("shard-*.safetensors"))
    tables = load_file(shard)
    assert tables["negatives/state"].shape == (48, 4)
    assert tables["negatives/visited"].all()
    numbers = torch.from_numpy(tables["negatives/view"])
    assert (numbers % 8 < 4).all()  # drawn in the batch, where slots are 0 to 3
    assert (numbers % 8 == torch.arange(4)).all()
    assert 1 < max(whole.column("carried_age_steps")) < 12
    assert len(whole.column("knn_accuracy")) == 3  # with the untrained encoder


def test_it_is_taken_up_again_bit_for_bit(whole, tmp_path):
    again = Run(whole.spec, tmp_path).go(resume=whole.checkpoints[6])
    assert again.column("loss") == whole.column("loss")[6:]


@pytest.mark.parametrize("negatives", ["moving_average", "in_batch"])
def test_one_fraction_for_all_views_trains_over_what_does_not_chain(negatives, tmp_path):
    run = Run(small_spec(FOUR[0], "objective=mv_infonce", f"negatives={negatives}", "epochs=1"), tmp_path).go()
    assert len(run.column("loss")) == 6


def test_it_is_evaluated_and_certified(whole, capsys):
    folder = str(whole.folder)
    assert main(["evaluate", folder]) == 0
    assert main(["certify", folder, "--samples", "32", "--views", "8", "--steps", "24"]) == 0
    assert "32 images in 8 views" in capsys.readouterr().err
    assert main(["certify", folder, "--samples", "32", "--views", "20", "--steps", "24"]) == 2
    assert "give --views 14" in capsys.readouterr().err
