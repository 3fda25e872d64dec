"""The job as a person runs it: the command, a real Ray of its own, and what it leaves behind."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command import ROOT, emc2dist, in_process, on, signal_group, start, title, wait_for
from PIL import Image
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from safetensors.torch import load_file
from train.harness import SMALL, Run
from train.test_loop import files

from emc2dist.config import load, load_sweep, parse, parse_sweep
from emc2dist.errors import RunError
from emc2dist.files import at as files_at
from emc2dist.run import driver, lock
from emc2dist.run.checkpoints import examine
from emc2dist.run.driver import on_the_way
from emc2dist.run.folder import RunFolder

IDLE = (
    *("PreemptionWatcher", "DatasetManager", "PlacementGroup", "AutoscalingCoordinator"),
    *("monitor.py", "dashboard.py"),
)
"""Processes of Ray Train and Ray, seconds each to start, that have nothing to do in a run."""

CIFAR = ROOT.parent / "shared" / "data" / "cifar10"


@pytest.fixture
def spec_file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL + f"run_dir: {tmp_path / 'runs'}\nthreads: 1\n")
    return path


def test_two_workers_two_shards_leave_a_run_folder(ray_cluster, spec_file, tmp_path):
    words = ["workers=2", "shards=2", "negatives.kernel=isir"]
    done = emc2dist("train", spec_file, *words, "--json", env=on(ray_cluster))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    folder = Path(result["run_dir"])
    assert result["steps"] == 12
    assert {"images_per_second", "acceptance_rate", "knn_accuracy", "knn_untrained", "knn_pixels"} <= result.keys()
    assert result["checkpoint"] == str(folder / "checkpoint-000000012")
    assert load(folder / "spec.yaml") == load(spec_file, [*words, "data.shuffle=full"])
    assert json.loads((folder / "versions.json").read_text())["torch"] == torch.__version__
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 13))
    assert "step 12/12" in done.stderr  # plain lines where there is no terminal

    # Nor does Ray miss anything: under a Ray of the user's own a worker's log is told.
    logs = Path(ray_cluster._private.worker._global_node.get_session_dir_path(), "logs").rglob("*worker-*")
    logs = [log.read_text() for log in logs if log.is_file()]
    assert logs
    assert [log for log in logs if "local checkpoint" in log] == []

    # The same command again has nothing to do, and says the same.
    again = in_process("train", spec_file, *words, "--json")
    assert json.loads(again.stdout.splitlines()[-1]) == result
    assert "this run is finished" in again.stderr

    # What it came to stands at the end, with the address of its pictures.
    told = in_process("train", spec_file, *words, "watch.report=true")
    page = folder / "report" / "report.html"
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert "not recorded" not in told.stderr.lower()  # the page says it, for which nobody asked
    *_, title, pixels, untrained, trained, newest, report = told.stdout.splitlines()
    assert title == "kNN accuracy, k = 3"
    scores = [f"{result[f'knn_{name}']:.3f}" for name in ("pixels", "untrained", "accuracy")]
    assert [line.split() for line in (pixels, untrained, trained)] == [
        ["raw", "pixels", scores[0]],
        ["untrained", "encoder", scores[1]],
        ["trained", "encoder", scores[2]],
    ]
    assert newest.split() == ["checkpoint", result["checkpoint"]]
    assert report.split() == ["report", page.as_uri()]

    # Among JSON it is told, not printed; pictures that are there are not drawn again.
    written = page.stat().st_mtime
    again = in_process("train", spec_file, *words, "watch.report=true", "--json")
    assert json.loads(again.stdout) == result | {"report": page.as_uri()}
    assert again.stderr.splitlines()[-2:] == [newest, report]
    assert page.stat().st_mtime == written

    # Pictures of an earlier state are drawn anew; where they cannot be, that is said, and the run is finished still.
    os.utime(page, (0, 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emc2dist.report.page.report", lambda runs, asked: 1 / 0)
        failed = in_process("train", spec_file, *words, "watch.report=true")
    assert failed.returncode == 0
    assert failed.stderr.count("no report: ZeroDivisionError: division by zero; `emc2dist report ") == 1
    assert failed.stdout.splitlines()[-1] == newest

    evaluated = in_process("evaluate", folder, "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    scores = json.loads(evaluated.stdout.splitlines()[-1])
    assert (scores["bank"], scores["queries"]) == (48, 360)
    assert scores["representation"]["knn_accuracy"] > 0.2
    assert scores["representation"]["linear_probe_accuracy"] > 0.2

    out = tmp_path / "backbone.safetensors"
    assert in_process("export", folder, out).returncode == 0
    exported = load_file(out)
    trained = load_file(Path(result["checkpoint"]) / "trainer.safetensors")
    assert exported["blocks.1.0.weight"].equal(trained["encoder/backbone.blocks.1.0.weight"])
    assert not any(name.startswith("fc") for name in exported)

    other = in_process("train", spec_file, "temperature=0.5")
    assert other.returncode == 1
    assert "temperature: 0.2 -> 0.5" in other.stderr
    assert "negatives.kernel: isir -> mh" in other.stderr


def test_the_driver_imports_nothing_heavy_that_not_every_run_needs():
    heavy = ["torchvision", "torch._dynamo", "sklearn", "scipy", "s3fs", "botocore", "matplotlib", "numba"]
    digits = "name: a\nepochs: 1\nbatch_size: 8\nlr: 1e-3\nencoder: {backbone: conv4}"
    check = f"from emc2dist.config import parse; emc2dist.run.driver.check(parse({digits!r}))"
    code = f"import sys, emc2dist.run.driver; {check}; print(set({heavy}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "set()\n", done.stderr


def test_who_only_asks_a_cluster_and_rays_controller_do_not_load_torch():
    """Nor does the channel's actor load what else a driver needs."""
    code = "import sys, emc2dist.run.channel; print({'torch', 'pydantic', 'pyarrow'} & set(sys.modules)); "
    code += "import emc2dist.run.process_group, emc2dist.run.start_limit, emc2dist.run.folder, emc2dist.store.remote; "
    code += "import emc2dist.run.fixed_size; "
    code += "from ray.train.v2._internal.execution.controller import TrainController; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "set()\nFalse\n", done.stderr


