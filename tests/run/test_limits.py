"""Limits on processes and threads, which Ray meets without a word."""

import os
import resource

import pytest
from train.harness import small_spec

from emc2dist.errors import LaunchError, RayEnded
from emc2dist.run import cluster, limits
from emc2dist.run.guard import Guard


@pytest.fixture
def limited(monkeypatch, tmp_path):
    """An ordinary user's `ulimit -u`, which is given, and no container's; and the most that `ulimit -n` may be."""

    def to(number, *, uid=1000, pids=None, files=65_536):
        limits_of = {resource.RLIMIT_NPROC: (number, number), resource.RLIMIT_NOFILE: (min(files, 1024), files)}
        monkeypatch.setattr(os, "getuid", lambda: uid)
        monkeypatch.setattr(resource, "getrlimit", limits_of.get)
        if pids is not None:
            (tmp_path / "pids.max").write_text(pids)
        monkeypatch.setattr(limits, "_PIDS", [str(tmp_path / "pids.max")])

    return to


def test_fewer_threads_than_ray_takes_are_refused_before_it_starts(limited, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was asked"))
    limited(150)
    told = r"^at most 150 processes and threads are allowed here \(ulimit -u\): .* workers: 2 takes 340 at least"
    with pytest.raises(LaunchError, match=told):
        cluster._connect(small_spec("workers=2", "batch_size=32"), 1, False)


def test_whom_nothing_limits_is_not_told_of_it(limited):
    for settings in ({"number": resource.RLIM_INFINITY}, {"number": 150, "uid": 0}, {"number": 60_000}):
        limited(**settings, pids="max\n")
        limits.refuse_too_few(1)
        assert limits.scarce(1) == ""


def test_a_containers_limit_counts_for_root_too(limited):
    limited(60_000, uid=0, pids="200\n")
    with pytest.raises(LaunchError, match=r"at most 200 .* \(the container's limit, .*pids\.max\)"):
        limits.refuse_too_few(1)


def test_a_ray_that_does_not_start_is_blamed_on_a_limit_that_is_near(limited, monkeypatch):
    def fails(*_, **__):
        raise Exception("The current node timed out during startup")

    monkeypatch.setattr("ray.init", fails)
    monkeypatch.setattr(cluster, "_make_token", lambda: None)
    limited(400)
    with pytest.raises(LaunchError, match=r"timed out during startup\); at most 400 .*\(ulimit -u\)") as refused:
        cluster._start(1, dashboard=False)
    assert "TMPDIR" not in str(refused.value)
    limited(60_000)
    with pytest.raises(LaunchError, match="TMPDIR"):
        cluster._start(1, dashboard=False)


def test_workers_that_do_not_start_are_blamed_on_it_in_a_ray_of_our_own_alone(limited, monkeypatch):
    limited(400)
    assert cluster.scarce_threads(small_spec()) == ""
    monkeypatch.setattr(cluster, "_guard", object())
    assert "at most 400" in cluster.scarce_threads(small_spec())


def test_a_thread_that_cannot_start_is_a_limit(limited, monkeypatch, ray_cluster):
    refused = pytest.raises(LaunchError, match=r"^can't start new thread.*the same command resumes")
    with refused, cluster.connected(small_spec()):
        raise RuntimeError("can't start new thread")


def test_few_open_files_are_told_where_ray_does_not_start_and_where_its_raylet_has_failed(limited, monkeypatch, capsys):
    def fails(*_, **__):
        raise Exception("The current node timed out during startup")

    monkeypatch.setattr("ray.init", fails)
    monkeypatch.setattr(cluster, "_make_token", lambda: None)
    limited(60_000, files=256)
    told = r"at most 256 open files are allowed here \(ulimit -n\)"
    with pytest.raises(LaunchError, match=rf"timed out during startup\); {told}"):
        cluster._start(1, dashboard=False)
    for code, words in {1: told, -9: r"by the system; the same", 0: r"by the system; the same"}.items():
        guard = Guard(lambda code=code: [("raylet", code)], lambda: None)
        with pytest.raises(RayEnded, match=words):
            guard.check()
        guard.stop()
    limited(60_000, files=4096)
    assert limits.scarce_files() == ""
