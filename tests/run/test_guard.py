"""The Ray of a run is ended from outside: it is told at once, once, and nothing is tried again on what is gone."""

import os
import signal
import threading

import psutil
import pytest
from command import start, title, wait_for
from train.harness import small_spec

from emc2dist.config import dump
from emc2dist.errors import RayEnded
from emc2dist.run import cluster
from emc2dist.run.guard import Guard

import ray  # isort: skip

KILLED = ("raylet", -signal.SIGKILL)
TOLD = "emc2dist: the Ray that was started here has been ended (raylet: SIGKILL), as by `ray stop` or by the system"


class Watched:
    """A guard over processes that end when a test says so."""

    def __init__(self, **options):
        self.gone, self.ended = [], threading.Event()
        self.guard = Guard(lambda: self.gone, self.ended.set, **options)


def test_a_process_that_does_not_end_by_itself_is_ended_after_the_message(capsys):
    watched = Watched(grace_s=0.0)
    watched.gone.append(KILLED)
    assert watched.ended.wait(60)
    assert capsys.readouterr().err.startswith(TOLD)


def test_it_is_told_once_and_who_ends_by_himself_is_not_ended(capsys):
    watched = Watched()
    watched.guard.check()
    watched.gone += [("dashboard", 1), ("monitor", -9)]  # without which a run goes on
    watched.guard.check()
    watched.gone += [KILLED, ("gcs_server", 0)]
    for _ in range(2):
        with pytest.raises(RayEnded, match=r"\(raylet: SIGKILL, gcs_server: exit status 0\).*the same command resumes"):
            watched.guard.check()
    watched.guard.stop()
    watched.guard._thread.join(60)
    assert capsys.readouterr().err.count("\n") == 1
    assert not watched.ended.is_set()


def test_what_is_ended_with_the_run_is_not_told(capsys):
    watched = Watched()
    watched.guard.stop()
    watched.gone.append(KILLED)
    watched.guard.check()
    assert capsys.readouterr().err == ""


def test_whatever_a_run_fails_with_on_a_ray_that_is_gone_it_is_that(ray_cluster, monkeypatch):
    watched = Watched()
    monkeypatch.setattr(cluster, "_guard", watched.guard)
    watched.gone.append(KILLED)
    with pytest.raises(RayEnded), cluster.connected(small_spec()):
        raise RuntimeError("workers were lost")
    watched.guard.stop()
    monkeypatch.setattr(cluster, "_guard", None)
    with pytest.raises(RuntimeError, match="of another kind"), cluster.connected(small_spec()):
        raise RuntimeError("of another kind")


def test_what_ray_says_of_itself_goes_to_stderr_and_its_log_nowhere(capsys):
    for line in ("a node is full", "Raylet is terminated. Last 20 lines:"):
        ray._private.worker.print_to_stdstream({"lines": [line], "pid": "raylet", "is_err": False}, False)
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n"), "a node is full" in shown.err) == ("", 1, True)


def test_a_run_whose_raylet_is_killed_ends_with_one_message(tmp_path):
    spec = tmp_path / "small.yaml"
    spec.write_text(dump(small_spec(f"run_dir={tmp_path}", "epochs=400")))
    process = start("train", spec)
    rows = tmp_path / "small" / "metrics.jsonl"
    wait_for(lambda: rows.exists() and '"loss"' in rows.read_text(), process)
    (raylet,) = (child.pid for child in psutil.Process(process.pid).children() if "raylet/raylet" in title(child))
    os.kill(raylet, signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=120)
    # Rows that were on their way may still come.
    lines = [line for line in stderr.splitlines() if not line.startswith(("step ", "epoch "))]
    told = [at for at, line in enumerate(lines) if line.startswith(TOLD)]
    assert (process.returncode, stdout) == (1, "")
    assert told == [len(lines) - 1], stderr
