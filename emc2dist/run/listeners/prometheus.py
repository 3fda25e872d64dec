"""A run's newest values for Prometheus, kept by the driver.

The driver is one process for the whole run, so workers and shards that are started again change values and never names
or labels. Rows come from rank 0, already reduced over ranks. There are two ways out:

- Ray's own metrics endpoint, one on every node of a cluster, where each name has the prefix `ray_`. Ray passes a value
  on every 10 s, and once more when the driver disconnects, so the last values of a short run are there for 20 s.
- An endpoint of the run, on loopback, for a run without a cluster: `Endpoint`. When the run ends it waits until whoever
  has been reading it has read the last values.

Counters go through Ray as gauges that only rise: a counter of Ray's first appears when it is first raised, so that
Prometheus would miss that rise, and stays for ever when its process is gone.
"""

import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import time

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from ray.util.metrics import Gauge

from emc2dist.config import Spec
from emc2dist.errors import SpecError
from emc2dist.metrics import EXPORTED, METRICS, Row, exported_name
from emc2dist.run.folder import RunFolder
from emc2dist.store import ShardStats
from emc2dist.terminal import say

_HOST = "127.0.0.1"
_PATIENCE_S = 15.0  # as long as most set-ups leave between two scrapes


class Exporter(Collector):
    """A Recorder that keeps the newest value of every metric."""

    def __init__(self, spec: Spec, steps_per_epoch: int) -> None:
        self._run = {"run": spec.name}
        self._labels = {"kernel": spec.negatives.options().get("kernel", "none")}
        self._values: dict[tuple[str, str], float] = {}  # by name, and shard where there is one
        self._lock = threading.Lock()
        self._starts = 0
        self._ray = {name: _ray_gauge(name) for name in EXPORTED}
        self._set("steps_per_epoch", steps_per_epoch)
        self._set("started_timestamp_seconds", time())
        for name, metric in EXPORTED.items():
            if metric.kind == "counter" and metric.source != "shard":
                self._set(name, 0)

    def record(self, row: Row) -> None:
        """Take a row."""
        for name, value in row.items():
            if name in EXPORTED and not isinstance(value, str):
                self._set(name, value + self._get(name) if METRICS[name].kind == "counter" else value)
        if "resumed" in row:
            self._set("restarts", self._starts)
            self._set("restores", self._get("restores") + float(row["resumed"]))
            self._starts += 1

    def survey(self, shards: Iterable[ShardStats | None], seconds: float) -> None:
        """Take what the shards say of themselves, None for one that is silent, and how long it took them."""
        self._set("store_answer_seconds", seconds)
        for number, stats in enumerate(shards):
            for name, value in _shard_values(stats).items():
                self._set(name, value, str(number))

    def collect(self) -> Iterable[Metric]:
        """For prometheus_client: every metric that has a value."""
        with self._lock:
            values = dict(self._values)
        families: dict[str, Metric] = {}
        for (name, shard), value in values.items():
            family = families.setdefault(name, _family(name))
            family.add_sample(exported_name(name), self._labels_of(name, shard), value)
        return families.values()

    def _get(self, name: str) -> float:
        return self._values.get((name, ""), 0.0)

    def _set(self, name: str, value: float, shard: str = "") -> None:
        with self._lock:
            self._values[name, shard] = float(value)
        self._ray[name].set(float(value), self._labels_of(name, shard))

    def _labels_of(self, name: str, shard: str) -> dict[str, str]:
        own = self._labels | {"shard": shard}
        return self._run | {label: own[label] for label in METRICS[name].labels}


@contextmanager
def watched(spec: Spec, folder: RunFolder, steps_per_epoch: int) -> Iterator[Exporter]:
    """The run's exporter, served at `watch.port` if there is one; the run folder and stderr then tell the address."""
    exporter = Exporter(spec, steps_per_epoch)
    if spec.watch.port is None:
        yield exporter
        return
    endpoint = Endpoint(exporter, spec.watch.port)
    folder.announce(endpoint.address)
    say(f"metrics: http://{endpoint.address}/metrics")
    try:
        yield exporter
    finally:
        endpoint.close()
        folder.withdraw()


def refuse_taken(port: int) -> None:
    """Raise SpecError where the port cannot be had, before there is anything to serve at it."""
    try:
        socket.create_server((_HOST, port)).close()
    except OSError as error:
        raise _taken(port, error) from error


class Endpoint:
    """Serves an exporter's values on loopback, until closed."""

    def __init__(self, exporter: Exporter, port: int) -> None:
        """Port 0 takes any that is free. Raises SpecError where the port is taken."""
        self._reader = _Reader(exporter)
        registry = CollectorRegistry()
        registry.register(self._reader)
        try:
            self._server, self._thread = start_http_server(port, _HOST, registry)
        except OSError as error:
            raise _taken(port, error) from error
        self.address = f"{_HOST}:{self._server.server_port}"

    def close(self, patience_s: float = _PATIENCE_S) -> None:
        """Stop; where values have been read before, wait until the last ones are read too, but no longer than this."""
        self._reader.over.set()
        if self._reader.read.is_set():
            self._reader.read_last.wait(patience_s)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=60)


def _taken(port: int, error: OSError) -> SpecError:
    return SpecError(
        f"watch.port: {port} cannot be used ({error.strerror}); name another one, or 0 for any that is free"
    )


class _Reader(Collector):
    """An exporter, and whether anybody has read it: ever, and since the run is over."""

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter
        self.over, self.read, self.read_last = threading.Event(), threading.Event(), threading.Event()

    def collect(self) -> Iterable[Metric]:
        last = self.over.is_set()
        values = self._exporter.collect()
        (self.read_last if last else self.read).set()
        return values


def _family(name: str) -> Metric:
    kind = CounterMetricFamily if METRICS[name].kind == "counter" else GaugeMetricFamily
    return kind(exported_name(name), METRICS[name].help)


def _ray_gauge(name: str) -> Gauge:
    return Gauge(exported_name(name), METRICS[name].help, ("run", *METRICS[name].labels))


def _shard_values(stats: ShardStats | None) -> dict[str, float]:
    if stats is None:
        return {"shard_up": 0, "shard_restored": 0}
    return {
        "shard_up": 1,
        "shard_restored": stats.generation is not None,
        "shard_rows": stats.rows,
        "shard_bytes": stats.nbytes,
        "shard_buffered_commits": stats.buffered,
        "shard_requests": stats.exchanges,
        "shard_request_seconds": stats.exchange_s,
        "shard_dropped_commits": stats.dropped,
    }
