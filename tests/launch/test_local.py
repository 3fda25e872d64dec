"""`emc2dist cluster`: three real Ray nodes on this machine that only the token opens, and of which nothing stays."""

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from command import in_process

from emc2dist.errors import LaunchError, SpecError
from emc2dist.launch import local, processes
from emc2dist.launch.local import LocalCluster

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}

PROBE = """
import json, ray
ray.init(logging_level="error", log_to_driver=False)
alive = [node for node in ray.nodes() if node["Alive"]]
nodes = [[node["Resources"].get("CPU", 0), node["Labels"].get("place")] for node in alive]
print(json.dumps({"nodes": sorted(nodes), "answer": ray.get(ray.remote(lambda: 42).remote())}))
"""


@pytest.fixture
def folder():
    folder = tempfile.mkdtemp(prefix="emc2-")  # short: sockets lie in it
    yield Path(folder)
    LocalCluster(Path(folder)).stop()
    shutil.rmtree(folder)


def begin(folder, *arguments, **variables):
    command = [sys.executable, "-m", "emc2dist", "cluster", *arguments]
    environment = {**ENVIRONMENT, "EMC2DIST_CLUSTER": str(folder), **variables}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process):
    output, errors = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def run(folder, *arguments, **variables):
    return ended(begin(folder, *arguments, **variables))


def probe(**environment):
    # By default a driver that is refused tries on for 20 s.
    environment = {**ENVIRONMENT, **environment, "RAY_NUM_REDIS_GET_RETRIES": "1"}
    return subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, timeout=60)


def status_of(url, token=None):
    """The HTTP status that the dashboard answers with."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code


def leaders(folder):
    return {path.stem: int(path.read_text()) for path in folder.glob("*.pid")}


def living(pids):
    """Processes of those sessions; Ray's own rename themselves, but nothing leaves its session."""
    return [process for pid in pids for process in processes.members(pid)]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.1 is the only loopback address")
def test_three_nodes_come_up_ask_for_the_token_and_go(folder, tmp_path):
    offer = ["--cpus", "3", "--labels", "place=here"]
    both = [begin(folder, "start", "2", *offer) for _ in range(2)]  # at once: one of them starts, both lead to it
    started, other = [ended(process) for process in both]
    assert started.returncode == other.returncode == 0, started.stderr + other.stderr
    assert started.stdout == other.stdout
    assert folder.stat().st_mode & 0o777 == 0o700  # although Ray opens its own to everybody
    token = (folder / "token").read_text()
    assert len(token) == 64
    assert token not in started.stdout + started.stderr
    pids = leaders(folder)
    assert sorted(pids) == ["head", "worker-1", "worker-2"]

    export, exported = started.stdout.strip().split(" ", 1)
    assert export == "export"
    exported = dict(word.split("=", 1) for word in shlex.split(exported))
    expected = {"nodes": [[0, None], [3.0, "here"], [3.0, "here"]], "answer": 42}
    seen = probe(**exported)
    assert seen.returncode == 0, seen.stderr
    assert json.loads(seen.stdout.splitlines()[-1]) == expected
    for wrong in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "0" * 64}):
        refused = probe(**exported | wrong)
        assert refused.returncode != 0
        assert "Failed to connect" in refused.stderr

    connection = LocalCluster(folder).running()
    assert connection.environment() == exported
    jobs = f"{connection.dashboard}/api/jobs/"
    assert [status_of(jobs), status_of(jobs, "0" * 64), status_of(jobs, token)] == [401, 403, 200]

    for process in living([pids["worker-2"]]):
        process.suspend()  # else what the leader leaves would soon end by itself
    os.kill(pids["worker-2"], signal.SIGKILL)
    assert processes.wait_for(lambda: not LocalCluster(folder).nodes()["worker-2"], timeout_s=30)
    assert living([pids["worker-2"]])
    seen = run(folder, "status")
    assert seen.returncode == 0, seen.stderr
    assert connection.dashboard in seen.stdout
    assert [line.split(maxsplit=1) for line in seen.stdout.splitlines()[2:]] == [
        ["head", "runs"], ["worker-1", "runs"], ["worker-2", "has ended"],
    ]  # fmt: skip

    again = run(folder, "start", "2", *offer)
    assert again.returncode == 0, again.stderr
    assert again.stdout == started.stdout
    assert "ran already" in again.stderr
    lost, replaced = pids.pop("worker-2"), leaders(folder)
    assert not living([lost])
    assert replaced.pop("worker-2") != lost
    assert replaced == pids

    pids = leaders(folder)
    fails = "import os, sys; '--node-ip-address=127.0.0.5' in sys.argv and (print('not good', flush=True), os._exit(3))"
    (tmp_path / "sitecustomize.py").write_text(fails)
    refused = run(folder, "start", "3", PYTHONPATH=str(tmp_path))
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert "worker-3: `ray start` ended with 3" in refused.stderr
    assert "not good" in refused.stderr  # the end of its log
    assert leaders(folder) == pids  # what ran before runs on

    pids = pids.values()
    assert len(living(pids)) > 3
    assert run(folder, "stop").returncode == 0
    assert not living(pids)
    assert not list(folder.glob("*.pid"))
    logs = "".join(path.read_text(errors="replace") for path in folder.rglob("*.log"))
    assert logs
    assert token not in logs
    nothing = run(folder, "status")
    assert nothing.returncode == 1
    assert "emc2dist cluster start" in nothing.stderr


