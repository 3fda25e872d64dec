"""Sweeps as they are run: real trials on a real Ray, killed and continued, broken ones among them, nothing left."""

import json
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
import yaml
from service.test_train import start, wait_for
from train.harness import SMALL

from emc2dist import files
from emc2dist.config import load, load_sweep
from emc2dist.service.sweep.folder import SweepFolder


def write_sweep(path, run_dir, space, **more):
    base = yaml.safe_load(SMALL) | {
        "run_dir": str(run_dir),
        "threads": 1,
        "optimiser": {"name": "sgd", "warmup_epochs": 0},
    }
    path.write_text(yaml.safe_dump({"name": "s", "base": base, "space": space, "budget": {"concurrent": 2}} | more))
    return path


def states(folder):
    return [record.state for record in SweepFolder(files.at(folder)).records()]


def rows(folder):
    path = Path(str(folder)) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def nothing_is_left(ray_cluster):
    """Resources, placement groups and actors of the session's Ray are after the test what they were before."""

    def held():
        groups = [group for group in ray_cluster.util.placement_group_table().values() if group["state"] != "REMOVED"]
        children = psutil.Process().children(recursive=True)
        names = [" ".join(child.cmdline()) for child in children if child.status() != psutil.STATUS_ZOMBIE]
        busy = sorted(name for name in names if name.startswith("ray::") and not name.startswith("ray::IDLE"))
        resources = {kind: ray_cluster.available_resources().get(kind) for kind in ("CPU", "memory")}
        return resources, len(groups), busy

    before = held()
    yield
    deadline = time.monotonic() + 60
    while held() != before:
        assert time.monotonic() < deadline, (before, held())
        time.sleep(0.5)


def scraped(ray, name):
    """The samples of a metric on the node's endpoint."""
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return [line for line in answer.read().decode().splitlines() if line.startswith(name + "{")]


def test_a_killed_sweep_goes_on_and_a_broken_trial_is_a_row(ray_cluster, nothing_is_left, tmp_path):
    """Three trials, two at once; killed when the first has finished, the second diverged, the third is on its way."""
    from emc2dist.service.sweep import sweep

    spec = write_sweep(
        tmp_path / "s.yaml", tmp_path, {"lr": [1e-3, 1e30, 2e-3]}, search={"name": "grid"}, scheduler={"name": "fifo"},
        set={"epochs": 12},
    )  # fmt: skip
    folder = tmp_path / "s"
    folders = [folder / f"s-00{point}-seed0" for point in range(3)]
    process = start("sweep", spec)
    on_its_way = ["finished", "failed", "running"]
    wait_for(lambda: len(rows(folders[2])) > 20 and states(folder) == on_its_way, process, seconds=400)
    process.kill()
    process.communicate(timeout=60)
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
    assert [epoch for epoch, _ in after[2].history] == list(range(1, 13))
    judged = [row["knn_accuracy"] for row in rows(folders[2]) if "knn_accuracy" in row][-12:]
    assert [value for _, value in after[2].history][-6:] == judged[-6:]
    best = load(folder / "best.yaml")
    assert best.lr == max(after[::2], key=lambda record: record.value).values["lr"]

    assert sweep(load_sweep(spec)) == summary  # and the same once more, without a trial
    deadline = time.monotonic() + 60
    while len(scraped(ray_cluster, "ray_emc2_sweep_trial_metric")) < 2:
        assert time.monotonic() < deadline
        time.sleep(1)
    assert len(scraped(ray_cluster, "ray_emc2_sweep_trials")) == 5
