"""Where a step goes: parts that make up the step, operators that are torch's, a trace that can be read."""

import gzip
import json
from pathlib import Path

import pytest
from tmpfs import mount, unmount
from train.harness import SMALL, Run, small_spec

from emc2dist.cli import main
from emc2dist.errors import SpecError, StorageError
from emc2dist.train.profile import OPERATORS, WARM_UP, _export, profile
from emc2dist.train.timing import PHASES


def test_parts_make_up_the_step_and_operators_are_the_dearest(tmp_path):
    found = profile(small_spec("negatives.kernel=isir", "shards=2"), 2, tmp_path / "trace.json")
    assert found.parts_ms.keys() == set(PHASES)
    assert 0.5 * found.step_ms <= sum(found.parts_ms.values()) <= found.step_ms
    assert found.parts_ms["backward"] > 0.05 * found.step_ms
    names = [one.name for one in found.operators]
    assert len(names) == OPERATORS
    assert "aten::convolution_backward" in names
    assert not set(names) & set(PHASES)
    times = [one.cpu_ms for one in found.operators]
    assert times == sorted(times, reverse=True)
    # 4 convolutions of the batch and, as from the second epoch on, 4 of the carried negatives.
    (convolutions,) = (one.calls for one in found.operators if one.name == "aten::mkldnn_convolution")
    assert convolutions == 8
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert set(PHASES) <= {event["name"] for event in events}


class Recorded:
    """A profiler whose torch writes so much of a trace, or nothing, and says nothing of it."""

    def __init__(self, share: float | None) -> None:
        self.share = share

    def export_chrome_trace(self, path: str) -> None:
        whole = f'{{"traceEvents": [{{"ph": "X"}},\n{{"ph": "i"}}\n],"traceName": "{path}" }}\n'
        if self.share is not None:
            Path(path).write_text(whole[: round(self.share * len(whole))])


@pytest.mark.parametrize("share", [None, 0, 0.3, 0.9])
@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_a_trace_that_is_cut_short_is_said_and_not_left(name, share, tmp_path):
    (tmp_path / name).write_text("an earlier one")
    with pytest.raises(StorageError, match=rf"{name}: torch could not write the trace there \(\d+ MiB are free\)"):
        _export(Recorded(share), tmp_path / name)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "an earlier one")]


def test_a_trace_is_packed_if_its_name_says_so(tmp_path):
    for name, unpacked in (("a.json", bytes), ("a.json.gz", gzip.decompress)):
        _export(Recorded(1.0), tmp_path / name)
        assert len(json.loads(unpacked((tmp_path / name).read_bytes()))["traceEvents"]) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "a.json.gz"]


def test_on_a_full_disk_the_command_fails(tmp_path):
    if not mount(tmp_path / "disk", 1):
        pytest.skip("only root can mount a disk")
    try:
        filler = tmp_path / "disk" / "filler"
        filler.write_bytes(bytes(2**20 - 2**13))
        with pytest.raises(StorageError, match=r"could not write the trace|No space left"):
            profile(small_spec("threads=1"), 1, tmp_path / "disk" / "a.json")
        assert list((tmp_path / "disk").iterdir()) == [filler]
    finally:
        unmount(tmp_path / "disk")


def test_it_encodes_again_what_training_does(tmp_path):
    """The same steps of the same run: only where a run drains its store, at checkpoints, a state may be younger."""
    kind = [  # scores that lie far apart, so that proposals are refused
        "temperature=1e-4",
        "lr=1e-9",
        "negatives.burn_in_fraction=0",
        "negatives.kernel=mh",
        "threads=1",
        "epochs=4",
    ]
    run = Run(small_spec(*kind, "eval.every=0", "checkpoint.every=4"), tmp_path).go()
    trained = sum(run.column("reencoded_images")[WARM_UP : WARM_UP + 4]) / 4
    assert trained > 1
    assert profile(small_spec(*kind), 4).reencoded_images == pytest.approx(trained, rel=0.3)


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
    for trace, words in (
        (tmp_path / "none" / "a.json", "there is no folder"),
        (tmp_path, "is a folder"),
        ("gs://a/b", "gs://"),
    ):
        with pytest.raises(StorageError, match=words):
            profile(small_spec(), trace=trace)
    for workers, accumulate, whole in ((8, 1, 16), (2, 4, 16)):
        with pytest.raises(
            SpecError, match=rf"^batch_size: 8 leaves each of workers: {workers} one .* batch_size={whole}$"
        ):
            profile(small_spec(f"workers={workers}", f"optimiser.accumulate={accumulate}"))