def test_a_pid_that_has_become_somebody_elses_is_left_alone(folder, tmp_path):
    other = processes.launch(["sleep", "300"], log=tmp_path / "other.log", environment=os.environ)
    try:
        (folder / "head.pid").write_text(str(other.pid))
        (folder / "dashboard").write_text("http://127.0.0.1:1")
        cluster = LocalCluster(folder)
        assert cluster.running() is None
        assert cluster.nodes() == {"head": False}
        cluster.stop()
        assert cluster.nodes() == {}
        assert other.poll() is None
    finally:
        other.kill()
        other.wait(timeout=30)


def test_what_does_not_end_when_asked_is_killed_with_all_its_session(folder):
    stubborn = f"trap '' TERM; sleep 300 & touch {folder}/trapped; while :; do sleep 1; done"
    leader = processes.launch(["bash", "-c", stubborn], log=folder / "stubborn.log", environment=os.environ)
    assert processes.wait_for((folder / "trapped").exists, timeout_s=30)
    processes.end([leader.pid], folder / "another", grace_s=0)
    assert len(processes.members(leader.pid)) >= 2
    processes.end([leader.pid], folder, grace_s=0.2)
    assert not processes.members(leader.pid)
    assert leader.wait(timeout=30) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["start", "0"], 2),
        (["start", "201"], 2),
        (["start", "many"], 2),
        (["start", "--cpus", "-3"], 2),
        (["start", "--cpus", "1000000000000"], 2),
        (["start", "--labels", "nonsense=="], 2),
        (["start", "--labels", "place=not/good"], 2),
        (["restart"], 2),
        (["stop", "worker-1"], 2),
    ],
)
def test_it_says_what_it_did_not_understand(folder, arguments, status, monkeypatch):
    monkeypatch.setenv("EMC2DIST_CLUSTER", str(folder))
    refused = in_process("cluster", *arguments)
    assert refused.returncode == status
    assert arguments[-1] in refused.stderr
    assert refused.stderr.count("\n") == 1 or "usage: " in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not list(folder.iterdir())


def test_one_node_where_there_is_one_loopback_address(folder, monkeypatch):
    monkeypatch.setattr(local, "_SEVERAL", False)
    with pytest.raises(SpecError, match="workers: 2; from 1 to 1 nodes are possible here: more nodes need Linux"):
        LocalCluster(folder).start(2)


def test_a_folder_of_somebody_else_is_refused(folder):
    if os.getuid() == 0:
        os.chown(folder, 1, -1)
    else:
        folder = Path("/usr")
    cluster = LocalCluster(folder)
    for action in (cluster.start, cluster.running, cluster.stop):
        with pytest.raises(LaunchError, match="somebody else's; set EMC2DIST_CLUSTER"):
            action()
    if os.getuid() == 0:
        os.chown(folder, 0, -1)


def test_a_folder_that_sockets_or_anything_cannot_lie_in_is_refused():
    with pytest.raises(LaunchError, match="34 characters"):
        LocalCluster(Path("/tmp") / ("x" * 40)).start()
    with pytest.raises(LaunchError, match="/dev/null: File exists; set EMC2DIST_CLUSTER"):
        LocalCluster(Path("/dev/null")).start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_that_is_stopped_leaves_nothing(number, folder):
    starting = begin(folder, "start")
    assert processes.wait_for((folder / "head.pid").exists, timeout_s=60)
    starting.send_signal(number)
    done = ended(starting)
    assert done.returncode == 128 + number, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert (number == signal.SIGINT) != (f"{number.name} came" in done.stderr)
    assert not list(folder.glob("*.pid"))
    assert not [process for process in psutil.process_iter() if works_in(process, folder)]


def works_in(process, folder):
    with suppress(psutil.Error):
        return Path(process.cwd()).is_relative_to(folder)


def test_a_head_that_is_half_started_is_named(folder, monkeypatch):
    head = processes.launch(["sleep", "300"], log=folder / "head.log", environment=os.environ)
    (folder / "head.pid").write_text(str(head.pid))
    monkeypatch.setenv("EMC2DIST_CLUSTER", str(folder))
    seen = in_process("cluster", "status")
    assert seen.returncode == 1
    assert "only parts run (head)" in seen.stderr
    assert in_process("cluster", "stop").returncode == 0
    assert head.wait(timeout=30) == -signal.SIGTERM


def test_programs_of_others_in_the_folder_are_left_alone(folder):
    other = processes.launch(["sleep", "300"], log=folder / "tensorboard.log", environment=os.environ)
    try:
        for name in ("tensorboard", "worker-x", "head-2"):
            (folder / f"{name}.pid").write_text(str(other.pid))
        cluster = LocalCluster(folder)
        assert cluster.nodes() == {}
        cluster.stop()
        assert other.poll() is None
        assert len(list(folder.glob("*.pid"))) == 3
        with pytest.raises(LaunchError, match=r"holds other files \('head-2.pid', "):
            cluster.start()
        assert other.poll() is None
    finally:
        other.kill()
        other.wait(timeout=30)


def test_a_folder_open_to_others_is_refused_and_left_as_it_is(folder):
    for mode in (0o1777, 0o755, 0o710):
        folder.chmod(mode)
        with pytest.raises(LaunchError, match=f"is open to others \\(mode {mode:o}\\)"):
            LocalCluster(folder).start()
        assert folder.stat().st_mode & 0o7777 == mode
        assert not list(folder.iterdir())


def test_the_folder_is_read_as_a_shell_would(monkeypatch):
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setenv("EMC2DIST_CLUSTER", "~/x")
    assert LocalCluster().folder == Path("/h/x")


def test_a_folder_without_locks_is_told_to_be_that(folder, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", none)
    told = rf"^{folder}: its file system has no locks \(No locks available\).* set EMC2DIST_CLUSTER to a folder of a"
    with pytest.raises(LaunchError, match=told):
        LocalCluster(folder).start()
