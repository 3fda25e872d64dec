"""Sweeps as they are run: real trials on a real Ray, killed and continued, broken ones among them, nothing left."""

import json
import os
import signal
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
import yaml
from command import ROOT, driver_of, emc2dist, in_process, kill_with_all_it_started, start, wait_for
from train.harness import SMALL

from emc2dist import files
from emc2dist.config import load, load_sweep, parse
from emc2dist.sweep.folder import SweepFolder
from emc2dist.sweep.space import points_of


def write_sweep(path, run_dir, space, **more):
    optimiser = {"name": "sgd", "warmup_epochs": 0}
    base = yaml.safe_load(SMALL) | {"run_dir": str(run_dir), "lr": 1e-3, "optimiser": optimiser}
    path.write_text(yaml.safe_dump({"name": "s", "base": base, "space": space, "budget": {"concurrent": 2}} | more))
    return path


def states(folder):
    return [record.state for record in SweepFolder(files.at(folder)).records()]


def rows(folder):
    path = Path(str(folder)) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def checkpoints(folder):
    return [*Path(str(folder)).glob("checkpoint-*/manifest.json")]


@pytest.fixture
def nothing_is_left(ray_cluster):
    """Resources, placement groups and actors of the session's Ray are after the test what they were before."""

    def held():
        groups = [group for group in ray_cluster.util.placement_group_table().values() if group["state"] != "REMOVED"]
        resources = {kind: ray_cluster.available_resources().get(kind) for kind in ("CPU", "memory")}
        return resources, len(groups), actors() - OF_THE_CLUSTER

    before = held()
    yield
    deadline = time.monotonic() + 60
    while held() != before:
        assert time.monotonic() < deadline, (before, held())
        time.sleep(0.5)


OF_THE_CLUSTER = {"ray::_AutoscalingCoordinatorActor"}  # one for all that ever trains


def actors():
    """Processes of actors in this process's Ray, by class."""
    children = psutil.Process().children(recursive=True)
    names = {child.cmdline()[0].split(".")[0].strip() for child in children if child.status() != psutil.STATUS_ZOMBIE}
    return {name for name in names if name.startswith("ray::") and not name.startswith("ray::IDLE")}


def scraped(ray, name):
    """The samples of a metric on the node's endpoint."""
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return [line for line in answer.read().decode().splitlines() if line.startswith(name + "{")]


def test_a_killed_sweep_goes_on_and_a_broken_trial_is_a_row(ray_cluster, nothing_is_left, tmp_path):
    """Three trials, two at once; killed when the first has finished, the second diverged, the third is on its way."""
    from emc2dist.sweep.driver import sweep

    spec = write_sweep(
        tmp_path / "s.yaml", tmp_path, {"lr": [1e-3, 1e6, 2e-3]}, search={"name": "grid"}, scheduler={"name": "fifo"},
        set={"epochs": 8},
    )  # fmt: skip
    folder = tmp_path / "s"
    folders = [folder / f"s-00{point}-seed0" for point in range(3)]
    process = start("sweep", spec)
    on_its_way = ["finished", "failed", "running"]
    wait_for(lambda: len(checkpoints(folders[2])) > 1 and states(folder) == on_its_way, process, seconds=400)
    kill_with_all_it_started(process)  # as a machine is lost: a trial that outlives its driver would finish
    before = SweepFolder(files.at(folder)).records()
    assert [record.state for record in before] == on_its_way
    finished = (folders[0] / "metrics.jsonl").read_bytes()

    summary = sweep(load_sweep(spec))
    after = SweepFolder(files.at(folder)).records()
    assert after[:2] == before[:2]
    assert [record.state for record in after] == ["finished", "failed", "finished"]
    assert (folders[0] / "metrics.jsonl").read_bytes() == finished  # not run twice
    assert [row["resumed"] for row in rows(folders[2]) if "resumed" in row][-1] == 1
    assert "the feature is not finite" in after[1].reason
    assert (summary["trials"], summary["finished"], summary["failed"], summary["unfinished"]) == (3, 2, 1, 0)
    assert [epoch for epoch, _ in after[2].history] == list(range(1, 9))
    judged = [row["knn_accuracy"] for row in rows(folders[2]) if "knn_accuracy" in row]
    assert [value for _, value in after[2].history] == judged[-8:]
    best = load(folder / "best.yaml")
    assert best.lr == max(after[::2], key=lambda record: record.value).values["lr"]

    assert sweep(load_sweep(spec)) == summary  # and the same once more, without a trial
    deadline = time.monotonic() + 60
    while len(scraped(ray_cluster, "ray_emc2_sweep_trial_metric")) < 2:
        assert time.monotonic() < deadline
        time.sleep(1)
    assert len(scraped(ray_cluster, "ray_emc2_sweep_trials")) == 5


