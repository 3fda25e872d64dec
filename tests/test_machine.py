"""What a process may use of its machine, by what the system lets it have."""

import os
import subprocess
import sys

import pytest

from emc2dist import machine

ASK = "from emc2dist.machine import cpus; print(cpus())"


@pytest.fixture
def container(monkeypatch, tmp_path):
    """Files in which a container finds its quota, both kinds; none is there at first."""
    files = {name: tmp_path / name for name in ("max", "quota", "period")}
    monkeypatch.setattr(machine, "_QUOTA", str(files["max"]))
    monkeypatch.setattr(machine, "_QUOTA_V1", (str(files["quota"]), str(files["period"])))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    return files


def test_a_process_bound_to_one_cpu_may_use_one():
    one = min(os.sched_getaffinity(0))
    bound = f"import os; os.sched_setaffinity(0, {{{one}}}); {ASK}"
    assert subprocess.run([sys.executable, "-c", bound], capture_output=True, text=True, check=True).stdout == "1\n"


@pytest.mark.parametrize(
    ("quota", "found"), [("max 100000", 64), ("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1)]
)
def test_a_containers_quota_is_no_more_cpus_than_it_gives(container, quota, found):
    container["max"].write_text(f"{quota}\n")
    assert machine.cpus() == found


@pytest.mark.parametrize(("quota", "found"), [("-1", 64), ("400000", 4), ("9900000", 64)])
def test_so_does_the_older_kind(container, quota, found):
    container["quota"].write_text(f"{quota}\n")
    container["period"].write_text("100000\n")
    assert machine.cpus() == found


def test_without_files_and_with_what_cannot_be_read_there_is_no_quota(container):
    assert machine.cpus() == 64
    container["max"].write_text("what?\n")
    assert machine.cpus() == 64
