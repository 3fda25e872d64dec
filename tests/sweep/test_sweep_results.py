"""What is made of records: who is best, what mattered, and files and pictures of it."""

import io
import time

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sweep.test_space import small_sweep

from emc2dist.config import parse
from emc2dist.sweep import results, tuner
from emc2dist.sweep.folder import Record, SweepFolder
from emc2dist.sweep.pictures import pictures
from emc2dist.sweep.schedulers import CooperativeScheduler, scheduler_of

SPACE = "{temperature: 'loguniform(0.05, 0.5)', precision: [float32, bf16]}"


def record(number, state, *values, seed=0, **point):
    history = [[epoch, value] for epoch, value in enumerate(values, 1)]
    return Record(
        f"t{number}-{seed}", number, seed, {"temperature": 0.1, "precision": "float32", **point}, state, history
    )


def test_the_best_point_has_the_best_mean_of_finished_trials(tmp_path):
    sweep = small_sweep(SPACE, "seeds: 2", run_dir=tmp_path, name="s")
    records = [
        record(0, "finished", 0.6, seed=0), record(0, "finished", 0.8, seed=1),
        record(1, "finished", 0.9, seed=0, temperature=0.3), record(1, "stopped", 0.1, seed=1, temperature=0.3),
        record(2, "stopped", 0.95, seed=0), record(2, "failed", 0.99, seed=1),
    ]  # fmt: skip
    best = results.best_point(sweep, records)
    assert (best.values["temperature"], best.mean, best.seeds) == (0.1, pytest.approx(0.7), 2)
    assert best.spread == pytest.approx(np.std([0.6, 0.8], ddof=1))
    assert results.best_spec(sweep, best).seed == 0
    late = results.best_point(sweep, records[1:2])
    assert (late.spread, results.best_spec(sweep, late).seed) == (0, 1)  # the seed that finished
    assert results.best_point(sweep, records[4:]) is None
    assert results.leader(sweep, records).name == "t2-0"  # so far; a failed one leads nothing
    lowest = small_sweep(SPACE, "goal: min", "metric: loss")
    assert results.best_point(lowest, [records[0], records[2]]).mean == 0.6


def test_importance_finds_the_key_that_matters():
    rng = np.random.default_rng(0)
    sweep = small_sweep(SPACE)
    points = [(rng.uniform(0.05, 0.5), str(rng.choice(["float32", "bf16"]))) for _ in range(24)]

    def of(worth):
        records = [record(i, "finished", worth(t, k), temperature=t, precision=k) for i, (t, k) in enumerate(points)]
        return results.importance(sweep, records)

    assert of(lambda temperature, precision: temperature)["temperature"] > 0.9
    assert of(lambda temperature, precision: float(precision == "float32"))["precision"] > 0.9
    assert sum(of(lambda temperature, precision: temperature + (precision == "float32")).values()) == pytest.approx(1)
    assert results.importance(sweep, [record(i, "finished", 0.5) for i in range(5)]) == {}


def test_stopped_trials_are_compared_where_all_have_been(tmp_path):
    """At epoch 1 every point is as good as its temperature; what the finished ones gain later must not count."""
    sweep, temperatures = small_sweep(SPACE), np.linspace(0.05, 0.5, 12)
    records = [
        record(i, "finished", t, 10.0 - t, temperature=t, precision="float32")
        if i % 2 else record(i, "stopped", t, temperature=t, precision="bf16")
        for i, t in enumerate(temperatures)
    ]  # fmt: skip
    assert results.importance(sweep, records)["temperature"] > 0.9


def test_files_and_pictures(tmp_path):
    sweep = small_sweep(SPACE, "seeds: 2", run_dir=tmp_path)
    rng = np.random.default_rng(1)
    records = []
    for point in range(8):
        where = {"temperature": float(0.05 * 1.3**point), "precision": ["float32", "bf16"][point % 2]}
        values = rng.uniform(0.4, 0.9, (2, 3)).tolist()
        records += [record(point, "finished", *values[seed], seed=seed, **where) for seed in (0, 1)]
    records.append(Record("t8-0", 8, 0, dict(records[0].values), "failed", [], "diverged, at 1"))
    folder = SweepFolder.prepare(sweep)
    summary = results.write(sweep, records, folder)
    assert (summary["trials"], summary["finished"], summary["failed"]) == (17, 16, 1)
    table = pyarrow.csv.read_csv(io.BytesIO((folder.place / "results.csv").read())).to_pylist()
    assert [row["trial"] for row in table] == [one.name for one in records]
    assert (table[-1]["state"], table[-1]["reason"], table[-1]["knn_accuracy"]) == ("failed", "diverged, at 1", None)
    parquet = pq.read_table(tmp_path / "s" / "results.parquet").to_pylist()
    assert [row["temperature"] for row in parquet] == [one.values["temperature"] for one in records]
    best = results.best_point(sweep, records)
    spec = parse((tmp_path / "s" / "best.yaml").read_text())
    assert (spec.temperature, spec.precision, spec.seed, spec.name) == (*best.values.values(), 0, "s-best")
    for name in ("parallel", "keys", "importance"):
        image = np.asarray(Image.open(tmp_path / "s" / f"{name}.png").convert("L"))
        assert image.std() > 5  # something is drawn


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("space", ["{temperature: [0.1]}", "{precision: [float32]}", SPACE])
@pytest.mark.parametrize("values", [[0.6], [0.6, 0.6], [0.6, 0.6 + 1e-9], [0.0, 0.0], [-3.0, -3.0]])
def test_trials_that_come_to_one_value_are_drawn_without_a_word(space, values):
    records = [record(number, "finished", value) for number, value in enumerate(values)]
    assert pictures(small_sweep(space), records, {}).keys() == {"parallel", "keys"}