def test_a_second_driver_of_a_run_is_refused(spec_file, tmp_path):
    with lock.held(files_at(tmp_path / "runs" / "small")):
        another = in_process("train", spec_file)
    assert another.returncode == 1
    assert re.search(rf"another driver trains this run \(process {os.getpid()} on .*\)", another.stderr)
    assert another.stderr.endswith("; stop that one, or wait until it has ended\n")


@pytest.mark.parametrize(
    ("name", "launcher"),
    [("WORLD_SIZE", "torchrun"), ("SLURM_STEP_NUM_TASKS", "srun"), ("OMPI_COMM_WORLD_SIZE", "mpirun")],
)
def test_of_a_command_that_was_started_for_each_process_the_second_says_so(
    name, launcher, tmp_path, monkeypatch, capsys
):
    place = files_at(tmp_path / "small")

    def refused():
        with lock.held(place), pytest.raises(RunError) as caught, lock.held(place):
            pass
        return str(caught.value)

    for other in lock._STARTED:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "1")
    assert refused().endswith("; stop that one, or wait until it has ended")
    monkeypatch.setenv(name, "2")
    several = (
        f"; or, where {launcher} started 2 of this command ({name}=2), start it once, without {launcher}: it starts"
    )
    assert f"; stop that one, or wait until it has ended{several}" in refused()
    with lock.held(files_at("s3://bucket/small")):
        said = capsys.readouterr().err
    assert said.startswith(f"s3://bucket/small: nothing on S3 keeps a second driver from this run{several}")