def test_trials_at_once_are_those_whose_workers_and_shards_fit(ray_cluster):
    from emc2dist.run import cluster

    mib = ray_cluster.cluster_resources()["memory"] / 2**20
    for overrides, expected in [
        (["workers=1"], 8),
        (["workers=2"], 4),
        (["batch_size=9", "workers=3"], 2),
        (["resources.worker_cpus=4"], 2),
        (["shards=2", f"resources.shard_mib={int(mib / 7)}"], 3),
    ]:
        assert cluster.room(parse(SMALL, [*overrides, "device=cpu"])) == expected


def test_the_metric_is_one_of_a_run(tmp_path):
    done = in_process("sweep", write_sweep(tmp_path / "s.yaml", tmp_path, {"lr": [1, 2]}, metric="knn_acuracy"))
    assert done.returncode == 2
    said = f"emc2dist: {tmp_path / 's.yaml'}: metric: 'knn_acuracy' is none of a run's; the nearest is knn_accuracy\n"
    assert done.stderr == said
    assert in_process("validate", tmp_path / "s.yaml").stderr == said
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_asha_stops_trials_and_ctrl_c_loses_none_and_the_best_spec_is_worth_what_it_says(tmp_path):
    """The sweep of jobs/, with two seeds: eight trials, two at once, interrupted and continued."""
    arguments = [
        "sweep", ROOT / "jobs" / "sweep.yaml", f"set.run_dir={tmp_path}", "set.threads=1", "set.epochs=4", "seeds=2",
        "budget.concurrent=2", "scheduler.reduction=2", "--json",
    ]  # fmt: skip
    folder, process = tmp_path / "quickstart-sweep", start(*arguments)
    wait_for(lambda: (folder / "trials").exists() and len(states(folder)) == 4, process, seconds=900)
    ended = {record.name: record for record in SweepFolder(files.at(folder)).records() if record.state != "running"}
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130, stderr
    assert "every trial writes a checkpoint first" in stderr
    lengths = {name: len(rows(folder / name)) for name in ended}

    done = emc2dist(*arguments, timeout=1800)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["trials"], result["failed"], result["unfinished"]) == (8, 0, 0)
    assert result["stopped"] > 0
    assert result["finished"] + result["stopped"] == 8
    after = {record.name: record for record in SweepFolder(files.at(folder)).records()}
    assert {name: after[name] for name in ended} == ended
    assert {name: len(rows(folder / name)) for name in ended} == lengths  # none run twice
    stopped = [record for record in after.values() if record.state == "stopped"]
    assert all(record.epoch < 4 and record.reason.startswith("asha, epoch ") for record in stopped)

    best = load(folder / "best.yaml")
    (twin,) = [r for r in after.values() if (r.values["lr"], r.seed, r.state) == (best.lr, best.seed, "finished")]
    again = emc2dist("train", folder / "best.yaml", "--json")
    value = json.loads(again.stdout.splitlines()[-1])["knn_accuracy"]
    assert value == pytest.approx(twin.value)
    assert abs(value - result["best_knn_accuracy"]) <= 2 * result["spread_over_seeds"] + 1e-9


