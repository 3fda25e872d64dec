"""Folders of runs and clusters whose files are cut, emptied, changed or none: each is named, none is believed."""

import json
import os
import socket
import sys
from pathlib import Path

import pytest
from command import in_process
from train.harness import SMALL, small_spec

from emc2dist.errors import Emc2Error, LaunchError, RunError, StorageError
from emc2dist.files import at
from emc2dist.launch.kuberay import KubeRay
from emc2dist.launch.local import LocalCluster
from emc2dist.run import loaded, lock
from emc2dist.run.folder import RunFolder
from emc2dist.run.listeners.trackers import recorders
from emc2dist.run.scratch import temporary
from emc2dist.sweep.folder import SweepFolder

JUNK = {
    "empty": b"",
    "cut": b'{"step": 1, "lo',
    "binary": b"\xff\xfe\x00\x01",
    "list": b"[1]",
    "number": b"7",
    "deep": b"[" * 10**5,
}
READ_BY = {
    "spec.yaml": ("watch", "report", "train"),
    "metrics.jsonl": ("watch --once", "watch", "report", "train"),
    "summary.json": ("watch", "train"),
}


@pytest.fixture
def run(tmp_path):
    """A run folder with two rows, as a run leaves it that was stopped before its first checkpoint."""
    (tmp_path / "small.yaml").write_text(f"{SMALL}run_dir: {tmp_path / 'runs'}\n")
    folder = RunFolder.prepare(small_spec(f"run_dir={tmp_path / 'runs'}", "data.shuffle=full"))
    folder.append([{"step": 0, "resumed": 0, "epoch": 0.0}, {"step": 1, "loss": 2.0, "epoch": 0.1}])
    return tmp_path / "runs" / "small"


def words_of(command, run):
    """The command line of a command on a run folder."""
    name, *options = command.split()
    more = {"report": ["--out", run / "report.html"], "export": [run / "backbone"]}.get(name, [])
    return [name, run.parent.parent / "small.yaml"] if name == "train" else [name, run, *options, *more]


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize(("file", "command"), [(file, command) for file, all_ in READ_BY.items() for command in all_])
def test_a_damaged_file_of_a_run_is_named_by_whatever_reads_it(run, file, command, junk):
    if (file, junk) == ("spec.yaml", "deep"):
        pytest.skip("what YAML may be is a matter of emc2dist.config")
    data = JUNK[junk] if file != "metrics.jsonl" else b'{"step": 0, "epoch": 0.0}\n' + JUNK[junk] + b"\n"
    (run / file).write_bytes(data)
    done = in_process(*words_of(command, run))
    assert done.returncode in (1, 2), done.stderr
    assert str(run / file) in done.stderr.splitlines()[-1]
    if file == "metrics.jsonl":
        assert "line 2" in done.stderr
    assert (run / file).read_bytes() == data


@pytest.mark.parametrize(("file", "command"), [(file, all_[0]) for file, all_ in READ_BY.items()])
def test_a_pointer_in_place_of_a_file_of_a_run_is_named(run, file, command):
    (run / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    done = in_process(*words_of(command, run))
    assert done.returncode == 1
    assert f"{run / file}: a pointer of Git LFS and not the file: fetch that with `git lfs pull`" in done.stderr


@pytest.mark.parametrize("read", ["versions", "trackers"])
def test_what_is_read_beside_is_named_too(run, read):
    (run / f"{read}.json").write_bytes(b"{")
    with pytest.raises(RunError, match=rf"{read}\.json: is no JSON"):
        getattr(RunFolder.open(run), read)()


@pytest.mark.parametrize("command", READ_BY["metrics.jsonl"])
@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"loss": 1, "epoch": 0.25}', "names no step"),
        ('{"step": true, "epoch": 0.25}', "names no step"),
        ('{"step": 1, "loss": 1.0}', "names no epoch"),
        ('{"step": 1, "epoch": NaN, "loss": 1.0}', "names no epoch"),
        ('{"step": 1, "epoch": 0.25, "loss": null}', "has loss: null, which is no number"),
        ('{"step": 1, "epoch": 0.25, "loss": "0.5"}', 'has loss: "0.5", which is no number'),
        ('{"step": 1, "epoch": "0.25", "loss": 0.5}', 'has epoch: "0.25", which is no number'),
        ('{"step": 1, "epoch": 0.25, "loss": [0.5]}', "has loss: [0.5], which is no number"),
        (f'{{"step": 1, "epoch": 0.25, "loss": 1{"0" * 400}}}', "has loss: 1000"),
        ('{"step": 1, "epoch": 0.25, "new_seconds": {}}', "has new_seconds: {}, which is no number"),
    ],
)
def test_a_row_of_another_shape_is_named(run, row, words, command):
    (run / "metrics.jsonl").write_text(f'{{"step": 0}}\n{row}\n')
    done = in_process(*map(str, words_of(command, run)))
    assert done.returncode == 1, done.stderr
    assert f"{run / 'metrics.jsonl'}: line 2 {words}" in done.stderr.splitlines()[-1]


def test_rows_that_a_run_writes_are_none_of_these(run):
    rows = [{"step": 6, "passed_over": "checkpoint-12: no"}, {"step": 6, "device_changed": "cpu -> cuda"}]
    rows += [{"step": 6, "resumed": 1, "epoch": 1.0}, {"step": 7, "epoch": 1.2, "loss": float("inf"), "images": 8}]
    RunFolder.open(run).append(rows)
    assert RunFolder.open(run).rows()[-4:] == rows


