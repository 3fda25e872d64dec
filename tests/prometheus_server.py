"""A real Prometheus of a test alone, under the configuration and the rules of cluster/, but quicker."""

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import yaml

CLUSTER = Path(__file__).parents[1] / "cluster"


class Prometheus:
    """Reads the files in `watched`, as Prometheus' file_sd_configs do, by job; scrapes and evaluates every second."""

    @staticmethod
    def available() -> bool:
        return shutil.which("prometheus") is not None

    def __init__(self, folder: Path, watched: dict[str, Path]) -> None:
        config = yaml.safe_load((CLUSTER / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        for job in config["scrape_configs"]:
            job.pop("static_configs", None)
            job["file_sd_configs"] = [{"files": [str(watched[job["job_name"]])], "refresh_interval": "1s"}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        # The alerts as they stand, but without the patience.
        rules = re.sub(r"for: \d+m", "for: 1s", (CLUSTER / "rules.yml").read_text())
        (folder / "rules.yml").write_text(rules)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._log = (folder / "prometheus.log").open("w")
        self._process = subprocess.Popen(
            [
                "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--web.listen-address={self.address}",
                f"--storage.tsdb.path={folder / 'tsdb'}", "--log.level=warn",
            ],
            stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.until(lambda: self._answers(), 60)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)
        self._log.close()

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series now."""
        found = self._get("query?" + urllib.parse.urlencode({"query": expression}))
        return [(series["metric"], float(series["value"][1])) for series in found["result"]]

    def rules(self) -> list[dict]:
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def firing(self) -> set[str]:
        """Alerts that fire, or have fired."""
        found = self.query('max_over_time(ALERTS{alertstate="firing"}[1h])')
        return {labels["alertname"] for labels, _ in found}

    def until(self, condition, seconds=60):
        """Poll until the condition holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self._process.poll() is None, Path(self._log.name).read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            return urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=10).status == 200
        except (urllib.error.URLError, OSError):
            return False

    def _get(self, path: str):
        with urllib.request.urlopen(f"http://{self.address}/api/v1/{path}", timeout=30) as reply:
            return json.load(reply)["data"]
