"""A run watched from its folder: rows that come, rows that are dropped, a run that is not there yet or is finished."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext

import pytest
from train.harness import small_spec

from emc2dist import files
from emc2dist.cli import main
from emc2dist.config import S3
from emc2dist.errors import RunError
from emc2dist.metrics import METRICS
from emc2dist.run import lock
from emc2dist.run.folder import RunFolder
from emc2dist.run.listeners.terminal import Display
from emc2dist.watch import live

SUMMARY = {"run_dir": "here", "loss": 1.5}


def row(step, **values):
    """As the loop writes it: six steps an epoch."""
    return {"step": step, "epoch": step / 6, **values}


def step_row(step, loss=3.0):
    return row(step, loss=loss, acceptance_rate=0.5, images_per_second=100.0, images=8)


class Watcher:
    """`watch.follow` on a thread, and what it has shown so far."""

    def __init__(self, run, capsys, **options):
        self._capsys, self._text, self.summary = capsys, "", None
        self._thread = threading.Thread(target=self._follow, args=(run, options), daemon=True)
        self._thread.start()

    def _follow(self, run, options):
        self.summary = live.follow(run, **options)

    def until(self, text):
        """Wait for a line that begins so; returns all lines shown so far."""
        deadline = time.monotonic() + 60
        while not any(line.startswith(text) for line in self.lines()):
            assert time.monotonic() < deadline, self._text
            time.sleep(0.01)
        return self.lines()

    def lines(self):
        self._text += self._capsys.readouterr().err
        return self._text.splitlines()

    def end(self):
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()
        return self.summary, self.lines()


def told_of(folder):
    """The summary, with the paths of now."""
    return SUMMARY | {"run_dir": str(folder.place), "checkpoint": None}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(live, "_INTERVAL_S", 0.01)


@pytest.fixture
def folder(tmp_path):
    return RunFolder.prepare(small_spec(f"run_dir={tmp_path}"))


def test_rows_are_shown_once_as_they_come_until_the_summary(folder, capsys):
    folder.append([row(0, resumed=0), row(0, knn_accuracy=0.25, knn_pixels=0.5), step_row(1), step_row(2)])
    watcher = Watcher(folder.place.path, capsys)
    begin = [
        "epoch 0: kNN accuracy 0.250, raw pixels 0.500",
        "step 2/12 epoch 0.33 loss 3.000, acceptance 0.500, 100 images/s, kNN 0.250",
    ]
    assert watcher.until("step 2/12") == begin  # where it stands, and no more of what was
    folder.append([step_row(3)])
    watcher.until("step 3/12")
    folder.append([step_row(12), row(12, knn_accuracy=0.75)])
    folder.finish(SUMMARY)
    summary, lines = watcher.end()
    assert summary == told_of(folder)
    assert [line.split(" epoch")[0] for line in lines[2:]] == ["step 3/12", "step 12/12", "epoch 2: kNN accuracy 0.750"]


def test_a_run_that_goes_back_to_a_checkpoint(folder, capsys):
    folder.append([row(0, resumed=0), *map(step_row, range(1, 9))])
    watcher = Watcher(folder.place.path, capsys)
    watcher.until("step 8/12")
    # In one go; then in two, as a reader may find it between the rewriting and the first row after it.
    folder.append([row(6, resumed=1), *(step_row(step, 2.0) for step in range(7, 10))])
    watcher.until("step 9/12")
    kept = folder.metrics.read().split(b"\n")[:8]
    folder.metrics.write(b"\n".join(kept) + b"\n")
    folder.append([row(6, resumed=1), step_row(7, 1.0)])
    lines = watcher.until("step 7/12 epoch 1.17 loss 1.000")
    resumed = "resumed from the checkpoint at step 6"
    steps = [line.split("/")[0] for line in lines]
    assert steps == ["step 8", resumed, "step 7", "step 8", "step 9", resumed, "step 7"]
    folder.finish(SUMMARY)
    assert watcher.end()[0] == told_of(folder)


def test_a_row_that_is_half_written_waits_for_its_other_half(folder, capsys):
    folder.append([row(0, resumed=0), step_row(1)])
    line = json.dumps(step_row(2)).encode() + b"\n"
    folder.metrics.append(line[:20])
    assert [found["step"] for found in folder.rows()] == [0, 1]
    watcher = Watcher(folder.place.path, capsys)
    watcher.until("step 1/12")
    folder.metrics.append(line[20:])
    watcher.until("step 2/12")
    folder.finish(SUMMARY)
    watcher.end()


def test_one_line_where_there_is_no_run_and_one_where_it_is_silent(tmp_path, capsys):
    watcher = Watcher(tmp_path / "small", capsys, quiet_s=0.2)
    watcher.until(f"{tmp_path / 'small'}: no run here yet")
    folder = RunFolder.prepare(small_spec(f"run_dir={tmp_path}"))
    watcher.until(f"{folder.place}: no rows for 0 s")
    folder.append([row(0, resumed=0), step_row(1)])
    watcher.until("step 1/12")
    folder.finish(SUMMARY)
    _, lines = watcher.end()
    assert [" ".join(line.split()[1:4]) for line in lines[:2]] == ["no run here", "no rows for"]
    assert lines[2].startswith("step 1/12")


@pytest.fixture
def dead(folder):
    """The run of a driver that was killed."""
    code = "import os, sys; from emc2dist import files; from emc2dist.run import lock\n"
    code += "with lock.held(files.at(sys.argv[1])): os.kill(os.getpid(), 9)"
    folder.append([row(0, resumed=0), step_row(5)])
    done = subprocess.Popen([sys.executable, "-c", code, str(folder.place)])
    assert done.wait(60) == -signal.SIGKILL
    return folder, f"nobody trains {folder.place}: its driver (process {done.pid} on "


def test_a_run_whose_driver_was_killed_is_told_at_once(dead, capsys):
    folder, told = dead
    watcher = Watcher(folder.place.path, capsys)
    line = watcher.until(told)[-1]
    assert line.endswith(" has ended at step 5 of 12; the same command resumes it")
    with lock.held(folder.place):  # as the same command does
        folder.append([step_row(6)])
        watcher.until("step 6/12")
        folder.finish(SUMMARY)
    assert sum(line.startswith("nobody") for line in watcher.end()[1]) == 1
    assert live.remark(folder.place.path) == ""


def test_once_tells_a_run_whose_driver_was_killed(dead, capsys):
    folder, told = dead
    assert main(["watch", str(folder.place), "--once", "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith(told)
    assert json.loads(shown.out)["step"] == 5
    with lock.held(folder.place):
        assert live.remark(folder.place.path) == ""
    folder.metrics.write(b"")
    with pytest.raises(RunError, match=r"^nobody trains .* has ended before its first step"):
        live.newest(folder.place.path)


def test_a_driver_that_cannot_be_asked_is_judged_by_the_age_of_its_rows(folder, capsys):
    """On another machine, whose lock may not be seen here."""
    (folder.place / "driver.lock").write(b"process 1 on elsewhere, since 2026-01-01")
    folder.append([row(0, resumed=0), step_row(5)])
    assert live.remark(folder.place.path) == ""
    written = folder.metrics.path.stat().st_mtime
    os.utime(folder.metrics.path, (written - 7200, written - 7200))
    told = f"{folder.place}: no rows for 120 minutes: the run is starting or evaluating, or it ended unfinished"
    assert live.remark(folder.place.path).startswith(told)
    watcher = Watcher(folder.place.path, capsys)
    watcher.until(told)
    folder.finish(SUMMARY)
    watcher.end()


def test_on_s3_the_age_of_the_rows_is_by_its_own_clock(s3):
    folder = RunFolder.prepare(small_spec(f"run_dir={s3.uri}/runs"))
    folder.append([row(0, resumed=0), step_row(5)])
    assert 0 <= folder.metrics.age_s() < 60
    assert live.remark(f"{s3.uri}/runs/small") == ""
    assert "no rows for" in live.remark(f"{s3.uri}/runs/small", quiet_s=0)


def test_a_run_on_s3(s3, capsys):
    folder = RunFolder.prepare(small_spec(f"run_dir={s3.uri}/runs"))
    folder.append([row(0, resumed=0), step_row(12)])
    folder.finish(SUMMARY)
    assert main(["watch", f"{s3.uri}/runs/small", "--json", "s3.attempts=2"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == told_of(folder)
    assert shown.err.startswith("step 12/12")
    assert live.newest(f"{s3.uri}/runs/small")["step"] == 12


def test_once_is_a_table_of_the_newest_values(folder, capsys):
    with pytest.raises(RunError, match="no rows yet"):
        live.newest(folder.place.path)
    folder.append(
        [row(0, resumed=0), step_row(5), step_row(6, loss=2.5), row(6, last_checkpoint_timestamp_seconds=1.8e9)]
    )
    assert main(["watch", str(folder.place), "--once"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["METRIC", "VALUE", "UNIT"]
    found = {line.split()[0]: line.split()[1:] for line in lines}
    assert found["acceptance_rate"] == ["0.5", "ratio"]
    assert (found["loss"], found["step"]) == (["2.5"], ["6"])
    assert found["images"] == ["16", "images"]  # a row holds what its interval adds
    assert found["last_checkpoint_timestamp_seconds"][0].startswith("2027-01-1")
    assert [*found] == [name for name in METRICS if name in found]
    assert main(["watch", str(folder.place), "--once", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == 2.5
    assert main(["watch", str(folder.place) + "x", "--once"]) == 1
    assert "not a run folder" in capsys.readouterr().err


def test_json_of_values_that_are_not_finite_is_json(folder, capsys):
    folder.append([row(0, resumed=0), step_row(1, loss=float("nan"))])
    assert main(["watch", str(folder.place), "--once", "--json"]) == 0
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (told["loss"], told["acceptance_rate"]) == (None, 0.5)
    folder.finish(SUMMARY | {"loss": float("inf")})
    assert json.loads((folder.place / "summary.json").read(), parse_constant=pytest.fail)["loss"] is None


def test_a_time_that_no_clock_shows_is_shown_as_a_number(folder, capsys):
    folder.append([row(1, last_checkpoint_timestamp_seconds=1e300)])
    assert main(["watch", str(folder.place), "--once"]) == 0
    assert "last_checkpoint_timestamp_seconds" in capsys.readouterr().out


def test_a_checkpoint_that_was_passed_over_is_shown_at_once(folder, capsys):
    folder.append([row(0, resumed=0), row(0, knn_accuracy=0.25)])
    watcher = Watcher(folder.place.path, capsys)
    watcher.until("epoch 0: kNN")
    folder.append([{"step": 6, "passed_over": "checkpoint-12"}, step_row(7)])
    lines = watcher.until("step 7/12")
    assert "passed over, as not whole: checkpoint-12" in lines
    folder.finish(SUMMARY)
    watcher.end()


def test_a_folder_of_runs_is_told_from_one_where_a_run_will_be(folder, capsys):
    above = folder.place.path.parent
    watcher = Watcher(above, capsys)
    watcher.until(f"{above}: no run here yet (there is no spec.yaml; runs lie in it: {folder.place.name})")
    RunFolder(files.at(above)).finish(SUMMARY)
    watcher.end()


def test_s3_that_does_not_answer_at_first_is_asked_again(monkeypatch, capsys):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    paused = []

    def pause(seconds):
        paused.append(seconds)
        if len(paused) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(live.time, "sleep", pause)
    with pytest.raises(KeyboardInterrupt):
        live.follow("s3://bucket/run", S3(endpoint="http://127.0.0.1:9", attempts=1, timeout_s=1))
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("still watching, but for now: s3://bucket/run")


def test_ctrl_c_ends_the_watching(tmp_path):
    command = [sys.executable, "-m", "emc2dist", "watch", str(tmp_path / "none")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert "no run here yet" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "emc2dist: no longer watching\n")


@pytest.mark.parametrize("goes_on", [True, False])
def test_the_run_goes_on_only_where_somebody_trains_it(folder, goes_on, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(live, "follow", interrupted)
    with lock.held(folder.place) if goes_on else nullcontext():
        assert main(["watch", str(folder.place)]) == 130
    assert capsys.readouterr().err == f"emc2dist: no longer watching{'; the run goes on' * goes_on}\n"


def test_in_a_terminal_the_bar_begins_where_the_run_stands(capsys):
    display = Display(None, terminal=True)
    display.start_at(5000)
    display.expect(6000)
    display.show({"step": 5001, "epoch": 1.0, "loss": 3.0})
    display.close()
    shown = capsys.readouterr().err
    assert "5001/6000" in shown
    assert "loss 3.000" in shown
