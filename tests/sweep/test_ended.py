"""What a sweep's folder says of it: a sweep that is refused, or has ended, changes none of it; without Ray."""

import json

import pytest
import yaml
from command import in_process
from train.harness import SMALL, leave_manifest

from emc2dist.config import load, load_sweep, parse
from emc2dist.errors import LaunchError
from emc2dist.run.driver import resolved
from emc2dist.run.folder import RunFolder
from emc2dist.sweep.folder import Record, SweepFolder


@pytest.fixture
def swept(tmp_path, monkeypatch):
    """The file and the folder of a sweep of two trials, which have ended; where no cluster can be had."""

    def connected(spec, **options):
        raise LaunchError("this test has no cluster")

    monkeypatch.setattr("emc2dist.run.cluster.connected", connected)
    base = yaml.safe_load(SMALL) | {"run_dir": str(tmp_path)}
    text = {"name": "s", "base": base, "space": {"lr": [1e-3, 2e-3]}, "search": {"name": "grid"}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(text))
    sweep = load_sweep(tmp_path / "s.yaml")
    folder = SweepFolder.prepare(sweep.model_copy(update={"base": resolved(sweep.base)}))
    for point, lr in enumerate((1e-3, 2e-3)):
        folder.save(Record(f"s-00{point}-seed0", point, 0, {"lr": lr}, "finished", [[2, 0.5 + point / 4]]))
    return tmp_path / "s.yaml", folder


def said(done):
    return [line for line in done.stderr.splitlines() if "given more than once" not in line]


def test_an_ended_sweep_says_which_of_the_values_given_now_it_does_not_have(swept):
    file, folder = swept
    before = (folder.place / "sweep.yaml").read()
    done = in_process("sweep", file, "set.log_every=5", "budget.hours=1", "--json")
    result = json.loads(done.stdout)
    (remark,) = result["remarks"]
    assert remark.startswith(f"{folder.place}: all trials have ended, so their values stand, not those given now (")
    assert "base.log_every: 1 -> 5" in remark
    assert "budget.hours: None -> 1.0" in remark
    assert remark in said(done)
    assert (folder.place / "sweep.yaml").read() == before
    best = load(folder.place.path / "best.yaml")
    assert (best.log_every, best.lr) == (1, 2e-3)
    assert json.loads(in_process("sweep", file, "--json").stdout)["remarks"] == []


def test_a_sweep_that_is_refused_keeps_its_record(swept):
    file, folder = swept
    before = (folder.place / "sweep.yaml").read()
    folder.save(Record("s-001-seed0", 1, 0, {"lr": 2e-3}))  # on its way
    assert said(in_process("sweep", file, "budget.concurrent=1"))[-1] == "emc2dist: this test has no cluster"
    assert (folder.place / "sweep.yaml").read() == before
    assert in_process("sweep", file, "set.name=x", "name=new").returncode == 1
    assert not (folder.place.path.parent / "new").exists()


def test_trials_that_are_evaluated_otherwise_are_not_compared(swept):
    done = in_process("sweep", swept[0], "set.eval.neighbours=5")
    assert done.returncode == 1
    assert "was another one (base.eval.neighbours: 3 -> 5)" in done.stderr


def test_trials_on_other_images_are_not_compared(swept):
    file, folder = swept
    spec = parse(SMALL, ["name=s-000-seed0", "lr=1e-3", f"run_dir={folder.place}", "data.shuffle=full"])
    trial = RunFolder.prepare(spec)
    leave_manifest(trial, spec, 12)
    done = in_process("sweep", file)
    assert done.returncode == 1
    assert f"{trial.place}: the data now hold other training images than the 48" in done.stderr


def test_a_grid_that_the_budget_cuts_is_in_the_remarks(swept):
    file, _ = swept
    words = ["name=cut", "space.lr=[1e-3, 2e-3, 3e-3]", "budget.trials=1"]
    sweep = load_sweep(file, words)
    folder = SweepFolder.prepare(sweep.model_copy(update={"base": resolved(sweep.base)}))
    folder.save(Record("cut-000-seed0", 0, 0, {"lr": 1e-3}, "finished", [[2, 0.5]]))
    done = in_process("sweep", file, *words, "--json")
    assert done.returncode == 0, done.stderr
    (remark,) = json.loads(done.stdout)["remarks"]
    assert remark == "budget.trials: 1 are for 1 of the grid's 3 points, the first; 3 trials would be all of them"
    assert f"{file}: {remark}" in done.stderr.splitlines()
