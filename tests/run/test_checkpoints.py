"""The checkpoints of a run folder: which one a run resumes from, which are kept, and what the command says of them."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from run.test_driver import damage
from train.harness import Run, small_spec
from train.test_loop import assert_equal

from emc2dist import files
from emc2dist.cli import main
from emc2dist.config import dump
from emc2dist.errors import RunError
from emc2dist.run import checkpoints, lock
from emc2dist.run.folder import RunFolder, checkpoint_name
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.store import Layout
from emc2dist.train import checkpoint, checksums

LAYOUT = Layout(48, 1)
TRAINER = "trainer.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three epochs of six steps, all its checkpoints kept."""
    return Run(
        small_spec("epochs=3", "optimiser.name=sgd", "optimiser.momentum=0"), tmp_path_factory.mktemp("run")
    ).go()


@pytest.fixture
def run(trained, tmp_path):
    """Its run folder, with the checkpoints of steps 6 and 12."""
    folder = RunFolder.prepare(trained.spec.model_copy(update={"run_dir": str(tmp_path / "runs")}))
    for step in (6, 12):
        shutil.copytree(trained.checkpoints[step], path_of(folder, step))
    return folder


def path_of(run, step):
    return Path(str(run.place)) / checkpoint_name(step)


def choose(run, tmp_path):
    scratch = tmp_path / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    return checkpoints.choose(run, LAYOUT, scratch, expendable=6)


def test_the_newest_is_chosen(run, tmp_path):
    assert choose(run, tmp_path) == (path_of(run, 12), 12, [])


@pytest.mark.parametrize("harm", [damage, Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-7])])
def test_a_damaged_one_is_named_and_from_the_one_before_the_run_ends_where_it_would_have(harm, run, trained, tmp_path):
    harm(path_of(run, 12) / TRAINER)
    folder, step, (problem,) = choose(run, tmp_path)
    assert (folder, step) == (path_of(run, 6), 6)
    assert problem.startswith(f"{path_of(run, 12)}: {TRAINER} ")
    if harm is damage:
        again = Run(trained.spec, tmp_path / "again").go(resume=folder)
        assert_equal(trained, again, 18)
        assert again.column("loss") == trained.column("loss")[6:]


def test_with_none_whole_a_run_does_not_begin_anew(run, tmp_path):
    for step in (6, 12):
        damage(path_of(run, step) / TRAINER)
    with pytest.raises(RunError, match=f"no checkpoint is whole.*{checkpoint_name(12)}: .*{checkpoint_name(6)}: "):
        choose(run, tmp_path)


def test_a_first_checkpoint_that_was_cut_short_is_nothing_to_lose(run, tmp_path):
    shutil.rmtree(path_of(run, 12))
    (path_of(run, 6) / "checksums-00000-of-00001.json").unlink()
    assert choose(run, tmp_path) == (None, 0, [f"{path_of(run, 6)}: checksums-00000-of-00001.json is missing"])
    shutil.rmtree(path_of(run, 6))
    assert choose(run, tmp_path) == (None, 0, [])


def test_what_is_removed_leaves_as_many_whole_ones_as_are_kept(run, trained):
    def kept(keep):
        checkpoints.prune(run, keep)
        return [state.step for state in checkpoints.examine(run, contents=False)]

    shutil.copytree(trained.checkpoints[18], path_of(run, 18))
    assert kept(3) == [18, 12, 6]
    (path_of(run, 18) / TRAINER).unlink()  # as one that is still on its way
    assert kept(1) == [18, 12]
    assert kept(2) == [18, 12]


def test_files_are_sent_with_the_list_last_and_no_copy_stays(run, trained, tmp_path, monkeypatch):
    order = []
    disk = type(run.place)
    put = disk.put
    monkeypatch.setattr(disk, "put", lambda self, source: (order.append(self.name), put(self, source))[1])
    source = shutil.copytree(trained.checkpoints[18], tmp_path / "source")
    checkpoints.send(source, run.place / checkpoint_name(18))
    assert order[-1] == "checksums-00000-of-00001.json"
    assert not source.exists()
    assert next(checkpoints.examine(run, contents=True)).problem is None


