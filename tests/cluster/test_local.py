"""cluster/local.sh: three real Ray nodes on this machine that only the token opens, and of which nothing stays."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cluster" / "local.sh"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}

PROBE = """
import json, ray
ray.init(logging_level="error", log_to_driver=False)
nodes = [(node["Alive"], node["Resources"].get("CPU", 0) > 0) for node in ray.nodes()]
print(json.dumps({"nodes": sorted(nodes), "answer": ray.get(ray.remote(lambda: 42).remote())}))
"""


@pytest.fixture
def folder():
    folder = tempfile.mkdtemp(prefix="emc2-")  # short: sockets lie in it, and their paths must stay under 108 bytes
    yield Path(folder)
    script(folder, "stop")
    shutil.rmtree(folder)


def script(folder, *arguments):
    environment = {**ENVIRONMENT, "EMC2DIST_CLUSTER": str(folder), "RAY": str(Path(sys.executable).parent / "ray")}
    return subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=150)


def probe(**environment):
    # By default a driver that is refused tries on for 20 s.
    environment = {**ENVIRONMENT, **environment, "RAY_NUM_REDIS_GET_RETRIES": "1"}
    return subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, timeout=60)


def living(sessions):
    """Processes of those sessions; Ray's own rename themselves, but nothing leaves its session."""
    return [process for process in psutil.process_iter() if is_of(process, sessions)]


def is_of(process, sessions):
    try:
        return os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere 127.0.0.1 is the only loopback address")
def test_three_nodes_come_up_ask_for_the_token_and_go(folder):
    started = script(folder, "start", "2")
    assert started.returncode == 0, started.stderr
    token = (folder / "token").read_text()
    assert len(token) == 64
    assert (folder / "token").stat().st_mode & 0o777 == 0o600
    assert token not in started.stdout + started.stderr
    sessions = {int(path.read_text()) for path in folder.glob("*.pid")}
    assert len(sessions) == 3

    export, exported = started.stdout.splitlines()[0].split(" ", 1)
    assert export == "export"
    exported = dict(word.split("=", 1) for word in shlex.split(exported))
    seen = probe(**exported)
    assert '{"nodes": [[true, false], [true, true], [true, true]], "answer": 42}' in seen.stdout, seen.stderr

    for wrong in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "0" * 64}):
        refused = probe(**exported | wrong)
        assert refused.returncode != 0
        assert "Failed to connect" in refused.stderr

    again = script(folder, "start", "2")
    assert again.returncode == 1
    assert "stop" in again.stderr

    assert living(sessions)
    assert script(folder, "stop").returncode == 0
    assert not living(sessions)
    assert not list(folder.glob("*.pid"))
    logs = "".join(path.read_text(errors="replace") for path in folder.rglob("*.log"))
    assert logs
    assert token not in logs
    assert script(folder, "stop").returncode == 0  # and nothing to do


@pytest.mark.parametrize("arguments", [["start", "0"], ["start", "many"], ["restart"]])
def test_it_says_what_it_did_not_understand(folder, arguments):
    refused = script(folder, *arguments)
    assert refused.returncode == 1
    assert arguments[-1] in refused.stderr
    assert not list(folder.iterdir())
