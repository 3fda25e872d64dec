"""Points: in their bounds, the same for the same seed, and of a sweep that goes on those that it had."""

import math

import numpy as np
import pytest
from train.harness import SMALL

from emc2dist.config import parse_sweep
from emc2dist.config.points import draw
from emc2dist.errors import RunError, SpecError
from emc2dist.sweep.folder import Record, SweepFolder, scores
from emc2dist.sweep.space import points_of, trial_spec


def small_sweep(space, *lines, run_dir="runs", name="s"):
    base = "\n".join(f"  {line}" for line in [*SMALL.strip().splitlines(), f"run_dir: {run_dir}"])
    return parse_sweep("\n".join([f"name: {name}", "base:", base, f"space: {space}", *lines]))


def listed(points):
    return [dict(points.next()) for _ in range(len(points))]


def test_draws_follow_their_distribution_and_depend_on_seed_and_number_alone():
    space = (
        "{temperature: 'loguniform(0.05, 0.5)', lr: 'uniform(1, 3)', negatives.cache_proposals: 'randint(2, 4)', "
        "negatives.kernel: [mh, isir]}"
    )
    sweep = small_sweep(space)
    points = [draw(sweep, index) for index in range(2000)]
    logs = np.log([point["temperature"] for point in points])
    low, high = math.log(0.05), math.log(0.5)
    assert (logs.min() >= low, logs.max() <= high) == (True, True)
    assert logs.mean() == pytest.approx((low + high) / 2, abs=0.05)
    assert logs.std() == pytest.approx((high - low) / math.sqrt(12), abs=0.05)
    assert np.mean([point["lr"] for point in points]) == pytest.approx(2, abs=0.05)
    assert {point["negatives.cache_proposals"] for point in points} == {2, 3, 4}
    assert {type(point["negatives.cache_proposals"]) for point in points} == {int}
    assert np.mean([point["negatives.kernel"] == "mh" for point in points]) == pytest.approx(0.5, abs=0.05)

    more = small_sweep(space, "budget: {trials: 20}")
    assert listed(points_of(more, [], {})) == points[:20]
    assert draw(small_sweep(space, "search: {seed: 1}"), 0) != points[0]


def test_a_grid_takes_every_combination_and_checks_each():
    sweep = small_sweep("{lr: [1, 2], negatives.kernel: [mh, isir]}", "search: {name: grid}")
    expected = [{"lr": lr, "negatives.kernel": kernel} for lr in (1, 2) for kernel in ("mh", "isir")]
    assert listed(points_of(sweep, [], {})) == expected
    with pytest.raises(SpecError, match="point 2: negatives: in_batch takes no cache_proposals: 0"):
        small_sweep("{objective: [emc2, dcl], negatives.cache_proposals: [0, 8]}", "search: {name: grid}")
    with pytest.raises(SpecError, match=r"point \d+: batch_size: \d+ does not divide among .* = 4"):
        small_sweep("{batch_size: 'randint(16, 64)', optimiser.accumulate: [4]}")


def test_a_trial_is_the_base_with_its_point_and_a_seed_of_its_own():
    sweep = small_sweep("{optimiser.weight_decay: [0.5]}", "seeds: 2")
    spec = trial_spec(sweep, "t", {"optimiser.weight_decay": 0.5}, 1, {"run_dir": "/folder"})
    assert (spec.name, spec.run_dir, spec.seed, spec.optimiser.weight_decay) == ("t", "/folder", 1, 0.5)
    assert spec.model_copy(update={"name": "small", "run_dir": "runs", "seed": 0}).optimiser.warmup_epochs == 1


def test_optuna_learns_and_goes_on_where_it_was():
    space = "{lr: 'loguniform(1e-3, 1)', negatives.kernel: [mh, isir], views.crop: [[0.2, 1.0], [0.6, 1.0]]}"
    sweep = small_sweep(space, "search: {name: optuna}", "budget: {trials: 40}")
    points, found = points_of(sweep, [], {}), []

    def worth(point):
        return -abs(math.log10(point["lr"]) + 2) - (point["negatives.kernel"] == "mh")

    for index in range(40):
        found.append(dict(points.next()))
        points.tell(index, worth(found[-1]) if index != 3 else None)
    assert np.mean([worth(point) for point in found[30:]]) > np.mean([worth(point) for point in found[:10]]) + 0.3

    told = {index: worth(point) for index, point in enumerate(found[:12])}
    as_read = [{**point, "views.crop": list(point["views.crop"])} for point in found[:12]]  # JSON has no tuples
    again = listed(points_of(sweep, as_read, told))
    assert again[:12] == as_read
    assert not any(point["lr"] == other["lr"] for point in again[12:] for other in found[:12])


def test_records_survive_and_score_points_whose_trials_have_all_ended(tmp_path):
    sweep = small_sweep("{lr: [1, 2, 3]}", "seeds: 2", run_dir=tmp_path)
    folder = SweepFolder.prepare(sweep)
    states = [
        ("finished", 0.5), ("finished", 0.7), ("finished", 0.9), ("running", 0.1), ("failed", None), ("failed", 1.0),
    ]  # fmt: skip
    records = [
        Record(f"t{i}", i // 2, i % 2, {"lr": i // 2}, state, [[1, value]] if value else [], "why")
        for i, (state, value) in enumerate(states)
    ]
    for record in reversed(records):
        folder.save(record)
    assert SweepFolder.prepare(sweep).records() == records
    assert scores(sweep, records) == {0: 0.6, 2: None}


def test_a_sweep_of_the_same_name_must_be_the_same_but_for_its_budget(tmp_path, capsys):
    SweepFolder.prepare(small_sweep("{lr: [1]}", run_dir=tmp_path))
    folder = SweepFolder.prepare(small_sweep("{lr: [1, 2]}", run_dir=tmp_path))  # for no trial began
    assert "and began no trial" in capsys.readouterr().err
    folder.save(Record("t", 0, 0, {"lr": 1}))
    SweepFolder.prepare(small_sweep("{lr: [1, 2]}", "budget: {trials: 1}", "scheduler: {name: fifo}", run_dir=tmp_path))
    with pytest.raises(RunError, match=r"space: .*\[1, 2\].* -> .*\[1, 3\]"):
        SweepFolder.prepare(small_sweep("{lr: [1, 3]}", run_dir=tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "spec.yaml").write_text("x")
    with pytest.raises(RunError, match="is the folder of a run"):
        SweepFolder.prepare(small_sweep("{lr: [1]}", run_dir=tmp_path, name="run"))


def test_a_grid_is_bounded_before_it_is_made():
    values = ", ".join(map(str, range(1, 101)))
    space = f"{{lr: [{values}], temperature: [{values}], log_every: [{values}]}}"
    with pytest.raises(SpecError, match="space: a grid of 1,000,000 points is more than 100,000"):
        small_sweep(space, "search: {name: grid}")
    assert len(points_of(small_sweep(space, "search: {name: grid}", "budget: {trials: 3}"), [], {})) == 3


def test_sections_of_a_space_may_be_nested():
    sweep = small_sweep("{optimiser: {weight_decay: [0.1, 0.2]}, views.size: [8]}")
    assert sweep.distributions() == {"optimiser.weight_decay": (0.1, 0.2), "views.size": (8,)}