@pytest.mark.parametrize("command", READ_BY["summary.json"])
def test_a_summary_of_another_shape_is_named(run, command):
    (run / "summary.json").write_text("{}")
    done = in_process(*words_of(command, run))
    assert done.returncode == 1
    assert f"{run / 'summary.json'}: names no run_dir" in done.stderr.splitlines()[-1]


RECORD = {"name": "x", "point": 0, "seed": 0, "values": {}}
WRONG = [{"name": "x"}, RECORD | {"what": 1}, RECORD | {"state": "asleep"}, RECORD | {"history": [[1]]}]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", *(json.dumps(wrong).encode() for wrong in WRONG)])
def test_a_damaged_record_of_a_sweep_is_named(tmp_path, data):
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "a-000-seed0.json").write_bytes(data)
    with pytest.raises(RunError, match=r"a-000-seed0\.json: is (no|list)"):
        SweepFolder(at(tmp_path)).records()


def test_a_checkpoint_of_another_encoder_is_none(run, monkeypatch):
    class Manifest:
        step = 6

        def parsed_spec(self):
            return small_spec("data.shuffle=full")

    (run / "checkpoint-000000006").mkdir()
    monkeypatch.setattr(loaded.checkpoint, "fetch", lambda place, folder, layout: folder)
    monkeypatch.setattr(loaded.checkpoint, "read_manifest", lambda place: Manifest())
    for state in ({}, {"encoder": {}}):
        monkeypatch.setattr(loaded.checkpoint, "load_trainer", lambda path, state=state: state)
        with pytest.raises(RunError, match=r"checkpoint-000000006: .*damaged, or made under another spec"):
            loaded.LoadedCheckpoint.newest(RunFolder.open(run))


def test_where_no_lock_can_be_held_is_said(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"), lock.held(at(tmp_path / "file")):
        pass
    (tmp_path / "taken" / "driver.lock").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"driver\.lock"), lock.held(at(tmp_path / "taken")):
        pass

    def none(file, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", none)
    with lock.held(at(tmp_path / "run")):
        assert "not locked (Operation not supported)" in capsys.readouterr().err


def test_a_temporary_folder_that_cannot_be_is_tmpdirs(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(StorageError, match="gone: No such file"):
        temporary("x-")
    monkeypatch.setenv("TMPDIR", "/gone")
    monkeypatch.setattr("tempfile.gettempdir", lambda: os.stat("/gone"))
    with pytest.raises(StorageError, match="TMPDIR=/gone: No such file"):
        temporary("x-")


@pytest.fixture
def cluster():
    """The folder of a cluster that ran."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="emc2-", dir="/tmp") as folder:
        (Path(folder) / "dashboard").write_text("http://127.0.0.1:1")
        (Path(folder) / "head.pid").write_text("999999999")
        yield LocalCluster(Path(folder))


@pytest.mark.parametrize("data", [b"", b"x", b"\xff", b"-1", b"12 13"])
def test_a_damaged_pid_file_is_named(cluster, data):
    (cluster.folder / "head.pid").write_bytes(data)
    for ask in (cluster.running, cluster.nodes, cluster.stop):
        with pytest.raises(LaunchError, match=r"head\.pid: "):
            ask()


@pytest.mark.parametrize("file", ["dashboard", "ray/ray_current_cluster"])
def test_a_damaged_address_of_a_cluster_is_named(cluster, file, monkeypatch):
    monkeypatch.setattr(LocalCluster, "_lives", lambda self, name: True)
    (cluster.folder / "ray").mkdir()
    (cluster.folder / "ray" / "ray_current_cluster").write_text("127.0.0.2:1")
    assert cluster.running().dashboard == "http://127.0.0.1:1"
    (cluster.folder / file).write_text("")
    with pytest.raises(LaunchError, match=f"{file}: is empty"):
        cluster.running()


def test_a_folder_of_a_cluster_that_is_none_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir("/tmp")
    for name in ("/dev/null", "/proc/nowhere"):
        with pytest.raises(LaunchError, match=name):
            LocalCluster(Path(name)).start(1)


@pytest.mark.parametrize("said", ["", "garbage", "[]", "{}", "null", "\\xff"])
def test_what_is_no_kubectl_is_named(tmp_path, monkeypatch, said):
    program = tmp_path / "kubectl"
    program.write_text(f"#!{sys.executable}\nimport os\nos.write(1, b'{said}')\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match=r"kubectl cannot be started: .*Permission denied"):
        KubeRay("default").jobs()
    program.chmod(0o755)
    with pytest.raises(LaunchError, match="gives no JSON of Kubernetes'"):
        KubeRay("default").jobs()
    program.write_text("no program")
    with pytest.raises(LaunchError, match="kubectl cannot be started"):
        KubeRay("default").jobs()


def test_a_tracker_that_fails_is_said_once_and_ends_nothing(tmp_path, capsys):
    spec = small_spec(f"run_dir={tmp_path}", "watch.tensorboard=true")
    folder = RunFolder.prepare(spec)
    (tmp_path / "small" / "tensorboard").write_text("a file where its folder is to be")
    with recorders(spec, folder) as (recorder,):
        for step in range(3):
            recorder.record({"step": step, "epoch": 0.0, "loss": 1.0})
    said = capsys.readouterr().err
    assert said.count("watch.tensorboard: rows do not reach it (") == 1
    assert "the run goes on" in said
    assert json.loads((tmp_path / "small" / "versions.json").read_text())


def test_a_port_that_is_taken_is_named(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        from emc2dist.run.listeners.prometheus import Endpoint

        with pytest.raises(Emc2Error, match=f"watch.port: {taken.getsockname()[1]} cannot be used"):
            Endpoint(None, taken.getsockname()[1])
