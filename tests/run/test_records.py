"""What a run's folder says of it: what is refused, or has nothing to do, changes none of it, and says so."""

import contextlib
import json
import os
import shutil
import signal
import socket
from contextlib import nullcontext

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import in_process, on, start, wait_for
from pictures import png
from train.harness import SMALL, Run

from emc2dist import files
from emc2dist.config import load, parse
from emc2dist.errors import LaunchError, RunError
from emc2dist.files import at
from emc2dist.run import driver, lock
from emc2dist.run.checkpoints import examine
from emc2dist.run.driver import resolved, set_on, summarise
from emc2dist.run.folder import RunFolder, checkpoint_name
from emc2dist.train import checksums


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run on the digits, made without Ray; copy it before changing it."""
    root = tmp_path_factory.mktemp("records")
    (root / "small.yaml").write_text(f"{SMALL}run_dir: {root / 'runs'}\n")
    folder = RunFolder.prepare(resolved(parse(SMALL, [f"run_dir={root / 'runs'}"])))
    run = Run(folder.spec(), root).go()
    for step, path in run.checkpoints.items():
        path.rename(folder.place.path / checkpoint_name(step))
    folder.append([{"step": 0, "resumed": 0}, *run.rows])
    folder.finish(summarise(folder, 12) | {"neighbours": 3, "remarks": ["of its data"]})
    return root


@pytest.fixture
def desk(trained, tmp_path, monkeypatch):
    """A copy of it, where no cluster can be had."""

    def connected(spec):
        raise LaunchError("this test has no cluster")

    monkeypatch.setattr("emc2dist.run.cluster.connected", connected)
    shutil.copytree(trained, tmp_path / "desk")
    (tmp_path / "desk" / "small.yaml").write_text(f"{SMALL}run_dir: {tmp_path / 'desk' / 'runs'}\n")
    return tmp_path / "desk"


def unfinished(desk):
    (desk / "runs" / "small" / "summary.json").unlink()


def train(desk, *overrides):
    """Its exit status, the result and what was said."""
    done = in_process("train", desk / "small.yaml", *overrides, "--json")
    return done.returncode, json.loads(done.stdout or "null"), done.stderr.splitlines()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.suffix != ".lock"}


def write_set(folder, images):
    folder.mkdir()
    rows = [{"bytes": png(np.full((8, 8), 5 * n), 8, 0), "path": None} for n in range(images)]
    pq.write_table(pa.table({"image": rows, "label": [n % 2 for n in range(images)]}), folder / "train.parquet")
    return folder


def test_a_finished_run_says_which_of_the_values_given_now_it_does_not_have(desk):
    before = contents(desk / "runs" / "small")
    status, result, said = train(desk, "eval.neighbours=5", "threads=2")
    remark = "the finished run's values stand, not those given now (threads: 0 -> 2; eval.neighbours: 3 -> 5)"
    assert (status, result["remarks"]) == (0, ["of its data", remark])
    assert said.count(remark) == 1
    assert contents(desk / "runs" / "small") == before
    assert train(desk)[1]["remarks"] == ["of its data"]


def test_a_finished_run_answers_whoever_may_only_read_it(desk):
    status, _, said = train(desk)
    assert status == 0
    assert said[0].endswith("this run is finished; give it another name to run it again")
    assert not (desk / "runs" / "small" / "driver.lock").exists()


def test_a_run_that_goes_on_says_which_of_its_values_are_new(desk, monkeypatch):
    unfinished(desk)
    monkeypatch.setattr("emc2dist.run.cluster.connected", lambda spec: contextlib.nullcontext())
    monkeypatch.setattr("emc2dist.run.cluster.use_gpu", lambda spec: False)
    monkeypatch.setattr("emc2dist.run.driver._Run.go", lambda run: run.steps)
    status, result, said = train(desk, "eval.neighbours=5", "device=cpu")
    remark = "from step 12 on with other values than before (device: auto -> cpu; eval.neighbours: 3 -> 5)"
    # The other remark is that the desk's checkpoint knows no device but `auto`.
    assert (status, result["remarks"][0], len(result["remarks"])) == (0, remark, 2), said
    assert remark in said
    assert RunFolder.open(desk / "runs" / "small").spec().eval.neighbours == 5


def test_an_interrupted_run_says_at_which_step_it_resumes(desk, monkeypatch):
    unfinished(desk)
    monkeypatch.setattr("emc2dist.run.cluster.connected", lambda spec: contextlib.nullcontext())
    monkeypatch.setattr("emc2dist.run.cluster.use_gpu", lambda spec: False)

    def twice(run):
        os.kill(os.getpid(), signal.SIGINT)
        assert run.stop.is_set()  # so it writes a checkpoint
        os.kill(os.getpid(), signal.SIGINT)

    def once(run):
        os.kill(os.getpid(), signal.SIGINT)
        return 7

    run, known = desk / "runs" / "small", "device=cpu"  # the CPU whose numbers a checkpoint has, whatever is here
    monkeypatch.setattr("emc2dist.run.driver._Run.go", once)
    status, _, said = train(desk, known)
    told = f"emc2dist: {run}: stopped at step 7 of 12, which a checkpoint holds; the same command resumes"
    assert (status, said[-1]) == (130, told)
    monkeypatch.setattr("emc2dist.run.driver._Run.go", twice)
    status, _, said = train(desk, known)
    assert (status, said[-1]) == (130, f"emc2dist: {run}: interrupted; the same command resumes at step 12")
    for step in (6, 12):
        shutil.rmtree(run / checkpoint_name(step))
    status, _, said = train(desk, known)
    told = f"emc2dist: {run}: interrupted; the same command begins anew, for no checkpoint holds any of it"
    assert (status, said[-1]) == (130, told)


def test_the_first_ctrl_c_is_the_runs_and_the_second_rays(monkeypatch):
    rays = []
    monkeypatch.setattr(
        "emc2dist.run.driver.DataParallelTrainer._register_sigint_handler",
        lambda trainer, controller: signal.signal(signal.SIGINT, lambda *_: rays.append(_)),
    )
    with set_on(signal.SIGINT) as wanted:
        driver._Trainer.__new__(driver._Trainer)._register_sigint_handler(None)
        os.kill(os.getpid(), signal.SIGINT)
        assert (wanted.number, rays) == (signal.SIGINT, [])
        os.kill(os.getpid(), signal.SIGINT)
        assert len(rays) == 1


@pytest.mark.parametrize("finished", [True, False])
def test_other_data_are_refused_and_the_spec_stays(desk, finished):
    if not finished:
        unfinished(desk)
    before = contents(desk / "runs" / "small")
    other = write_set(desk / "other", 48)
    status, _, said = train(desk, f"data.path={other}", f"data.cache_dir={desk / 'cache'}")
    assert status == 1
    assert "the data now hold other training images than the 48" in said[-1]
    assert contents(desk / "runs" / "small") == before


def test_what_refuses_a_run_at_last_changes_nothing_either(desk):
    unfinished(desk)
    before = contents(desk / "runs" / "small")
    assert train(desk, "eval.neighbours=5")[::2] == (1, ["emc2dist: this test has no cluster"])
    assert contents(desk / "runs" / "small") == before
    assert train(desk, "name=new")[0] == 1
    assert [path.name for path in (desk / "runs").iterdir()] == ["small"]


def test_a_run_without_its_spec_is_no_new_one(desk):
    (desk / "runs" / "small" / "spec.yaml").unlink()
    status, _, (said,) = train(desk)
    assert status == 1
    assert "a run trained here, and its spec.yaml is gone; put it back" in said


def test_a_run_that_was_moved_answers_with_its_new_place(desk):
    shutil.move(desk / "runs", desk / "moved")
    status, result, _ = train(desk, f"run_dir={desk / 'moved'}")
    assert status == 0
    assert result["run_dir"] == str(desk / "moved" / "small")
    assert result["checkpoint"] == str(desk / "moved" / "small" / checkpoint_name(12))
    assert result["remarks"] == ["of its data"]


def test_a_finished_run_whose_checkpoints_are_gone_says_so_and_what_to_do(desk):
    run = desk / "runs" / "small"
    for step in (6, 12):
        shutil.rmtree(run / checkpoint_name(step))
    status, result, said = train(desk)
    assert (status, result["checkpoint"]) == (0, None)
    assert said.count(result["remarks"][-1]) == 1
    gone = result["remarks"][-1]
    assert gone.startswith(f"{run}: its checkpoints are gone, ")
    assert gone.endswith(f"; put one back, or remove {run / 'summary.json'} and train it again")
    for words in (["evaluate", run], ["export", run, desk / "out.safetensors"]):
        done = in_process(*words)
        assert (done.returncode, done.stderr) == (1, f"emc2dist: {gone}\n")
    assert gone in in_process("checkpoint", "ls", run).stderr
    (run / "summary.json").unlink()
    assert train(desk)[2][-1] == "emc2dist: this test has no cluster"  # it would be trained again
    assert "holds no checkpoint yet" in in_process("evaluate", run).stderr


@pytest.mark.parametrize("command", ["report", "watch --once", "train"])
def test_a_row_that_is_cut_off_in_a_finished_run_is_named(desk, command):
    run = desk / "runs" / "small"
    rows = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(rows[:-9])
    name, *options = command.split()
    done = in_process(name, desk / "small.yaml" if name == "train" else run, *options)
    assert done.returncode == 1
    assert f"{run / 'metrics.jsonl'}: line {rows.count(10)} is cut off, and the run is finished" in done.stderr
    unfinished(desk)
    assert len(RunFolder.open(run).rows()) == rows.count(10) - 1  # as on its way


def test_what_follows_a_row_that_was_cut_off_begins_a_line(desk, capsys):
    unfinished(desk)
    folder = RunFolder.open(desk / "runs" / "small")
    rows = folder.rows()
    folder.metrics.append(b'{"step": 13, "lo')
    folder.drop_cut_row()
    assert "its last row was cut off as it was written, and is dropped" in capsys.readouterr().err
    folder.append([{"step": 12, "device_changed": "cuda -> cpu"}])
    assert folder.rows() == [*rows, {"step": 12, "device_changed": "cuda -> cpu"}]
    folder.drop_cut_row()
    assert capsys.readouterr().err == ""


def test_a_port_that_is_taken_is_found_before_ray_starts_and_leaves_no_run(desk):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, (said,) = train(desk, "name=new", f"watch.port={port}")
        assert status == 2
        assert said.startswith(f"emc2dist: watch.port: {port} cannot be used")
        assert not (desk / "runs" / "new").exists()
        assert train(desk, f"watch.port={port}")[0] == 0  # of a finished run nothing is served
    assert train(desk, "name=new", f"watch.port={port}")[2] == ["emc2dist: this test has no cluster"]


def test_the_lock_leaves_a_folder_only_where_something_was_written(tmp_path):
    with lock.held(at(tmp_path / "runs" / "refused")):
        assert (tmp_path / "runs" / "refused" / "driver.lock").exists()
    assert not (tmp_path / "runs").exists()
    for name in ("written", "there"):
        if name == "there":
            (tmp_path / name).mkdir()
        with lock.held(at(tmp_path / name)):
            if name == "written":
                (tmp_path / name / "spec.yaml").touch()
        assert (tmp_path / name / "driver.lock").exists()


def test_a_lock_whose_file_was_just_removed_is_taken_on_the_new_one(tmp_path, monkeypatch):
    """As where one that is refused removes the file between another's opening and locking it."""
    real, opened = lock._opened, []

    def late(path):
        file = real(path)
        if not opened:
            path.remove()
        opened.append(path)
        return file

    monkeypatch.setattr(lock, "_opened", late)
    with lock.held(at(tmp_path / "run")):
        assert len(opened) == 2
        monkeypatch.setattr(lock, "_opened", real)
        with pytest.raises(RunError, match="another driver trains this run"), lock.held(at(tmp_path / "run")):
            pass


