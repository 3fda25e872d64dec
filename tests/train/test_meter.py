"""The meter against a plain computation over all steps, and the stopwatch against a clock that is set by hand."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
import torch.distributed
from operators import Operators
from train.harness import Run, small_spec

from emc2dist.data.encoded import Traffic
from emc2dist.train import timing
from emc2dist.train.meter import Meter
from emc2dist.train.step import Facts
from emc2dist.train.timing import PHASES, Stopwatch

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for what a test adds to `clock[0]`."""
    now = [0.0]
    monkeypatch.setattr(timing, "perf_counter", lambda: now[0])
    return now


def facts(values, ages=(), retries=0):
    return Facts(values, {"carried_age": torch.tensor(ages)} if ages else {}, Traffic(hits=3, retries=retries))


def test_a_moment_belongs_to_the_innermost_phase(clock):
    watch = Stopwatch(CPU)
    with watch.phase("sweep"):
        clock[0] += 1
        with watch.phase("forward"):
            clock[0] += 10
        clock[0] += 2
    clock[0] += 100  # in no phase
    with watch.phase("forward"):
        clock[0] += 20
    expected = dict.fromkeys(PHASES, 0.0) | {"sweep": 3.0, "forward": 30.0}
    assert watch.read() == expected
    watch.restart()
    assert watch.read() == dict.fromkeys(PHASES, 0.0)


def test_a_phase_that_raises_is_over(clock):
    watch = Stopwatch(CPU)
    with pytest.raises(ValueError, match="no"), watch.phase("backward"):
        raise ValueError("no")
    clock[0] += 5
    with watch.phase("sweep"):
        clock[0] += 1
    assert (watch.read()["backward"], watch.read()["sweep"]) == (0, 1)


def test_a_mean_weighs_what_it_is_a_mean_of():
    meter = Meter(8, Stopwatch(CPU))
    meter.add(facts({"acceptance_rate": (torch.tensor(1.0), torch.tensor(1)), "loss": torch.tensor(2.0)}, retries=1))
    meter.add(facts({"acceptance_rate": (torch.tensor(0.0), torch.tensor(3)), "loss": torch.tensor(4.0)}, retries=2))
    row = meter.read()
    assert (row["acceptance_rate"], row["loss"], row["data_hits"]) == (0.25, 3.0, 3.0)
    assert (row["images"], row["data_retries"]) == (16, 3)
    meter.add(facts({"acceptance_rate": (torch.tensor(0.0), torch.tensor(0))}))
    assert "acceptance_rate" not in meter.read()  # of nothing there is no mean


def test_facts_are_fetched_once_a_row_or_where_too_many_wait(monkeypatch):
    one = {"loss": torch.tensor(0.1), "count": (torch.tensor(7), torch.tensor(2)), "wide": torch.tensor(0.3).double()}
    counts, rows = [], []
    for steps, most in ((2, 2_000), (50, 2_000), (50, 4)):
        monkeypatch.setattr("emc2dist.train.meter._MOST_WAITING", most)
        meter = Meter(8, Stopwatch(CPU))
        with Operators() as counted:
            for _ in range(steps):
                meter.add(facts(one))
        with Operators() as read:
            rows.append(meter.read())
        counts.append((counted.others("detach"), read.count))
    (few, at_once), (many, row), (by_parts, _) = counts
    assert (few, many) == (0, 0)
    assert at_once == row  # of 2 steps or 50
    assert by_parts > 0
    for found in rows:
        assert found["loss"] == pytest.approx(0.1)
        assert (found["count"], found["wide"]) == (3.5, pytest.approx(0.3, rel=1e-7))


def test_percentiles_are_of_the_last_step_and_leave_out_what_has_no_age():
    meter = Meter(8, Stopwatch(CPU))
    meter.add(facts({}, ages=[900]))
    meter.add(facts({}, ages=[-1, *range(101), -1]))
    assert meter.read()["carried_age_p95_steps"] == 95
    meter.add(facts({}, ages=[-1, -1]))
    assert "carried_age_p95_steps" not in meter.read()


def read_on(rank, rendezvous):
    """One of two ranks: the second waits longer for data, and has three times the weight."""
    torch.distributed.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=2)
    watch = Stopwatch(CPU)
    meter = Meter(8, watch)
    meter.add(facts({"acceptance_rate": (torch.tensor(float(rank)), torch.tensor(1 + 2 * rank))}, [rank, -1], 1))
    watch._marks = [("data_wait", 0.0), ("", 1.0 + 2 * rank)]
    row = meter.read()
    torch.distributed.destroy_process_group()
    return row


def test_ranks_are_reduced_to_one_row(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, spawn) as pool:
        rows = [
            future.result(timeout=120)
            for future in [pool.submit(read_on, rank, tmp_path / "rendezvous") for rank in range(2)]
        ]
    for row in rows:
        assert row["acceptance_rate"] == 0.25
        assert (row["data_wait_seconds"], row["data_wait_slowest_seconds"]) == (2, 3)
        assert row["carried_age_p95_steps"] == pytest.approx(0.95)  # of 0 and 1
        assert (row["data_retries"], row["images"]) == (2, 8)


def test_the_parts_of_a_step_make_up_nearly_all_of_it(tmp_path):
    run = Run(small_spec("negatives.kernel=isir", "epochs=2", "log_every=6"), tmp_path).go()
    row = [row for row in run.rows if "step_seconds" in row][-1]
    parts = sum(row[f"{name}_seconds"] for name in PHASES)
    assert 0.7 * row["step_seconds"] < parts <= row["step_seconds"]
    assert all(row[f"{name}_seconds"] > 0 for name in PHASES)
    assert row["data_wait_slowest_seconds"] == row["data_wait_seconds"]  # of one rank
    assert sum(run.column("images")) == 2 * 48


def test_ages_are_what_was_remembered(tmp_path):
    """An epoch is 6 steps; a chain was last visited one epoch ago, give or take the order."""
    run = Run(small_spec("negatives.kernel=mh", "epochs=4", "log_every=6"), tmp_path).go()
    ages, p95 = run.column("carried_age_steps"), run.column("carried_age_p95_steps")
    assert len(ages) == len(p95) == 3  # none in the first epoch: nothing was visited before
    assert all(3 <= age <= 9 for age in ages)
    assert all(age <= high <= 11 for age, high in zip(ages, p95, strict=True))
