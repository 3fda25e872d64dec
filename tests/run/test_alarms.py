"""Warnings in plain words: told where the alerts of Prometheus would be, once, and not for what passes."""

import re
from pathlib import Path

import pytest
import yaml

from emc2dist.metrics import exported_name
from emc2dist.run.listeners.alarms import ALARMS, Alarms

RULES = Path(__file__).parents[2] / "cluster" / "rules.yml"
WELL = {
    "acceptance_rate": 0.6,
    "visited_ratio": 1.0,
    "feature_age_steps": 60,
    "effective_rank": 20.0,
    "uniformity": -1.0,
    "closed_anchors_ratio": 0.0,
    "images_per_second": 1000.0,
    "data_wait_slowest_seconds": 0.1,
    "step_seconds": 0.5,
}
ILL = {
    "Emc2AcceptanceCollapsed": {"acceptance_rate": 0.001},
    "Emc2AcceptanceStuck": {"acceptance_rate": 0.99},
    "Emc2ChainsNotVisited": {"visited_ratio": 0.5},
    "Emc2CacheOld": {"feature_age_steps": 150},
    "Emc2EffectiveRankFalling": {"effective_rank": 8.0},
    "Emc2UniformityLost": {"uniformity": -0.01},
    "Emc2AnchorsClosed": {"closed_anchors_ratio": 0.9},
    "Emc2ThroughputDown": {"images_per_second": 400.0},
    "Emc2DataStarved": {"data_wait_slowest_seconds": 0.25},
}


class Run:
    """Rows of a run of 100 steps an epoch, ten rows each, a minute apart."""

    def __init__(self, kernel="mh", step_seconds=6.0):
        self.step, self.now, self.said = 0, 0.0, []
        self.between = 10 * step_seconds
        self.alarms = Alarms(100, kernel, self.said.append, clock=lambda: self.now)

    def go(self, rows, **values):
        for _ in range(rows):
            self.step, self.now = self.step + 10, self.now + self.between
            self.alarms.record({"step": self.step, "epoch": self.step / 100, **WELL, **values})
        return self


def test_a_run_that_is_well_is_told_nothing_of():
    young = {"effective_rank": 47.0, "uniformity": -0.01, "visited_ratio": 0.0}
    run = Run().go(5, **young).go(100)
    run.alarms.record({"step": run.step, "epoch": 10.0, "knn_accuracy": 0.5})
    run.alarms.record({"step": run.step, "epoch": 10.0, "resumed": 1, "loading": "views: made on cpu"})
    assert run.said == run.alarms.heard == []


@pytest.mark.parametrize("name", ILL)
def test_what_goes_wrong_is_told_once_and_again_when_it_comes_back(name):
    run = Run().go(100).go(30, **ILL[name])
    (said,) = run.said
    assert said.startswith("warning: step 1110: ")
    assert said.endswith(f"({name})")
    assert said == f"warning: {run.alarms.heard[0]}"
    run.go(3).go(9, **ILL[name])
    assert len(run.said) == 1
    run.go(20, **ILL[name])
    assert len(run.said) == 2


def test_it_has_to_hold_for_an_epoch_or_ten_minutes_and_three_rows():
    quick = Run(step_seconds=0.01).go(100).go(10, uniformity=0.0)  # nine tenths of an epoch between the first and last
    assert quick.said == []
    assert len(quick.go(1, uniformity=0.0).said) == 1
    slow = Run(step_seconds=60).go(100).go(2, uniformity=0.0)  # ten minutes, in two rows
    assert slow.said == []
    assert len(slow.go(1, uniformity=0.0).said) == 1


def test_isir_may_accept_all_and_a_rank_may_fall_while_an_encoder_is_young():
    assert Run(kernel="isir").go(100, acceptance_rate=0.995).said == []
    assert Run(kernel=None).go(100, acceptance_rate=1.0).said == []
    assert Run().go(5, effective_rank=50.0).go(30, effective_rank=10.0).said == []
    assert len(Run().go(20, effective_rank=1.5).said) == 1  # under 2 at any time


def test_names_and_bounds_are_those_of_the_alerts():
    alerts = {
        rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
        if "alert" in rule
    }  # fmt: skip
    records = {
        rule["record"]: rule["expr"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
        if "record" in rule
    }  # fmt: skip
    assert {alarm.name for alarm in ALARMS} == ILL.keys()
    for alarm in ALARMS:
        expression = alerts[alarm.name]["expr"]
        for record, meant in records.items():
            expression = expression.replace(record, f"({meant})")
        metric = "images" if alarm.metric == "images_per_second" else alarm.metric
        assert exported_name(metric) in expression
        assert alarm.bound in [float(number) for number in re.findall(r"[<>] (-?[\d.]+)", expression)]
    only_there = alerts.keys() - {alarm.name for alarm in ALARMS}
    assert only_there == {"Emc2ShardNotRestored", "Emc2NoCheckpoint", "Emc2WorkersRestarting"}