def test_the_table_shows_the_best_first():
    sweep = small_sweep(SPACE)
    records = [record(0, "running", 0.2), record(1, "stopped", 0.4), record(2, "running")]
    lines = results.table(sweep, records).splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["t1-0", "t0-0", "t2-0"]
    assert lines[4] == "best so far: t1-0, knn_accuracy 0.4 at epoch 1"
    many = results.table(sweep, [record(i, "running") for i in range(30)])
    assert "... and 10 more" in many


@pytest.mark.parametrize(("name", "stopped"), [("asha", ["t1-0", "t3-0"]), ("median", ["t1-0", "t3-0"]), ("fifo", [])])
def test_a_sweep_that_goes_on_judges_by_what_was_before(name, stopped):
    """Earlier trials are replayed; of the new ones those worse than they were are asked to stop, and none is ended."""
    sweep = small_sweep(SPACE, f"scheduler: {{name: {name}, reduction: 2}}")
    asked = []
    scheduler = CooperativeScheduler(scheduler_of(sweep), lambda name, epoch: asked.append(name), asked.append, 60)
    for number, value in enumerate((0.5, 0.6, 0.7, 0.8)):
        scheduler.replay(record(10 + number, "finished", value, value), sweep.metric)
    asked.clear()
    for number, value in enumerate((0.9, 0.1, 0.95, 0.2)):
        trial = Trial(f"id{number}", {"name": f"t{number}-0"})
        scheduler.on_trial_add(None, trial)
        assert scheduler.on_trial_result(None, trial, {"epoch": 1, sweep.metric: value}) == "CONTINUE"
        scheduler.on_trial_result(None, trial, {"epoch": 2, sweep.metric: value})
    assert asked == stopped


@pytest.mark.slow
def test_a_trial_whose_driver_does_not_start_is_lost_and_the_others_go_on(ray_cluster, tmp_path, monkeypatch):
    from ray import tune

    class Driver(tune.Trainable):  # in here, so that Ray takes it along
        def setup(self, config):
            import threading

            if config["name"] == "t1-0":
                threading.Event().wait()

        def step(self):
            return {"epoch": 1, "done": True}

    for name, value in tuner._SETTINGS.items():
        monkeypatch.setenv(name, value)
    lost = []
    decider = scheduler_of(small_sweep(SPACE, "scheduler: {name: fifo}"))
    scheduler = CooperativeScheduler(decider, lambda *_: None, lost.append, 20)
    ended = tune.run(
        Driver, config={"name": tune.grid_search(["t0-0", "t1-0", "t2-0"])}, scheduler=scheduler, verbose=0,
        resources_per_trial={"CPU": 1}, storage_path=str(tmp_path),
    )  # fmt: skip
    assert lost == ["t1-0"]
    assert [trial.last_result.get("epoch") for trial in ended.trials] == [1, None, 1]


@pytest.mark.slow
def test_what_asks_trials_to_stop_may_die_and_is_told_again(ray_cluster):
    from emc2dist.sweep.trial import StopRequestsHandle

    stops = StopRequestsHandle.create()
    stops.add(["one"])
    stops.add(["two"])
    ray_cluster.kill(stops._actor, no_restart=False)
    deadline = time.monotonic() + 60
    while stops.of("one").stopping():  # until it has come again, and knows nothing
        assert time.monotonic() < deadline
    assert not stops.of("two").stopping()
    stops.repeat()
    assert [stops.of(name).stopping() for name in ("one", "two", "three")] == [True, True, False]
    stops.close()


def test_a_trial_that_starts_again_is_judged_once_at_each_epoch():
    """It tells again of what it told before its driver was lost, and stays what others are compared with."""
    sweep = small_sweep(SPACE, "scheduler: {name: median}")
    asked = []
    scheduler = CooperativeScheduler(
        scheduler_of(sweep), lambda name, epoch: asked.append((name, epoch)), asked.append, 60
    )
    for number in (10, 11):
        scheduler.replay(record(number, "finished", 0.5, 0.5, 0.5), sweep.metric)
    lost, bad = Trial("id0", {"name": "t0-0"}), Trial("id1", {"name": "t1-0"})
    for epochs in (3, 1):
        scheduler.on_trial_add(None, lost)
        for epoch in range(1, epochs + 1):
            scheduler.on_trial_result(None, lost, {"epoch": epoch, sweep.metric: 0.5})
        scheduler.on_trial_error(None, lost)
    scheduler.on_trial_add(None, bad)
    scheduler.on_trial_result(None, bad, {"epoch": 3, sweep.metric: 0.1})
    assert asked == [("t1-0", 3)]


class Trial:
    """As much of a trial of Tune as a scheduler asks for."""

    def __init__(self, trial_id, config):
        self.trial_id, self.config = trial_id, config
