"""The device of a run that goes on: another one than before only knowingly, and then it is said."""

import pytest
from train.harness import leave_manifest

from emc2dist.config import parse
from emc2dist.errors import SpecError
from emc2dist.run import cluster, driver
from emc2dist.run.checkpoints import newest
from emc2dist.run.folder import RunFolder, checkpoint_name
from emc2dist.train.checkpoint import MANIFEST

RUN = "name: a\nepochs: 3\nbatch_size: 16\nlr: 1e-4\n"


class Told(list):
    """A Listener that keeps what it is told."""

    say = list.append


@pytest.fixture
def folder(tmp_path):
    """A run that trained on GPUs up to step 6, and left the beginnings of a later checkpoint."""
    spec = parse(RUN, [f"run_dir={tmp_path}"])
    folder = RunFolder.prepare(spec)
    leave_manifest(folder, spec.model_copy(update={"device": "cuda"}), 6)
    (folder.place / checkpoint_name(12) / MANIFEST).write(b'{"step": 12')
    return folder


@pytest.mark.parametrize(("asked", "found"), [("auto", True), ("cuda", True)])
def test_the_same_device_goes_without_saying(asked, found, folder, monkeypatch):
    monkeypatch.setattr(cluster, "use_gpu", lambda spec: found)
    told = Told()
    assert driver._device(parse(RUN, [f"device={asked}"]), folder, newest(folder), told) == "cuda"
    assert (told, folder.rows()) == ([], [])


def test_auto_does_not_move_a_run_in_silence(folder, monkeypatch):
    monkeypatch.setattr(cluster, "use_gpu", lambda spec: False)
    with pytest.raises(SpecError, match=r"device: auto is cpu here, .* trained on cuda up to step 6; .* device=cpu"):
        driver._device(parse(RUN), folder, newest(folder), Told())
    assert folder.rows() == []


def test_a_device_that_is_named_is_meant_and_told(folder, monkeypatch):
    monkeypatch.setattr(cluster, "use_gpu", lambda spec: False)
    told, spec = Told(), parse(RUN, ["device=cpu", f"run_dir={folder.place}/.."])
    RunFolder.prepare(spec)  # is no other spec
    assert driver._device(spec, folder, newest(folder), told) == "cpu"
    assert told == ["device: cpu from step 6 on, cuda before: the numbers are not those of one device"]
    assert folder.rows() == [{"step": 6, "device_changed": "cuda -> cpu"}]


def test_a_new_run_trains_on_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "use_gpu", lambda spec: False)
    spec = parse(RUN, [f"run_dir={tmp_path}"])
    new = RunFolder.of(spec)
    assert driver._device(spec, new, newest(new), Told()) == "cpu"
