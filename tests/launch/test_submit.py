"""Jobs on a real Ray of a head and two nodes, by our commands and by Ray's: submitted, followed, stopped, gone on."""

import contextlib
import io
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from command import in_process
from PIL import Image
from recording import PROXIES, listening

from emc2dist.cli import main
from emc2dist.config import parse_sweep

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("RAY_") and name.lower() != "no_proxy"},
    "PATH": f"{BIN}:{os.environ['PATH']}",
}
CIFAR10 = "jobs/cifar10.yaml"

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="elsewhere 127.0.0.1 is the only loopback address"
)


class Cluster:
    """The commands, and an environment that leads to the cluster of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = ENVIRONMENT | {"EMC2DIST_CLUSTER": str(folder / "ray")}
        self.proxies = {}
        """Of our own command alone: Ray's asks them for its dashboard."""

    def emc2dist(self, *words, timeout=300):
        command = [sys.executable, "-m", "emc2dist", *map(str, words)]
        return self.run(command, timeout, self.proxies)

    def here(self, *words):
        """The same in this process, without a second of imports."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            for name in os.environ.keys() - self.environment.keys():
                patch.delenv(name)
            for name, value in (self.environment | self.proxies).items():
                patch.setenv(name, value)
            return in_process(*words)

    def run(self, command, timeout=300, more=()):
        environment = self.environment | dict(more)
        return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout)

    def shrunk(self, *overrides):
        """Two workers, two shards, tiny images: four steps an epoch."""
        return [
            f"data.path={self.folder / 'images.parquet'}", f"data.cache_dir={self.folder / 'cache'}",
            f"run_dir={self.folder / 'runs'}", "epochs=1", "batch_size=8", "views.size=16", "encoder.backbone=conv4",
            "encoder.hidden=32", "encoder.features=16", "log_every=1", "threads=1", *overrides,
        ]  # fmt: skip

    def rows(self, run):
        path = self.folder / "runs" / run / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def cluster():
    folder = Path(tempfile.mkdtemp(prefix="emc2-"))  # short: sockets lie in it, and their paths must stay short
    rng = np.random.default_rng(0)
    images = [{"bytes": png(rng), "path": f"{number}.png"} for number in range(32)]
    pq.write_table(
        pa.table({"image": images, "label": [number % 4 for number in range(32)]}), folder / "images.parquet"
    )
    cluster = Cluster(folder)
    with listening(503) as (proxy, seen):
        cluster.proxies = dict.fromkeys(PROXIES, proxy)
        yield from start(cluster)
    assert [one for one in seen if "usage-stats.ray.io" not in one[1]] == []  # which Ray tells that it may not tell it
    shutil.rmtree(folder)


def start(cluster):
    """It, run as long as the tests need it."""
    started = cluster.emc2dist("cluster", "start", "2", "--labels", "ray.io/market-type=spot")
    assert started.returncode == 0, started.stderr
    exports = dict(word.split("=", 1) for word in shlex.split(started.stdout) if "=" in word)
    cluster.token = Path(exports["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
    cluster.environment |= {name: exports[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
    status = cluster.emc2dist("cluster", "status")
    cluster.dashboard = next(word for word in status.stdout.split() if word.startswith("http://"))
    yield cluster
    assert cluster.emc2dist("cluster", "stop").returncode == 0


def png(rng):
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def wait_for(condition, seconds=400):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_job_is_stopped_goes_on_from_its_checkpoint_and_is_not_started_twice(cluster):
    labels = "{ray.io/market-type: spot}"
    resources = [f"resources.worker_labels={labels}", f"resources.shard_labels={labels}", "resources.shard_mib=1"]
    long = ["epochs=50", "checkpoint.every=50", "eval.every=0"]
    words = [CIFAR10, *cluster.shrunk(*long, "launch.environment={COLOUR: blue}"), *resources]
    first = json.loads(cluster.emc2dist("submit", *words, "--json").stdout)
    other = cluster.here("submit", *words, "log_every=2")
    assert other.returncode == 1
    assert f"job {first['job']} runs under this name" in other.stderr

    wait_for(lambda: any("loss" in row for row in cluster.rows("cifar10")))
    stopped = cluster.here("stop", "cifar10", "--json")
    assert stopped.returncode == 0, stopped.stderr
    assert json.loads(stopped.stdout)["status"] == "stopped"
    (kept,) = (cluster.folder / "runs" / "cifar10").glob("checkpoint-*")
    step = int(kept.name.removeprefix("checkpoint-"))
    assert 0 < step < 200
    assert "a checkpoint is written first" in cluster.here("logs", "cifar10").stdout
    assert cluster.here("logs", "-f", first["job"]).returncode == 143

    done = cluster.emc2dist("submit", *words, "--follow")
    assert done.returncode == 0, done.stdout + done.stderr
    job = f"{first['job']}-2"
    assert f"{job}: " in done.stderr
    assert f"resumed from the checkpoint at step {step}" in done.stdout
    assert "step 200/200" in done.stdout
    summary = json.loads((cluster.folder / "runs" / "cifar10" / "summary.json").read_text())
    assert summary["steps"] == 200
    assert "no report" not in done.stdout  # whose pictures want a working folder that is there
    assert (cluster.folder / "runs" / "cifar10" / "report" / "report.html").exists()
    assert [row["step"] for row in cluster.rows("cifar10") if "loss" in row] == list(range(1, 201))

    again = cluster.here("submit", *words, "--json")
    assert again.returncode == 0, again.stderr
    state = json.loads(again.stdout)
    assert (state["job"], state["status"], state["exit_code"]) == (job, "succeeded", 0)
    assert cluster.here("list").stdout.count(first["job"]) == 2
    assert json.loads(cluster.here("status", "cifar10", "--json").stdout) == state
    assert "step 200/200" in cluster.here("logs", job).stdout
    assert cluster.token not in done.stdout + done.stderr + again.stdout


class Breaking:
    """A connection to the cluster that breaks once, right after `word` has come through; `with` gives its URL."""

    def __init__(self, dashboard, word):
        self.port, self.word = int(dashboard.rsplit(":", 1)[1]), word
        self.broken = False
        self.listener = socket.create_server(("127.0.0.1", 0))

    def __enter__(self):
        threading.Thread(target=self.serve, daemon=True).start()
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def __exit__(self, *exception):
        self.listener.close()

    def serve(self):
        with contextlib.suppress(OSError):  # which ends it
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.port))
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self.pump, args=(source, sink), daemon=True).start()

    def pump(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
                if self.word in data and not self.broken:
                    self.broken = True
                    break
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_a_log_stream_that_breaks_is_taken_up_where_it_broke(cluster):
    job = json.loads(cluster.here("status", "cifar10", "--json").stdout)["job"]
    breaking = Breaking(cluster.dashboard, b"step 200/200")
    with breaking as url:
        followed = cluster.here("logs", "-f", job, "--target", url)
    assert breaking.broken
    assert followed.returncode == 0
    assert followed.stdout == cluster.here("logs", job).stdout


def test_a_job_that_fails_gives_its_own_exit_status_and_says_why(cluster):
    done = cluster.emc2dist(
        "submit",
        CIFAR10,
        *cluster.shrunk("data.path=/no/such/folder", "name=gone"),
        "--follow",
    )
    assert done.returncode == 2
    assert "/no/such/folder: no such file or folder" in done.stdout
    assert "failed" in done.stderr
    assert cluster.here("logs", "gone", "-f").returncode == 2


def test_rays_own_command_runs_a_job_as_it_stands(cluster):
    submit = [BIN / "ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", ".", "--"]
    job = ["python", "jobs/cifar10.py", *cluster.shrunk("name=by-ray", "watch.report=false")]
    done = cluster.run([*submit, *job])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 4/4" in done.stdout
    assert (cluster.folder / "runs" / "by-ray" / "summary.json").exists()
    failed = cluster.run([*submit, *job, "temperature=0"])
    assert failed.returncode == 1  # Ray's: it hides the driver's 2
    assert "temperature" in failed.stdout


@pytest.mark.slow
def test_a_sweep_is_a_job_too_and_rays_own_command_goes_on_with_it(cluster):
    """Two trials at once on two nodes of two cores: each has its driver, its worker and its shard."""
    small = ["set.epochs=8", "set.data.limit=128", "set.batch_size=16", "budget.trials=2", "scheduler.name=fifo"]
    words = ["name=swept", f"set.run_dir={cluster.folder / 'runs'}", *small]
    first = cluster.emc2dist("submit", "jobs/sweep.yaml", *words, "--json")
    assert first.returncode == 0, first.stderr
    wait_for(lambda: any("loss" in row for row in cluster.rows("swept/swept-000-seed0")), seconds=300)
    stopped = cluster.emc2dist("stop", "swept", "--json")
    assert json.loads(stopped.stdout)["status"] == "stopped", stopped.stderr
    assert "every trial writes a checkpoint first" in cluster.emc2dist("logs", "swept").stdout

    submit = [BIN / "ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", ".", "--"]
    done = cluster.run([*submit, "python", "jobs/sweep.py", *words], timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = cluster.folder / "runs" / "swept"
    table = (folder / "results.csv").read_text()
    assert table.count("finished") == 2, table
    assert any(row.get("resumed") for row in cluster.rows("swept/swept-000-seed0"))
    assert (folder / "best.yaml").exists()

    again = cluster.emc2dist("submit", "jobs/sweep.yaml", *words, "--follow")
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"{json.loads(first.stdout)['job']}-2" in again.stderr
    assert (folder / "results.csv").read_text() == table


def test_a_wrong_token_and_a_dead_address_are_told_apart(cluster):
    target = f"launch.target={cluster.dashboard}"
    wrong = Cluster(cluster.folder)
    wrong.environment = cluster.environment | {"RAY_AUTH_TOKEN": "0" * 64}
    refused = wrong.emc2dist("submit", CIFAR10, *cluster.shrunk(), target)
    assert refused.returncode == 1
    assert "refuses the token" in refused.stderr
    dead = cluster.here("submit", CIFAR10, *cluster.shrunk(), "launch.target=http://127.0.0.1:9")
    assert dead.returncode == 1
    assert "no Ray cluster answers there" in dead.stderr
    unknown = cluster.here("status", "nobody")
    assert unknown.returncode == 1
    assert "knows no such job or run" in unknown.stderr
    assert "Traceback" not in refused.stderr + dead.stderr + unknown.stderr


def test_a_dry_run_prints_what_would_be_sent_and_asks_nobody(tmp_path):
    nowhere = Cluster(tmp_path)
    words = [CIFAR10, *nowhere.shrunk("resources.driver_cpus=1", "launch.stop_grace_s=7")]
    done = nowhere.here("submit", *words, "--dry-run", "launch.target=http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    sent = yaml.safe_load(done.stdout)
    assert sent["entrypoint"] == "emc2dist train spec.yaml"
    assert sent["entrypoint_num_cpus"] == 1
    assert sent["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "7"}
    assert yaml.safe_load(sent["working_dir"]["spec.yaml"])["batch_size"] == 8
    again = nowhere.here("submit", *words, "--dry-run", "launch.target=http://127.0.0.1:9")
    assert again.stdout == done.stdout  # the same id too
    sweep = yaml.safe_load(nowhere.here("submit", "jobs/sweep.yaml", "--dry-run").stdout)
    assert sweep["entrypoint"] == "emc2dist sweep spec.yaml"
    assert parse_sweep(sweep["working_dir"]["spec.yaml"]).base.run_dir == str(ROOT / "runs")


@pytest.mark.parametrize(
    ("overrides", "status", "message"),
    [
        (["launch.target=http://10.9.8.7:8265"], 1, "there is no token for it"),
        (["launch.target=http://10.9.8.7:8265", "run_dir=runs"], 2, "run_dir: runs is a path on this machine"),
        (["launch.target=http://10.9.8.7:8265", "data.path=set"], 2, "data.path: set is a path on this machine"),
        (
            ["launch.target=http://10.9.8.7:8265", "start_from=runs/a"],
            2,
            "start_from: runs/a is a path on this machine",
        ),
        (
            ["launch.target=http://10.9.8.7:8265", "encoder.weights=w"],
            2,
            "encoder.weights: w is a path on this machine",
        ),
        (["launch.target=cluster"], 2, "launch.target: got 'cluster'; allowed are local, kuberay, or the URL"),
        (["launch.target=kuberay"], 2, "launch.cluster: missing; target: kuberay needs"),
        (["launch.target=http://me:pass@host:8265"], 2, "launch.target: the http URL holds credentials"),
        (["launch.environment={AWS_SECRET_ACCESS_KEY: x}"], 2, "AWS_SECRET_ACCESS_KEY: looks like a secret"),
        (["launch.environment={NAME: AKIAABCDEFGHIJKLMNOP}"], 2, "launch.environment.NAME: looks like a secret"),
        (["launch.environment={RAY_JOB_STOP_WAIT_TIME_S: '600'}"], 2, "is what launch.stop_grace_s says; set that"),
        (["launch.environment={'A B': x}"], 2, "launch.environment.A B: not a name of an environment variable"),
    ],
)
def test_refusals(overrides, status, message, tmp_path, monkeypatch, capsys):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where no token is
    assert main(["submit", str(ROOT / CIFAR10), *Cluster(tmp_path).shrunk(), *overrides]) == status
    said = capsys.readouterr().err
    assert message in said
    assert [line.startswith("emc2dist: ") for line in said.splitlines()].count(True) == 1
    assert "AKIA" not in said


def test_a_driver_of_our_own_is_not_let_near_an_open_cluster(tmp_path, monkeypatch):
    # Whatever other tests run on is not seen, and stays.
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    nowhere = Cluster(tmp_path)
    nowhere.environment = nowhere.environment | {"HOME": str(tmp_path), "RAY_ADDRESS": "10.9.8.7:6379"}
    done = nowhere.here("train", CIFAR10, *nowhere.shrunk("data.path=digits"))
    assert done.returncode == 1
    assert "10.9.8.7:6379: is not on this machine and there is no token" in done.stderr