def test_a_run_folder_has_one_driver(run):
    refused = pytest.raises(RunError, match=r"another driver trains this run \(process \d+ on .* since 20")
    with lock.held(run.place), refused, lock.held(run.place):
        pass
    with lock.held(run.place):
        pass


def test_a_suspended_driver_is_told_to_be_that(run):
    """As by Ctrl-Z: it never ends, and takes no SIGTERM, until it goes on."""
    code = "import os, sys; from emc2dist import files; from emc2dist.run import lock\n"
    code += "with lock.held(files.at(sys.argv[1])): print(flush=True); os.kill(os.getpid(), 19)"
    with subprocess.Popen([sys.executable, "-c", code, str(run.place)], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        os.waitpid(other.pid, os.WUNTRACED)
        assert lock.state(run.place) == "suspended"
        told = rf"process {other.pid} on .*which is suspended.*`fg`.*kill -CONT {other.pid}"
        with pytest.raises(RunError, match=told), lock.held(run.place):
            pass
        other.kill()


def test_who_looks_at_a_lock_for_a_moment_keeps_no_driver_out(run, monkeypatch):
    real, calls = fcntl.flock, []

    def looked_at(file, operation):
        calls.append(operation)
        if len(calls) == 1:
            raise BlockingIOError
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", looked_at)
    with lock.held(run.place):
        assert lock.state(run.place) == "held"
    assert lock.state(run.place) == "free"


def test_the_command_lists_and_verifies(run, capsys):
    def emc2dist(*words):
        status = main(["checkpoint", *words, str(run.place)])
        return status, capsys.readouterr().out.splitlines()

    status, (newest, oldest) = emc2dist("ls")
    assert status == 0
    assert newest.startswith("checkpoint-000000012  step 12 ")
    assert newest.endswith(" whole")
    assert emc2dist("verify")[0] == 0
    damage(path_of(run, 6) / "shard-00000-of-00001.safetensors")
    assert emc2dist("ls")[1] == [newest, oldest]  # which reads no contents
    status, lines = emc2dist("verify")
    assert status == 1
    assert lines[1].endswith("shard-00000-of-00001.safetensors is damaged: its SHA-256 is not the one that was written")
    assert emc2dist("verify", "--newest") == (0, [newest])
    (path_of(run, 12) / TRAINER).unlink()
    status, lines = emc2dist("ls", "--json")
    (found,) = map(json.loads, lines)
    states = found["checkpoints"]
    assert found["run_dir"] == str(run.place)
    assert [state["step"] for state in states] == [12, 6]
    assert states[0]["problem"] == f"{TRAINER} is missing"
    assert main(["checkpoint", "ls", str(run.place) + "-not"]) == 1


@pytest.fixture
def going(trained, tmp_path):
    """The folder of a run that keeps two checkpoints, with three."""
    folder = RunFolder.prepare(trained.spec.model_copy(update={"run_dir": str(tmp_path / "runs")}))
    for step in (6, 12, 18):
        shutil.copytree(trained.checkpoints[step], path_of(folder, step))
    return folder


def test_a_checkpoint_that_a_run_is_removing_is_no_damage(going, capsys):
    (path_of(going, 6) / "manifest.json").unlink()
    for action in ("ls", "verify"):
        assert main(["checkpoint", action, str(going.place)]) == 0
        *kept, oldest = capsys.readouterr().out.splitlines()
        assert oldest.endswith("gone, or being removed: newer ones are whole")
        assert [line.endswith("whole") for line in kept] == [True, True]
    (path_of(going, 12) / TRAINER).unlink()  # now the oldest would be needed
    assert main(["checkpoint", "verify", str(going.place)]) == 1
    assert "cannot be used: manifest.json is missing" in capsys.readouterr().out


def test_a_checkpoint_that_goes_while_it_is_read_is_no_damage(run, capsys, monkeypatch):
    real = checkpoint.verify

    def gone(place, *words, **options):
        shutil.rmtree(path_of(run, 6), ignore_errors=True)
        return real(place, *words, **options)

    monkeypatch.setattr(checkpoint, "verify", gone)
    assert main(["checkpoint", "verify", str(run.place)]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("gone, or being removed: newer ones are whole")


def test_without_checkpoints_the_result_is_json_too(run, capsys):
    for step in (6, 12):
        shutil.rmtree(path_of(run, step))
    for words in (["ls"], ["verify"], ["verify", "--newest"]):
        assert main(["checkpoint", *words, str(run.place), "--json"]) == 0
        told = capsys.readouterr()
        assert json.loads(told.out) == {"run_dir": str(run.place), "checkpoints": []}
        assert "holds no checkpoint yet" in told.err


@pytest.fixture
def foreign(run, tmp_path):
    """The run's folder, its checkpoint of step 12 copied from a run with another seed, or renamed to step 18."""

    def of(what):
        if what == "renamed":
            path_of(run, 12).rename(path_of(run, 18))
            return 18, "is of step 12, not of the one in its name"
        manifest = path_of(run, 12) / "manifest.json"
        manifest.write_text(manifest.read_text().replace("seed: 0", "seed: 7"))
        listed = path_of(run, 12) / "checksums-00000-of-00001.json"
        listed.unlink()
        checksums.write(path_of(run, 12), json.loads(manifest.read_text())["generation"])
        return 12, "is of another run than spec.yaml beside it (seed: 7 -> 0)"

    return of


@pytest.mark.parametrize("what", ["another seed", "renamed"])
def test_a_checkpoint_that_was_copied_or_renamed_is_no_checkpoint_of_the_run(foreign, what, run, tmp_path, capsys):
    step, words = foreign(what)
    folder, taken, (problem,) = choose(run, tmp_path)
    assert (folder, taken) == (path_of(run, 6), 6)
    assert problem.startswith(f"{path_of(run, step)}: {words}")
    assert [state.problem is None for state in checkpoints.examine(run, contents=False)] == [False, True]
    assert main(["checkpoint", "verify", str(run.place)]) == 1
    assert f"cannot be used: {words}" in capsys.readouterr().out
    newest = LoadedCheckpoint.newest(run)
    assert (newest.manifest.step, newest.spec.seed) == (6, 0)
    assert newest.remarks == [f"passed over, as not whole: {problem}"]
    assert checkpoints.newest(run).step == 6


def test_a_checkpoint_on_s3_is_read_from_there(run, trained, s3, tmp_path):
    remote = RunFolder(files.at(f"{s3.uri}/run"))
    remote._write("spec.yaml", dump(trained.spec))
    for step in (6, 12):
        checkpoints.send(path_of(run, step), remote.place / checkpoint_name(step))
    assert [state.problem for state in checkpoints.examine(remote, contents=True)] == [None, None]
    shard = remote.place / checkpoint_name(12) / "shard-00000-of-00001.safetensors"
    shard.write(shard.read()[:-1] + b"\xff")
    assert main(["checkpoint", "verify", str(remote.place)]) == 1
    folder, step, (problem,) = choose(remote, tmp_path)
    assert step == 6
    assert problem.startswith(f"{remote.place}/checkpoint-000000012: shard-00000-of-00001.safetensors is damaged")
    again = Run(trained.spec, tmp_path / "again").go(resume=folder)
    assert again.column("loss") == trained.column("loss")[6:]
    checkpoints.prune(remote, 1)
    assert [state.step for state in checkpoints.examine(remote, contents=False)] == [12]