def test_a_terminal_that_goes_asks_as_sigterm_does_and_may_ask_twice():
    ended = []
    before = {number: signal.signal(number, lambda *_: ended.append(_)) for number in driver.ENDING}
    try:
        with set_on(*driver.ENDING) as wanted:
            os.kill(os.getpid(), signal.SIGHUP)
            assert wanted.is_set()
            os.kill(os.getpid(), signal.SIGHUP)  # its shell's, after its kernel's
            os.kill(os.getpid(), signal.SIGTERM)
            assert ended == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert len(ended) == 1
        for warning in (signal.SIGUSR1, signal.SIGUSR2):  # of a time limit
            with set_on(*driver.ENDING) as wanted:
                os.kill(os.getpid(), warning)
                assert wanted.is_set()
        assert len(ended) == 1
        os.kill(os.getpid(), signal.SIGHUP)
        assert len(ended) == 2
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
        with set_on(*driver.ENDING) as wanted:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not wanted.is_set()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_saved_spec_finds_its_run_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder.prepare(resolved(parse(SMALL, ["run_dir=runs"])))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    saved = load("../runs/small/spec.yaml")
    assert RunFolder.of(saved).place.path == folder.place.path == tmp_path / "runs" / "small"
    assert RunFolder.of(resolved(saved)).place.path == folder.place.path


