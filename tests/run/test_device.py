"""The device of a run that goes on: another one than before only knowingly, and then it is said."""

import re

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


@pytest.fixture
def gpus(monkeypatch):
    """Sets how many GPUs the cluster and this machine have, to a torch that was built for CPUs."""

    def have(cluster_has: int, machine_has: int) -> None:
        monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"GPU": cluster_has} if cluster_has else {})
        monkeypatch.setattr(cluster, "_places", lambda needs, labels: cluster_has)
        monkeypatch.setattr(
            cluster.NvidiaGPUAcceleratorManager, "get_current_node_num_accelerators", lambda: machine_has
        )

    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return have


@pytest.mark.parametrize(
    ("cluster_has", "machine_has", "why"),
    [
        (0, 0, ""),
        (0, 2, "this machine has 2, torch .* is built for CPUs, CUDA_VISIBLE_DEVICES is ''"),
        (1, 0, "the cluster's GPUs have room for 1 of 4 workers"),
    ],
)
def test_what_a_run_trains_on_is_said_and_gpus_that_it_leaves_alone_are_a_remark(cluster_has, machine_has, why, gpus):
    gpus(cluster_has, machine_has)
    told, spec = Told(), parse(RUN, ["workers=4"])
    remarks = driver.on_device(spec, "cpu", told.append)
    assert re.fullmatch(
        f"trains on cpu{f', and not on GPUs: {why}; device=cuda would refuse that' if why else ''}", told[0]
    )
    assert remarks == (told if why else [])
    for asked, device in (("auto", "cuda"), ("cpu", "cpu")):
        assert driver.on_device(spec.model_copy(update={"device": asked}), device, told.append) == []
        assert told.pop() == f"trains on {device}"


def test_gpus_that_are_asked_for_and_not_there_are_refused_by_that_key(gpus):
    gpus(0, 0)
    message = (
        "device: cuda, but Ray finds no GPU .torch .* is built for CPUs, CUDA_VISIBLE_DEVICES is ''.; give device=auto"
    )
    with pytest.raises(SpecError, match=message):
        cluster._check_room(parse(RUN, ["device=cuda"]))
    gpus(1, 1)
    with pytest.raises(
        SpecError, match=r"workers: 4 need 1 GPU each, .* room for 1; lower .* change resources or device"
    ):
        cluster._check_room(parse(RUN, ["device=cuda", "workers=4"]))


def test_a_kind_of_gpu_that_no_node_has_is_refused_by_its_name(ray_cluster, gpus, monkeypatch):
    spec = parse(RUN, ["resources.accelerator=A100"])
    with pytest.raises(SpecError, match=r"resources\.accelerator: A100, but the cluster tells of no GPU; give a name"):
        cluster._check_room(spec)
    gpus(0, 2)
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"GPU": 1, "accelerator_type:T4": 1})
    with pytest.raises(SpecError, match=r"A100, but the cluster has T4; give a name as Ray has it"):
        cluster._check_room(spec)
    assert cluster.worker_needs(spec) == {"GPU": 1, "CPU": 0, "accelerator_type:A100": 0.001}
    with pytest.raises(SpecError, match=r"resources\.accelerator: A100 is a GPU, and device is cpu"):
        parse(RUN, ["resources.accelerator=A100", "device=cpu"])


def test_a_new_run_trains_on_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "use_gpu", lambda spec: False)
    spec = parse(RUN, [f"run_dir={tmp_path}"])
    new = RunFolder.of(spec)
    assert driver._device(spec, new, newest(new), Told()) == "cpu"
