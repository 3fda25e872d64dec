"""A spot instance's notice, from a metadata service as EC2 has it, reaches a real Ray."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from emc2dist.cli import main
from emc2dist.launch import spot
from emc2dist.launch.local import LocalCluster


class Metadata(http.server.BaseHTTPRequestHandler):
    """Version 2: a session's key first, and 404 until there is a notice."""

    noticed = threading.Event()
    asked = threading.Event()
    taken_at = "2026-01-01T00:00:00Z"

    def do_PUT(self):
        assert int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) > 0
        self.answer(200, b"key" if self.path == "/latest/api/token" else b"")

    def do_GET(self):
        type(self).asked.set()
        if self.headers["X-aws-ec2-metadata-token"] != "key":
            self.answer(401, b"")
        elif self.path == "/latest/meta-data/spot/instance-action" and self.noticed.is_set():
            self.answer(200, json.dumps({"action": "terminate", "time": self.taken_at}).encode())
        else:
            self.answer(404, b"")

    def answer(self, status, body):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


@pytest.fixture
def metadata():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Metadata.noticed.clear()
    Metadata.asked.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_notice_is_read_when_it_is_there(metadata):
    assert spot.notice(metadata) is None
    Metadata.noticed.set()
    assert spot.notice(metadata) == 1767225600


STAYING = """
import ray
from emc2dist.run import cluster
ray.init(logging_level="error", log_to_driver=False)
print(len([node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in cluster.draining()]))
"""


def test_the_node_is_drained_when_the_notice_comes(metadata, monkeypatch):
    in_a_while = datetime.now(UTC) + timedelta(minutes=10)
    monkeypatch.setattr(Metadata, "taken_at", in_a_while.strftime("%Y-%m-%dT%H:%M:%SZ"))
    folder = Path(tempfile.mkdtemp(prefix="emc2-"))  # short: sockets lie in it
    cluster = LocalCluster(folder / "ray")
    try:
        environment = os.environ | cluster.start(1, cpus=1).environment()
        command = [sys.executable, "-m", "emc2dist", "cluster", "spot", "--metadata", metadata]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as heeding:
            assert Metadata.asked.wait(60)
            Metadata.noticed.set()
            _, said = heeding.communicate(timeout=120)
        assert heeding.returncode == 0, said
        assert "Ray drains it" in said
        probe = [sys.executable, "-c", STAYING]
        seen = subprocess.run(probe, env=environment, capture_output=True, text=True, timeout=120)
        assert seen.stdout.strip() == "1", seen.stderr  # of two; an idle node that is drained is gone at once
    finally:
        cluster.stop()
        shutil.rmtree(folder)


def test_it_says_where_there_is_no_such_service(capsys):
    assert main(["cluster", "spot", "--metadata", "http://127.0.0.1:9"]) == 1
    assert "no EC2 metadata service answers" in capsys.readouterr().err