def test_interrupted_and_damaged_a_run_ends_where_it_would_have(ray_cluster, spec_file, tmp_path):
    """From the checkpoint before the damaged one, and with Ray Train's own list of them torn."""
    arguments = ["train", spec_file, "epochs=14", "shards=2", "--json"]
    process = start(*arguments)
    run = tmp_path / "runs" / "small"
    rows = run / "metrics.jsonl"
    # Once a row of the fourth epoch is there, the checkpoint of the second one is whole. Ten more have to wait each for
    # the driver to look, which then passes on the request to stop: it does not come too late.
    wait_for(lambda: rows.exists() and '"step": 19,' in rows.read_text(), process)
    unneeded = [pids_of(name, process.pid) for name in IDLE]
    family = signal_group(process, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert psutil.wait_procs(family, 30)[1] == []
    assert unneeded == [[]] * len(IDLE)

    newest, before, *_ = [s for s in examine(RunFolder.open(run), contents=True) if s.problem is None]
    # No step is lost to it.
    assert newest.step == max(row["step"] for row in RunFolder.open(run).rows())
    stopped = f"small: stopped at step {newest.step} of 84, which a checkpoint holds; the same command resumes\n"
    assert stopped in stderr
    damage(Path(str(newest.place)) / "shard-00001-of-00002.safetensors")
    snapshot = run / CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
    snapshot.write_text(snapshot.read_text()[:100])
    resumed = in_process(*arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert f"{newest.place}: shard-00001-of-00002.safetensors is damaged" in resumed.stderr
    assert f"resumed from the checkpoint at step {before.step}\n" in resumed.stderr
    oracle = Run(parse(SMALL, ["epochs=14", "shards=2"]), tmp_path).go()
    result = json.loads(resumed.stdout.splitlines()[-1])
    (remark,) = result["remarks"]
    assert remark.startswith(
        f"passed over at step {before.step}, as not whole: {newest.place}: shard-00001-of-00002.safe"
    )
    expected, found = files(oracle.checkpoints[84]), files(Path(result["checkpoint"]))
    assert [name for name in expected if not expected[name].equal(found[name])] == []
    kept = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["loss"] for row in kept if "loss" in row] == oracle.column("loss")
    assert [row["step"] for row in kept if "passed_over" in row] == [before.step]
    assert [(s.step, s.problem) for s in examine(RunFolder.open(run), contents=True)] == [(84, None), (78, None)]


def test_what_happened_on_the_way_is_told_with_the_result():
    rows = [
        {"step": 3, "loss": 1.0},
        {"step": 4, "device_changed": "cuda -> cpu"},
        {"step": 4, "passed_over": "b: torn"},
    ]
    assert on_the_way(rows) == [
        "device: cuda -> cpu at step 4: the numbers are not those of one",
        "passed over at step 4, as not whole: b: torn",
    ]


def damage(path):
    """Flip a bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_after_a_killed_worker_and_a_killed_shard_the_run_goes_on_from_the_checkpoint(ray_cluster, spec_file, tmp_path):
    rows = tmp_path / "runs" / "small" / "metrics.jsonl"

    def kill():
        # Once a row of the third epoch is there, the checkpoint of the first one is whole.
        for victim, step in (("RayTrainWorker", 13), ("ray::_ShardActor", 25)):
            wait_for(lambda due=step: rows.exists() and f'"step": {due},' in rows.read_text())
            os.kill(pid_of(victim, os.getpid()), signal.SIGKILL)

    with ThreadPoolExecutor(1) as beside:
        killed = beside.submit(kill)
        done = in_process("train", spec_file, "epochs=11", "--json")
    assert done.returncode == 0, done.stderr
    killed.result()
    assert len(re.findall(r"resumed from the checkpoint at step \d+", done.stderr)) == 2
    losses = [row["loss"] for row in map(json.loads, rows.read_text().splitlines()) if "loss" in row]
    assert losses == Run(parse(SMALL, ["epochs=11"]), tmp_path).go().column("loss")
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == 66


@pytest.mark.slow
def test_after_the_death_of_what_joins_a_nodes_workers_the_run_goes_on(spec_file, tmp_path):
    words = ["workers=2", "shards=2", "epochs=8", "precision=float64"]
    rows = tmp_path / "runs" / "small" / "metrics.jsonl"
    process = start("train", spec_file, *words, "--json")
    wait_for(lambda: rows.exists() and '"step": 13,' in rows.read_text(), process, seconds=240)
    os.kill(pid_of("ray::_NodeExchange", process.pid), signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=400)
    assert process.returncode == 0, stderr
    assert len(re.findall(r"resumed from the checkpoint at step \d+", stderr)) == 1
    assert json.loads(stdout.splitlines()[-1])["steps"] == 48
    losses = [row["loss"] for row in map(json.loads, rows.read_text().splitlines()) if "loss" in row]
    oracle = Run(parse(SMALL, ["epochs=8", "precision=float64"]), tmp_path).go()
    assert losses == pytest.approx(oracle.column("loss"), abs=1e-6)


@pytest.mark.slow
def test_a_worker_that_hangs_before_it_trains_is_started_again(spec_file, tmp_path):
    process = start("train", spec_file, "epochs=2", "resources.start_s=30", "--json")
    wait_for(lambda: pids_of("RayTrainWorker", process.pid), process)
    os.kill(pid_of("RayTrainWorker", process.pid), signal.SIGSTOP)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert re.search(r"workers did not start in 30 s \(resources\.start_s\).*: started again, 1 of 3 times", stderr)
    rows = map(json.loads, (tmp_path / "runs" / "small" / "metrics.jsonl").read_text().splitlines())
    oracle = Run(parse(SMALL, ["epochs=2"]), tmp_path).go()
    assert [row["loss"] for row in rows if "loss" in row] == oracle.column("loss")


def pid_of(name: str, driver: int) -> int:
    """The one process of this name among those that the driver started."""
    (pid,) = pids_of(name, driver)
    return pid


def pids_of(name: str, driver: int) -> list[int]:
    """All of them."""
    return [child.pid for child in psutil.Process(driver).children(recursive=True) if name in title(child)]


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", [4], indirect=True)  # MiB: two checkpoints, and not a third
def test_a_full_disk_ends_the_run_with_one_message_and_the_same_command_goes_on(small_disk, spec_file, tmp_path):
    spec_file.write_text(SMALL + f"run_dir: {small_disk}\nthreads: 1\n")
    arguments = ["train", spec_file, "epochs=4", "optimiser.name=sgd", "optimiser.momentum=0", "--json"]
    refused = emc2dist(*arguments)
    assert refused.returncode == 2, refused.stderr
    message = refused.stderr.splitlines()[-1]
    assert message.startswith(f"emc2dist: {small_disk / 'small' / 'checkpoint-000000018'}/")
    assert message.endswith(": No space left on device; make room on its disk, then run it again")
    assert [state.step for state in examine(RunFolder.open(small_disk / "small"), contents=True)][1:] == [12, 6]

    subprocess.run(["mount", "-o", "remount,size=400m", small_disk], check=True)
    resumed = emc2dist(*arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed from the checkpoint at step 12\n" in resumed.stderr
    rows = [json.loads(line) for line in (small_disk / "small" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 25))


def test_diverged_features_end_the_run_with_one_message(ray_cluster, spec_file):
    done = in_process("train", spec_file, "lr=1e6", "optimiser.name=sgd", "optimiser.warmup_epochs=0")
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith("emc2dist: rank 0, step ")
    assert "not finite" in message


def test_a_corrupt_image_ends_the_run_and_names_file_and_row(ray_cluster, spec_file, tmp_path):
    image = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(image, "PNG")
    rows = [{"bytes": image.getvalue(), "path": f"{i}.png"} for i in range(24)]
    rows[17]["bytes"] = b"no image"
    data = tmp_path / "train.parquet"
    pq.write_table(pa.table({"image": rows}), data, row_group_size=10)
    done = in_process("train", spec_file, f"data.path={data}", f"data.cache_dir={tmp_path / 'cache'}", "restarts=1")
    assert done.returncode == 2, done.stderr
    message = done.stderr.splitlines()[-1]
    assert "train.parquet" in message
    assert "row 17" in message


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.is_dir(), reason="the CIFAR-10 Parquet files are not beside the project")
def test_cifar10_learns_survives_ctrl_c_and_resumes(tmp_path):
    """The main job on real images: two workers, two shards, interrupted in its third epoch."""
    arguments = [
        "train", ROOT / "jobs" / "cifar10.yaml", f"data.path={CIFAR}", f"run_dir={tmp_path}", "data.limit=4000",
        f"data.cache_dir={tmp_path / 'cache'}",
        "epochs=4", "encoder.stem=imagenet", "log_every=1", "--json",
    ]  # fmt: skip
    process, rows = start(*arguments), tmp_path / "cifar10" / "metrics.jsonl"
    wait_for(lambda: rows.exists() and '"step": 65,' in rows.read_text(), process, seconds=600)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    resumed = emc2dist(*arguments, timeout=900)
    assert re.search(r"resumed from the checkpoint at step \d+", resumed.stderr)
    result = json.loads(resumed.stdout.splitlines()[-1])
    accuracies = [
        row["knn_accuracy"] for row in map(json.loads, rows.read_text().splitlines()) if "knn_accuracy" in row
    ]
    assert len(accuracies) == 5
    assert accuracies[0] + 0.05 < accuracies[2] < result["knn_accuracy"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tempreature=0.1"], "unknown key; the nearest valid key is temperature"),
        (["data.path=/no/such/folder"], "/no/such/folder: no such file or folder"),
        (["batch_size=64"], "batch_size: 64 is more than the 48 training images"),
        (["encoder.backbone=resnet19"], "encoder.backbone"),
    ],
)
def test_what_cannot_run_exits_with_2_before_the_cluster_starts(spec_file, tmp_path, arguments, words):
    done = in_process("train", spec_file, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("emc2dist: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert not (tmp_path / "runs").exists()


def test_validate_prints_the_resolved_spec(spec_file):
    done = emc2dist("validate", spec_file, "lr=1e-4")
    assert done.returncode == 0
    assert parse(done.stdout) == load(spec_file, ["lr=1e-4"])
    sweep = in_process("validate", ROOT / "jobs" / "sweep.yaml", "seeds=2")
    assert parse_sweep(sweep.stdout) == load_sweep(ROOT / "jobs" / "sweep.yaml", ["seeds=2"])
    refused = in_process("validate", spec_file, "temperature=0")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1


def test_overrides_may_stand_before_and_after_options(spec_file):
    from emc2dist.cli import parse as parse_words

    arguments = parse_words(["train", str(spec_file), "lr=1", "--json", "epochs=2"])
    assert (arguments.overrides, arguments.json) == (["lr=1", "epochs=2"], True)
    for wrong in (["train", "s.yaml", "--jsn"], ["evaluate"], ["frobnicate"]):
        with pytest.raises(SystemExit, match="2"):
            parse_words(wrong)


def test_commands_on_a_run_take_the_keys_of_s3_alone(tmp_path):
    done = in_process("export", tmp_path, "out", "--json", "lr=1")
    assert done.returncode == 2
    assert done.stderr == "emc2dist: 'lr=1': only keys of s3 can be set here, as in s3.endpoint=URL\n"


def test_what_is_no_run_is_refused(spec_file, tmp_path, monkeypatch):
    RunFolder.prepare(load(spec_file))
    monkeypatch.chdir(tmp_path)
    elsewhere = f"not a run folder (nothing is there in {tmp_path}); "
    for path, message in [
        (tmp_path, "not a run folder (it has no spec.yaml); give the one that `emc2dist train` named\n"),
        ("runs/smal", f"{elsewhere}the nearest is runs/small\n"),
        ("small", f"{elsewhere}the nearest is runs/small\n"),
        ("nothing", f"{elsewhere}give the one that `emc2dist train` named\n"),
        ("small.yaml", "not a run folder (it has no spec.yaml); the nearest is runs/small\n"),
    ]:
        done = in_process("evaluate", path)
        assert done.returncode == 1
        assert done.stderr == f"emc2dist: {path}: {message}"


def test_what_the_device_that_is_there_cannot_do_is_refused_before_anything_is_written(
    ray_cluster, spec_file, tmp_path
):
    done = in_process("train", spec_file, "encoder.norm=sync_batch")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "emc2dist: device: auto is cpu here: encoder.norm: sync_batch needs GPUs; use batch, group or none on "
        "device: cpu"
    )
    assert not (tmp_path / "runs" / "small").exists()


def test_where_sigint_is_ignored_ray_train_leaves_it_so():
    """As in what a script starts with `&`."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        driver._Trainer.__new__(driver._Trainer)._register_sigint_handler(None)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        signal.signal(signal.SIGINT, lambda number, frame: None)
        driver._Trainer.__new__(driver._Trainer)._register_sigint_handler(None)
        assert signal.getsignal(signal.SIGINT) != signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
