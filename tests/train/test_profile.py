"""Where a step goes: parts that make up the step, operators that are torch's, a trace that can be read."""

import json

import pytest
from train.harness import SMALL, small_spec

from emc2dist.cli import main
from emc2dist.errors import RunError, SpecError
from emc2dist.train.profile import OPERATORS, profile
from emc2dist.train.timing import PHASES


def test_parts_make_up_the_step_and_operators_are_the_dearest(tmp_path):
    found = profile(small_spec("kernel=isir", "shards=2"), 2, tmp_path / "trace.json")
    assert found.parts_ms.keys() == set(PHASES)
    assert 0.9 * found.step_ms <= sum(found.parts_ms.values()) <= found.step_ms
    assert found.parts_ms["backward"] > 0.05 * found.step_ms
    names = [one.name for one in found.operators]
    assert len(names) == OPERATORS
    assert "aten::convolution_backward" in names
    assert not set(names) & set(PHASES)
    times = [one.cpu_ms for one in found.operators]
    assert times == sorted(times, reverse=True)
    # 20 convolutions of the batch and, as from the second epoch on, 20 of the carried negatives.
    (convolutions,) = (one.calls for one in found.operators if one.name == "aten::mkldnn_convolution")
    assert convolutions == 40
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert set(PHASES) <= {event["name"] for event in events}


def test_the_command_prints_one_table(tmp_path, capsys):
    (tmp_path / "small.yaml").write_text(SMALL + "threads: 1\n")
    overrides = ["workers=2", "objective=simclr", "optimiser.accumulate=2"]
    assert main(["profile", str(tmp_path / "small.yaml"), *overrides, "--steps", "1"]) == 0
    shown = capsys.readouterr()
    heading, *lines = shown.out.splitlines()
    assert heading.split() == ["PART", "OR", "OPERATOR", "MS", "%", "CALLS"]
    assert [line.split()[0] for line in lines[: len(PHASES)]] == [*PHASES]
    assert lines[len(PHASES)].startswith("sum of the parts")
    assert lines[len(PHASES) + 1].startswith("whole step")
    assert lines[len(PHASES) + 1].split()[-1] == "100.0"
    assert len(lines) == len(PHASES) + 2 + OPERATORS
    assert "2 steps of 2 samples on cpu" in shown.err  # a worker's share, and a whole update
    assert "communication is not measured" in shown.err


def test_what_cannot_be_profiled_is_refused_before(tmp_path):
    with pytest.raises(RunError, match="there is no folder"):
        profile(small_spec(), trace=tmp_path / "none" / "trace.json")
    with pytest.raises(SpecError, match="one worker of 8: batch_size: got 1"):
        profile(small_spec("workers=8"))
