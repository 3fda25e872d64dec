"""The folder of a run: what ran, with what, how it went, and its checkpoints.

RUN/spec.yaml           the resolved spec
RUN/versions.json       Python, packages, git commit
RUN/metrics.jsonl       one row per reporting interval; rows past a restored checkpoint are dropped
RUN/summary.json        what a finished run came to
RUN/checkpoint-*/       see `emc2dist.train.checkpoint`; Ray Train keeps its own list beside them
"""

import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from emc2dist.config import Spec, differences, dump, load
from emc2dist.errors import RunError
from emc2dist.metrics import Row

_PACKAGES = ("emc2dist", "torch", "torchvision", "ray", "numpy", "numba", "pyarrow", "pillow", "scikit-learn")


class RunFolder:
    """One run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """An existing run's folder. Raises RunError where there is none."""
        folder = cls(Path(path))
        if not (folder.path / "spec.yaml").is_file():
            raise RunError(f"{path}: not a run folder (it has no spec.yaml); give the one that `emc2dist train` named")
        return folder

    @classmethod
    def prepare(cls, spec: Spec) -> "RunFolder":
        """The folder of `spec`, new or of an earlier start of the same run.

        Raises:
            RunError: the name is taken by a run with another spec.
        """
        folder = cls(Path(spec.run_dir).expanduser().resolve() / spec.name)
        if (folder.path / "spec.yaml").is_file():
            changed = differences(folder.spec(), spec)
            if changed:
                raise RunError(
                    f"{folder.path}: an earlier run of this name had another spec ({'; '.join(changed)}); "
                    "give this one a new name, or go back to the old values to resume"
                )
        folder.path.mkdir(parents=True, exist_ok=True)
        folder._write("spec.yaml", dump(spec))
        folder._write("versions.json", json.dumps(versions(), indent=1))
        return folder

    def spec(self) -> Spec:
        """The resolved spec."""
        return load(self.path / "spec.yaml")

    def summary(self) -> dict[str, Any] | None:
        """What the run came to, if it is finished."""
        path = self.path / "summary.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary."""
        self._write("summary.json", json.dumps(summary, indent=1))

    def rows(self) -> list[dict[str, Any]]:
        """All rows of metrics so far."""
        path = self.path / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def append(self, row: Row) -> None:
        """Add a row of metrics; one that says that the run resumed drops the rows past its step first."""
        if row.get("resumed") is not None:
            kept = [r for r in self.rows() if r["step"] <= row["step"]] if row["resumed"] else []
            self._write("metrics.jsonl", "".join(json.dumps(r) + "\n" for r in kept))
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def checkpoints(self) -> list[Path]:
        """Checkpoint folders, newest first; the newest may still be on its way here."""
        return sorted(self.path.glob("checkpoint-*/"), reverse=True)

    def _write(self, name: str, text: str) -> None:
        # Whole or not at all.
        draft = self.path / f".{name}.draft"
        draft.write_text(text)
        draft.replace(self.path / name)


def versions() -> dict[str, str | None]:
    """Python, packages and git commit of what runs here; the commit is None outside a git checkout."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
