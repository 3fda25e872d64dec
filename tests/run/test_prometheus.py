"""What Prometheus sees of a run: the table, the run's own endpoint, Ray's endpoint, the rules and the dashboard."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from prometheus_server import CLUSTER, Prometheus
from train.harness import SMALL, small_spec

from emc2dist.errors import SpecError
from emc2dist.metrics import EXPORTED, METRICS, exported_name
from emc2dist.run.folder import RunFolder
from emc2dist.run.listeners import terminal as display_module
from emc2dist.run.listeners.prometheus import Endpoint, Exporter
from emc2dist.run.listeners.terminal import Display
from emc2dist.store import Column, Layout, LocalStore
from emc2dist.watch.grafana import dashboard, query

ROOT = Path(__file__).parents[2]
NEEDS_PROMETHEUS = pytest.mark.skipif(
    not Prometheus.available(), reason="no Prometheus here: apt-get install prometheus"
)


def scrape(endpoint):
    """{(name, run, values of other labels): value} as it is served."""
    with urllib.request.urlopen(f"http://{endpoint.address}/metrics", timeout=30) as reply:
        text = reply.read().decode()
    families = list(text_string_to_metric_families(text))
    samples = [sample for family in families for sample in family.samples]
    return {(sample.name, sample.labels.pop("run"), *sample.labels.values()): sample.value for sample in samples}


@pytest.fixture
def exporter():
    return Exporter(small_spec("negatives.kernel=isir"), steps_per_epoch=6)


@pytest.fixture
def endpoint(exporter):
    endpoint = Endpoint(exporter, 0)
    yield endpoint
    endpoint.close(patience_s=0)


def test_names_carry_their_unit():
    for name, metric in EXPORTED.items():
        exported = exported_name(name)
        assert exported.endswith("_total") == (metric.kind == "counter")
        if metric.unit in ("seconds", "bytes", "steps"):
            assert metric.unit in exported
    assert exported_name("acceptance_rate") == "emc2_acceptance_ratio"
    assert exported_name("images") == "emc2_images_total"


def test_metrics_of_one_panel_share_topic_unit_and_kind():
    for name, metric in EXPORTED.items():
        same = [other for other in EXPORTED.values() if (other.topic, other.panel) == (metric.topic, metric.panel)]
        assert {(other.unit, other.kind) for other in same} == {(metric.unit, metric.kind)}, name


def test_rows_become_values_and_a_restart_adds_no_series(exporter, endpoint):
    exporter.record({"step": 0, "resumed": 0, "epoch": 0.0})
    exporter.record({"step": 6, "acceptance_rate": 0.5, "images": 48, "loss": 3.0})
    before = scrape(endpoint)
    assert before["emc2_acceptance_ratio", "small", "isir"] == 0.5
    assert before["emc2_images_total", "small"] == 48
    assert before["emc2_steps_per_epoch", "small"] == 6
    assert (before["emc2_restarts_total", "small"], before["emc2_restores_total", "small"]) == (0, 0)
    exporter.record({"step": 3, "resumed": 1})
    exporter.record({"step": 6, "acceptance_rate": 0.25, "images": 24, "loss": 2.0})
    after = scrape(endpoint)
    assert after.keys() == before.keys()
    assert after["emc2_acceptance_ratio", "small", "isir"] == 0.25
    assert after["emc2_images_total", "small"] == 72  # work that is done again is work
    assert (after["emc2_restarts_total", "small"], after["emc2_restores_total", "small"]) == (1, 1)


def test_a_silent_shard_is_down_and_not_restored(exporter, endpoint):
    store = LocalStore(Layout(5, 2), {"chain": {"visited": Column("bool", (2,))}})
    first, second = store.survey(1.0)
    exporter.survey([first, second], seconds=0.5)
    seen = scrape(endpoint)
    assert (seen["emc2_shard_up", "small", "0"], seen["emc2_shard_restored", "small", "0"]) == (1, 0)
    store.reset("g")
    store.exchange("g", None, {"chain": np.array([0, 1])}, as_of=0).result()
    exporter.survey([store.survey(1.0)[0], None], seconds=0.5)
    seen = scrape(endpoint)
    assert (seen["emc2_shard_up", "small", "0"], seen["emc2_shard_restored", "small", "0"]) == (1, 1)
    assert (seen["emc2_shard_up", "small", "1"], seen["emc2_shard_restored", "small", "1"]) == (0, 0)
    assert seen["emc2_shard_requests_total", "small", "0"] == 1
    assert seen["emc2_shard_request_seconds_total", "small", "0"] > 0
    assert (seen["emc2_shard_rows", "small", "0"], seen["emc2_shard_bytes", "small", "0"]) == (3, 6)


def test_only_rows_of_steps_are_shown_as_steps(capsys):
    display = Display(12, terminal=False)
    display.show({"step": 6, "epoch": 1.0, "last_checkpoint_timestamp_seconds": 1.8e9})
    display.show({"step": 12, "epoch": 2.0, "loss": 3.0})
    assert capsys.readouterr().err == "step 12/12 epoch 2.00 loss 3.000\n"


def test_a_line_tells_the_newest_accuracy_and_the_time_left(capsys, monkeypatch):
    now = 100.0
    monkeypatch.setattr(display_module.time, "monotonic", lambda: now)
    display = Display(40, terminal=False)
    display.show({"step": 10, "epoch": 1.0, "resumed": 1, "loading": "views: made on cpu"})
    now += 30  # in which the run resumes
    display.show({"step": 10, "epoch": 1.0, "knn_accuracy": 0.25})
    now += 4
    display.show({"step": 12, "epoch": 1.2, "loss": 3.0})
    assert capsys.readouterr().err.splitlines() == [
        "resumed from the checkpoint at step 10",
        "views: made on cpu",
        "epoch 1: kNN accuracy 0.250",
        "step 12/40 epoch 1.20 loss 3.000, kNN 0.250, 00:56 to go",
    ]


def test_a_port_that_is_taken_is_named(exporter, endpoint):
    port = endpoint.address.rpartition(":")[2]
    with pytest.raises(SpecError, match=f"watch.port: {port} cannot be used"):
        Endpoint(exporter, int(port))


def test_the_last_values_wait_for_a_reader_who_has_been_there(exporter):
    endpoint = Endpoint(exporter, 0)
    scrape(endpoint)
    exporter.record({"step": 12})
    closing = threading.Thread(target=endpoint.close)
    closing.start()
    assert scrape(endpoint)["emc2_step", "small"] == 12
    closing.join(timeout=60)
    assert not closing.is_alive()
    with pytest.raises(OSError, match="refused"):
        scrape(endpoint)


def test_the_dashboard_is_the_one_that_the_table_gives():
    command = "python -m emc2dist.watch.grafana > cluster/grafana.json"
    assert json.loads((CLUSTER / "grafana.json").read_text()) == dashboard(), f"make it again: {command}"
    shown = {target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])}
    assert shown == {query(name) for name in EXPORTED}
    places = [panel["gridPos"] for panel in dashboard()["panels"]]
    assert len({(place["x"], place["y"]) for place in places}) == len(places)


def test_the_document_holds_the_table_and_every_alert():
    text = (ROOT / "docs" / "metrics.md").read_text()
    for name, metric in EXPORTED.items():
        labels = ", ".join(metric.labels)
        assert f"| `{exported_name(name)}` | {metric.kind} | {labels} | {metric.help} |" in text
    for rule in _rules():
        if "alert" in rule:
            assert re.search(rf"\| `{rule['alert']}` \| .* \| {re.escape(rule['annotations']['action'])} \|", text)


def _rules():
    (group,) = yaml.safe_load((CLUSTER / "rules.yml").read_text())["groups"]
    return group["rules"]


def test_every_alert_says_what_to_do_and_is_seen_to_fire():
    tests = (ROOT / "tests" / "cluster" / "rules_test.yml").read_text()
    for rule in _rules():
        if "alert" in rule:
            assert rule["annotations"].keys() == {"summary", "action"}
            assert f'ALERTS{{alertname="{rule["alert"]}", alertstate="firing"' in tests


@pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool here: apt-get install prometheus")
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", CLUSTER / "prometheus.yml"],
        ["test", "rules", ROOT / "tests" / "cluster" / "rules_test.yml"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_promtool_is_content(arguments):
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


class Watched:
    """A Prometheus on Ray's endpoint, and on that of the run `watched` in `folder`; and the run on that Ray.

    The name is its own: Ray goes on for a while with what other tests have exported.
    """

    def __init__(self, ray, folder: Path) -> None:
        self.folder = folder
        self._environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        (node,) = [node for node in ray.nodes() if node["Alive"]]
        target = f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
        (folder / "ray.json").write_text(json.dumps([{"targets": [target]}]))  # as Ray writes it beside its dashboard
        (folder / "spec.yaml").write_text(SMALL + f"run_dir: {folder / 'runs'}\nthreads: 1\n")
        self.run_dir = folder / "runs" / "watched"
        self.run_dir.mkdir(parents=True)  # Prometheus watches it from the beginning
        watched = {"ray": folder / "ray.json", "emc2dist": self.run_dir / "prometheus.json"}
        self.prometheus = Prometheus(folder, watched)

    def train(self, *overrides: str) -> None:
        command = [
            sys.executable,
            "-m",
            "emc2dist",
            "train",
            self.folder / "spec.yaml",
            "name=watched",
            "watch.port=0",
            "--json",
            *overrides,
        ]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
        self.summary = json.loads(done.stdout.splitlines()[-1])
        self.said = done.stderr


@pytest.fixture
def watched(ray_cluster, tmp_path):
    watched = Watched(ray_cluster, tmp_path)
    yield watched
    watched.prometheus.stop()


@NEEDS_PROMETHEUS
def test_a_real_prometheus_reads_a_real_run_on_a_real_cluster(watched):
    watched.train("shards=2", "epochs=4", "negatives.ceiling=0.99", "negatives.draws=4")
    prometheus = watched.prometheus
    rows = RunFolder.open(watched.run_dir).rows()
    last = {name: value for row in rows for name, value in row.items()}
    images = sum(row["images"] for row in rows if "images" in row)
    assert images == 4 * 48

    # The last values of a run that is over, both ways; and a counter that agrees with the rows.
    for job in ("ray", "emc2dist"):

        def newest(name, job=job):
            return prometheus.query(f'max_over_time({exported_name(name)}{{job="{job}", run="watched"}}[10m])')

        prometheus.until(lambda: [value for _, value in newest("images")] == [images])
        for name in ("acceptance_rate", "feature_age_steps", "images_per_second", "step", "effective_rank"):
            ((labels, value),) = prometheus.query(
                f'last_over_time({exported_name(name)}{{job="{job}", run="watched"}}[10m])'
            )
            assert value == last[name]
            assert labels["run"] == "watched"
            own = {"__name__", "run", "job", "instance", *METRICS[name].labels}
            assert labels.keys() == own, "and nothing that tells one process of the run from the next"
        assert len(newest("shard_rows")) == 2

    assert {rule["health"] for rule in prometheus.rules()} == {"ok"}
    absent = {"cache_moves_ratio", "data_hits", "data_misses", "data_fetched_bytes"}
    absent |= {name for name in METRICS if name.endswith("_at_10")}  # of pairs
    absent |= {"knn_per_class", "probe_per_class"}  # of uneven classes
    absent |= {"log_z_error", "log_z_rms_error", "anchor_temperature", "neighbour_label_ratio"}
    absent = (absent | {"cached_weight_ratio", "stale_score_rms_error"}) - last.keys()
    for name in EXPORTED.keys() - absent:
        shown = query(name).replace("$run", "watched")
        assert prometheus.query(f"last_over_time(({shown})[10m:1s])") or METRICS[name].kind == "counter", name


@NEEDS_PROMETHEUS
@pytest.mark.slow
def test_a_run_that_collapses_raises_the_alarm(watched):
    alarms = {"Emc2AcceptanceStuck", "Emc2EffectiveRankFalling", "Emc2UniformityLost"}
    views = ["views.crop=[0.6,1.0]", "views.rotate=15.0"]  # as in jobs/quickstart.yaml
    shape = [*views, "batch_size=64", "data.limit=640", "encoder.features=128", "epochs=3", "log_every=3"]
    watched.train(*shape, "lr=2e-3")
    assert not alarms & watched.prometheus.firing()
    shutil.rmtree(watched.run_dir)
    watched.run_dir.mkdir()
    watched.train(*shape, "lr=5.0", "optimiser.warmup_epochs=0.0", "epochs=20")
    assert alarms <= watched.prometheus.firing()
    told = " ".join(watched.summary["remarks"])
    assert all(name in told for name in alarms)
    assert "Emc2DataStarved" not in watched.prometheus.firing()


@NEEDS_PROMETHEUS
@pytest.mark.slow
def test_a_run_whose_loader_starves_raises_the_alarm(watched, tmp_path):
    rng = np.random.default_rng(0)
    noise = io.BytesIO()  # slow to decode
    Image.fromarray(rng.integers(0, 256, (1400, 1400, 3), dtype=np.uint8)).save(noise, "PNG")
    rows = [{"bytes": noise.getvalue(), "path": f"{i}.png"} for i in range(48)]
    pq.write_table(pa.table({"image": rows}), tmp_path / "train.parquet", row_group_size=8)
    watched.train(f"data.path={tmp_path / 'train.parquet'}", f"data.cache_dir={tmp_path / 'cache'}")
    assert "Emc2DataStarved" in watched.prometheus.firing()
