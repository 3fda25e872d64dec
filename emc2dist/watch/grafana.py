"""The Grafana dashboard, made from the table of metrics so that it cannot drift from it: one row for each topic.

    python -m emc2dist.watch.grafana > cluster/grafana.json

It shows one run at a time, and says nothing of how a run is scraped: queries take the largest value of a run, should
it be read twice.
"""

import json
import sys
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, get_args

from emc2dist.metrics import EXPORTED, METRICS, Topic, exported_name

_WIDTH, _HEIGHT, _COLUMNS = 6, 7, 24
_UNITS = {"ratio": "percentunit", "seconds": "s", "bytes": "bytes"}
_SOURCE = {"type": "prometheus", "uid": "${source}"}


def dashboard() -> dict[str, Any]:
    """The dashboard, as Grafana imports it."""
    return {
        "uid": "emc2dist",
        "title": "emc2dist",
        "schemaVersion": 39,
        "timezone": "browser",
        "refresh": "15s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "type": "datasource", "query": "prometheus"},
                {"name": "run", "type": "query", "datasource": _SOURCE, "query": "label_values(emc2_step, run)"},
            ]
        },
        "panels": list(_panels()),
    }


def query(name: str) -> str:
    """PromQL of what the dashboard shows of a metric of run `$run`."""
    metric = METRICS[name]
    selected = f'{exported_name(name)}{{run="$run"}}'
    if metric.kind == "counter":
        selected = f"rate({selected}[5m])"
    largest = f"max by ({', '.join(('run', *metric.labels))}) ({selected})"
    return f"time() - {largest}" if name.endswith("_timestamp_seconds") else largest


def _panels() -> Iterator[dict[str, Any]]:
    y = 0
    for topic in get_args(Topic):
        yield {"type": "row", "title": topic.capitalize(), "gridPos": {"h": 1, "w": _COLUMNS, "x": 0, "y": y}}
        y += 1
        names = sorted((name for name in EXPORTED if METRICS[name].topic == topic), key=_title_order(topic))
        titles = [(title, list(same)) for title, same in groupby(names, key=lambda name: METRICS[name].panel)]
        for number, (title, same) in enumerate(titles):
            row, column = divmod(number, _COLUMNS // _WIDTH)
            place = {"h": _HEIGHT, "w": _WIDTH, "x": column * _WIDTH, "y": y + row * _HEIGHT}
            yield _panel(title, same, place)
        y += -(-len(titles) * _WIDTH // _COLUMNS) * _HEIGHT


def _title_order(topic: str) -> Callable[[str], int]:
    """Panels in the order in which the table first names them."""
    first = {metric.panel: i for i, metric in reversed(list(enumerate(METRICS.values()))) if metric.topic == topic}
    return lambda name: first[METRICS[name].panel]


def _panel(title: str, names: list[str], place: dict[str, int]) -> dict[str, Any]:
    rates = all(METRICS[name].kind == "counter" for name in names)
    return {
        "type": "timeseries",
        "title": f"{title}, per second" if rates else title,
        "description": "\n".join(f"{name}: {METRICS[name].help}" for name in names),
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": _UNITS.get(METRICS[names[0]].unit, "short")}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + i), "expr": query(name), "legendFormat": _legend(name)}
            for i, name in enumerate(names)
        ],
    }


def _legend(name: str) -> str:
    return " ".join([name, *(f"{{{{{label}}}}}" for label in METRICS[name].labels)])


if __name__ == "__main__":
    json.dump(dashboard(), sys.stdout, indent=1)
    print()