def test_a_run_whose_terminal_is_gone_leaves_a_checkpoint_of_its_step(ray_cluster, tmp_path):
    (tmp_path / "small.yaml").write_text(f"{SMALL}run_dir: {tmp_path / 'runs'}\nthreads: 1\n")
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    words = ["epochs=500", "watch.port=0", "checkpoint.every=500", "eval.every=0"]
    process = start("train", tmp_path / "small.yaml", *words, env=on(ray_cluster))
    signal.signal(signal.SIGHUP, before)
    run = tmp_path / "runs" / "small"
    rows = run / "metrics.jsonl"
    wait_for(lambda: rows.exists() and '"step": 8,' in rows.read_text(), process)
    assert (run / "prometheus.json").exists()
    os.killpg(process.pid, signal.SIGHUP)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 143, stderr
    (state,) = examine(RunFolder.open(run), contents=True)
    assert state.problem is None
    assert f"stopped at step {state.step} of 3000, which a checkpoint holds" in stderr
    assert state.step == max(row["step"] for row in RunFolder.open(run).rows())
    assert not (run / "prometheus.json").exists()


def evaluate(*words):
    """The result, and what was said."""
    done = in_process("evaluate", *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr.splitlines()


def on_a_set(desk, images):
    """Has the run say that it trained on a set of so many images, which it did not."""
    data = f"path: {write_set(desk / 'set', images)}"
    (path,) = (desk / "runs" / "small").glob("checkpoint-*/manifest.json")
    for file in (path, path.parents[1] / "spec.yaml"):
        file.write_text(file.read_text().replace("path: digits", data, 1))
    (path.parent / checksums.list_name(0, 1)).unlink()
    checksums.write(path.parent, json.loads(path.read_text())["generation"])


def test_a_run_that_was_moved_is_not_trained_anew_by_its_own_spec(trained, desk, monkeypatch):
    monkeypatch.setattr(driver, "train", lambda spec: pytest.fail("trained"))
    there = trained / "runs" / "small"  # of which the desk is a copy
    moved = (desk / "runs" / "small").rename(desk / "runs" / "other")
    refused = in_process("train", moved / "spec.yaml")
    assert refused.returncode == 2
    assert f"moved or copied here from {there}, and would train there from the start: to go on" in refused.stderr
    assert f"call the folder small again, and give run_dir={desk / 'runs'}; to train anew" in refused.stderr
    (desk / "elsewhere").mkdir()
    again = moved.rename(desk / "elsewhere" / "small")
    assert f"with what lies here give run_dir={desk / 'elsewhere'};" in in_process("train", again / "spec.yaml").stderr
    monkeypatch.setattr(driver, "train", lambda spec: {"run_dir": spec.run_dir, "checkpoint": None, "name": spec.name})
    for words in (["name=new"], [f"run_dir={desk / 'elsewhere'}"]):
        assert in_process("train", again / "spec.yaml", *words).returncode == 0


def test_images_that_the_batch_does_not_divide_are_said(desk):
    spec = parse(SMALL, ["batch_size=10"])
    assert driver.check(spec)[1][0] == (
        "8 of 48 training images are left out of each epoch, others each time: batch_size: 10 does not divide them"
    )
    assert "and there is one epoch: batch_size: 20" in driver.check(parse(SMALL, ["batch_size=20", "epochs=1"]))[1][0]
    assert driver.check(parse(SMALL))[1] == []


def test_evaluation_says_where_its_images_are_others_than_those_of_the_run(desk):
    run = desk / "runs" / "small"
    assert evaluate(run)[0]["remarks"] == []
    shutil.rmtree(run / checkpoint_name(6))
    on_a_set(desk, 50)
    result, said = evaluate(run)
    change = f"{desk / 'set'}: now holds other training images than the 48 that the run was trained on"
    tenth = "no other images are asked about: every tenth voter is, 5, and the other 43 vote"
    assert result["remarks"] == [change, tenth]
    assert (result["bank"], result["queries"]) == (43, 5)
    assert {change, tenth} <= set(said)
    moved = (desk / "set").rename(desk / "moved")
    drawn = in_process("report", run, f"data.path={moved}", "--json")
    change = change.replace("the run was", "small was").replace(f"{desk / 'set'}", f"{moved}")
    assert json.loads(drawn.stdout)["remarks"][0] == change
    assert change in drawn.stderr
    assert (
        "data.limit: is not read here; what can be set is data.path and s3"
        in in_process("report", run, "data.limit=3").stderr
    )


def test_evaluation_on_other_data_says_what_of_the_run_holds_there(desk):
    other = write_set(desk / "other", 60)
    result, said = evaluate(desk / "runs" / "small", f"data.path={other}")
    change = f"{other}: gives other training images than the 48 that the run was trained on"
    limit = "data.limit: no more than the first 48 training images are taken, as in the run"
    assert result["remarks"][:2] == [change, limit]
    assert {change, limit} <= set(said)
    assert result["data"] == str(other)


def test_what_a_report_leaves_out_is_said(desk):
    run = desk / "runs" / "small"
    shutil.rmtree(run / checkpoint_name(6))
    on_a_set(desk, 48)
    shutil.rmtree(desk / "set")
    done = in_process("report", run, "--json")
    assert done.returncode == 0
    remarks = json.loads(done.stdout)["remarks"]
    gone = f"{desk / 'set'}: no such file or folder"
    assert [remark.split("; ")[0] for remark in remarks] == [
        f"Negatives of small: No negatives to show: {gone}",
        f"Map of small: No map to show: {gone}",
    ]
    assert set(remarks) <= set(done.stderr.splitlines())


def test_where_a_report_cannot_go_is_told_before_it_is_drawn(desk, monkeypatch):
    monkeypatch.setattr("emc2dist.report.page.Chains.of", lambda run: pytest.fail("drawn too early"))
    (desk / "file").touch()
    for out, words in ((desk / "file", "is no folder"), (desk / "file" / "in" / "it", f"{desk / 'file'} is no folder")):
        done = in_process("report", desk / "runs" / "small", "--out", out)
        assert done.returncode == 2
        assert done.stderr.startswith(f"emc2dist: {out}: ")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1


def test_what_is_near_a_run_folder_is_told_the_run(desk):
    run = desk / "runs" / "small"
    for near in (run / checkpoint_name(12), f"{run}/{checkpoint_name(12)}/"):
        done = in_process("report", near)
        assert done.returncode == 1
        assert f"(it has no spec.yaml); it is a checkpoint of {run}: give that" in done.stderr
    done = in_process("evaluate", run / "spec.yaml")
    assert done.returncode == 1
    assert done.stderr.endswith(f"(it has no spec.yaml); it lies in one, which is {run}\n")
    assert "runs lie in it: small" in in_process("evaluate", desk / "runs").stderr
    assert "give the one that `emc2dist train` named" in in_process("evaluate", desk).stderr


def test_a_finished_run_without_rows_is_not_starting(desk):
    (desk / "runs" / "small" / "metrics.jsonl").unlink()
    done = in_process("watch", desk / "runs" / "small", "--once")
    assert done.returncode == 1
    assert "metrics.jsonl: holds no rows, though the run is finished" in done.stderr


def test_what_evaluate_and_report_say_of_s3_reaches_the_data(desk, s3, monkeypatch):
    """The run's own spec leads nowhere, nor does the environment."""
    there = files.at(f"{s3.uri}/set/train.parquet")
    there.write((write_set(desk / "local", 48) / "train.parquet").read_bytes())
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    words = ["s3.attempts=2", f"s3.endpoint={endpoint}"]
    result, _ = evaluate(desk / "runs" / "small", f"data.path={s3.uri}/set", *words)
    assert result["queries"] == 5


def test_what_rows_warn_of_is_said_as_they_come_and_stands_in_the_summary(desk, monkeypatch):
    unfinished(desk)

    class Collapsing(driver._Run):
        def go(self):
            for step in range(1, 13):
                for recorder in self.others:
                    recorder.record({"step": step, "epoch": step / 6, "uniformity": 0.0})
            return self.steps

    monkeypatch.setattr("emc2dist.run.driver._Run", Collapsing)
    monkeypatch.setattr("emc2dist.run.driver._device", lambda *_: "cpu")
    monkeypatch.setattr("emc2dist.run.cluster.connected", lambda spec: nullcontext())
    status, result, said = train(desk, "device=cpu")
    assert status == 0
    (remark,) = [remark for remark in result["remarks"] if "Emc2UniformityLost" in remark]
    assert f"warning: {remark}" in said