@pytest.mark.slow
def test_a_killed_trial_driver_is_started_again_and_killed_too_often_is_a_row_that_gives_its_place_back(tmp_path):
    """Two CPUs, two trials at once: the third only begins if the lost one's placement group is given back."""
    spec = write_sweep(
        tmp_path / "s.yaml", tmp_path, {"lr": [1e-3, 2e-3, 3e-3]}, search={"name": "grid"}, scheduler={"name": "fifo"},
        set={"epochs": 12, "restarts": 1},
    )  # fmt: skip
    folder, process = tmp_path / "s", start("sweep", spec, "--json")
    first = folder / "s-000-seed0"
    wait_for(lambda: len(rows(first)) > 20, process, seconds=400)
    os.kill(driver_of(first), signal.SIGKILL)
    wait_for(lambda: any(row.get("resumed") == 1 for row in rows(first)), process)
    assert states(folder)[0] == "running"
    os.kill(driver_of(first), signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    assert "s-000-seed0: its driver was lost and is started again, 1 of 1 restarts spent\n" in stderr
    result = json.loads(stdout.splitlines()[-1])
    assert (result["finished"], result["unfinished"]) == (2, 1)
    assert states(folder) == ["lost", "finished", "finished"]
    assert "its driver died: " in (folder / "results.csv").read_text()
    again = emc2dist("sweep", spec, "--json")
    assert states(folder) == ["finished"] * 3, again.stderr


@pytest.mark.slow
def test_optuna_proposes_the_median_rule_judges_and_spent_hours_end_no_sweep_for_good(tmp_path):
    """One trial at a time, so that Optuna hears of each before it proposes the next."""
    spec = write_sweep(
        tmp_path / "s.yaml", tmp_path, {"lr": "loguniform(1e-4, 10)"}, search={"name": "optuna"},
        scheduler={"name": "median"}, budget={"trials": 4, "concurrent": 1}, set={"epochs": 4},
    )  # fmt: skip
    spent = emc2dist("sweep", spec, "budget.hours=1e-6", "--json")
    assert spent.returncode == 0, spent.stderr
    assert "budget.hours are spent" in spent.stderr
    assert json.loads(spent.stdout.splitlines()[-1])["trials"] == 0

    done = emc2dist("sweep", spec, "--json", timeout=900)
    assert done.returncode == 0, done.stderr
    records = SweepFolder(files.at(tmp_path / "s")).records()
    assert len(records) == 4
    assert {record.state for record in records} <= {"finished", "stopped", "failed"}
    assert all(record.reason.startswith("median, epoch ") for record in records if record.state == "stopped")
    study = points_of(load_sweep(spec), [], {})
    for record in records:
        assert study.next() == record.values
        study.tell(record.point, None if record.state == "failed" else record.value)


@pytest.mark.slow
def test_a_sweep_on_s3_leaves_all_there_and_goes_on_from_there(s3, tmp_path):
    spec = write_sweep(
        tmp_path / "s.yaml", f"{s3.uri}/sweeps", {"lr": [1e-3, 2e-3]}, search={"name": "grid"},
        scheduler={"name": "fifo"}, set={"epochs": 2},
    )  # fmt: skip
    folder = files.at(f"{s3.uri}/sweeps/s")
    process = start("sweep", spec)
    wait_for(lambda: (folder / "s-000-seed0" / "metrics.jsonl").entry(), process, seconds=300)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130, stderr
    done = emc2dist("sweep", spec, "--json", timeout=600)
    assert done.returncode == 0, done.stderr
    assert [record.state for record in SweepFolder(folder).records()] == ["finished", "finished"]
    assert json.loads(done.stdout.splitlines()[-1])["best_spec"] == f"{folder}/best.yaml"
    assert {"results.csv", "results.parquet", "best.yaml", "keys.png"} <= {entry.name for entry in folder.entries()}
    assert "tune" not in folder.folders()
