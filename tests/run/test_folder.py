"""A name is taken by what trained under it, not by what was refused before it began."""

import pytest
from train.harness import small_spec

from emc2dist.errors import RunError
from emc2dist.run.folder import RunFolder


def prepared(tmp_path, batch):
    return RunFolder.prepare(small_spec(f"run_dir={tmp_path}", f"batch_size={batch}"))


def test_a_run_that_never_trained_leaves_its_name(tmp_path, capsys):
    prepared(tmp_path, 8).track("wandb", "of the first")
    assert prepared(tmp_path, 16).spec().batch_size == 16
    assert "batch_size: 8 -> 16) and never trained" in capsys.readouterr().err
    folder = prepared(tmp_path, 16)
    assert folder.trackers() == {}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("left", ["row", "checkpoint", "summary"])
def test_a_run_that_trained_keeps_it(left, tmp_path):
    folder = prepared(tmp_path, 8)
    if left == "row":
        folder.append([{"step": 1}])
    elif left == "checkpoint":
        (folder.place / "checkpoint-000000001" / "state").write(b"")
    else:
        folder.finish({})
    with pytest.raises(RunError, match=r"had another spec \(batch_size: 8 -> 16\); give this one a new name"):
        prepared(tmp_path, 16)
    assert folder.spec().batch_size == 8
