"""The folder of a run, on disk or on S3: what ran, with what, how it went, and its checkpoints.

RUN/spec.yaml           the resolved spec
RUN/versions.json       Python, packages, git commit
RUN/model/              over pairs: the tokenizer, and what else the weights are of, see `emc2dist.train.model_files`
RUN/metrics.jsonl       one row per reporting interval; rows past a restored checkpoint are dropped
RUN/summary.json        what a finished run came to
RUN/prometheus.json     with `watch.port`, while it runs: where its metrics are, as Prometheus' file_sd_configs reads it
RUN/trackers.json       with `watch.wandb` or `watch.mlflow`: the run's id there
RUN/checkpoint-*/       see `emc2dist.train.checkpoint`; Ray Train keeps its own list beside them, which is not used
RUN/driver.lock         one driver at a time, see `emc2dist.run.lock`; on disk alone
"""

import difflib
import json
import math
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from emc2dist import files
from emc2dist.config import S3, Spec, differences, dump, leaves, parse, paths
from emc2dist.errors import RunError, SpecError, StorageError
from emc2dist.files import Place
from emc2dist.files.pointers import pointer
from emc2dist.metrics import METRICS, Row
from emc2dist.terminal import as_json, say
from emc2dist.train.model_files import ModelFiles

_PACKAGES = ("emc2dist", "torch", "torchvision", "ray", "numpy", "numba", "pyarrow", "pillow", "scikit-learn")

_MOST_NAMED = 5
_OWN = (
    "spec.yaml", "versions.json", "model", "metrics.jsonl", "summary.json", "prometheus.json", "trackers.json",
    "driver.lock",
)  # fmt: skip
_CHECKPOINT = re.compile(r"checkpoint-\d+")


def run_of(path: str | Path, s3: S3 | None = None) -> tuple["RunFolder", Place | None]:
    """The run at a path, and the checkpoint of it that is meant, where the path is that of one; None: its newest.

    Raises:
        RunError: there is no run.
    """
    place = files.at(path, s3)
    if not is_checkpoint(place):
        return RunFolder.open(path, s3), None
    return RunFolder.open(str(path).rstrip("/").rpartition("/")[0] or ".", s3), place


def refuse_runs_own(out: str | Path) -> None:
    """Raise StorageError where a file to be written would take the place of one that a run keeps for itself."""
    head, _, name = str(out).rpartition("/")
    above, _, folder = head.rpartition("/")
    for run, own in ((head, name), (above, folder)):
        is_own = own in _OWN or _CHECKPOINT.fullmatch(own) is not None
        if is_own and RunFolder(files.at(run or ".")).exists():
            raise StorageError(f"{out}: is where the run {run or '.'} keeps what is its own; name another file")


def refuse_moved(path: str | Path, spec: Spec) -> None:
    """Raise SpecError where `spec` was read from the folder of a run that says of itself that it lies elsewhere.

    It would be trained anew there, and the checkpoints beside the file would be of no use.
    """
    here = Path(path).absolute()
    if here.name != "spec.yaml" or not (here.parent / "versions.json").exists() or files.is_remote(spec.run_dir):
        return
    there = Path(spec.run_dir).absolute() / spec.name
    if there.exists() and there.samefile(here.parent):
        return
    called = "" if here.parent.name == spec.name else f"call the folder {spec.name} again, and "
    raise SpecError(
        f"{path}: is of a run that was moved or copied here from {there}, and would train there from the start: to go "
        f"on with what lies here {called}give run_dir={here.parent.parent}; to train anew give name=NEW"
    )


class RunFolder:
    """One run's folder."""

    def __init__(self, place: Place) -> None:
        self.place = place

    @classmethod
    def open(cls, path: str | Path, s3: S3 | None = None) -> "RunFolder":
        """An existing run's folder. Raises RunError where there is none."""
        folder = cls(files.at(path, s3))
        if not folder.exists():
            meant = runs_near(str(path), s3) or "give the one that `emc2dist train` named"
            why = "it has no spec.yaml" if folder.is_there() else f"nothing is there{paths.looked_for_in(str(path))}"
            raise RunError(f"{path}: not a run folder ({why}); {meant}")
        return folder

    def is_there(self) -> bool:
        """Whether anything is, be it a run or not."""
        return Path(str(self.place)).exists() or bool(self.place.entries() or self.place.folders())

    @classmethod
    def of(cls, spec: Spec) -> "RunFolder":
        """The folder of `spec`, whether it is there or not."""
        run_dir = spec.run_dir if files.is_remote(spec.run_dir) else files.local(spec.run_dir).resolve()
        return cls(files.at(run_dir, spec.s3) / spec.name)

    @classmethod
    def prepare(cls, spec: Spec, model: ModelFiles | None = None) -> "RunFolder":
        """The folder of `spec`, new or of an earlier start of the same run, or of one that never trained.

        Its spec.yaml says `spec` from here on, so whatever may refuse the run comes first. Over pairs it keeps `model`.

        Raises:
            RunError: see `refuse_other_spec`.
        """
        folder = cls.of(spec)
        changed = folder.refuse_other_spec(spec)
        if changed:
            say(f"{folder.place}: an earlier run of this name had another spec ({changed}) and never trained")
            (folder.place / "trackers.json").remove()
        if model:
            model.keep(folder.of_model)
        folder._write("spec.yaml", dump(spec))
        folder._write("versions.json", json.dumps(versions(), indent=1))
        return folder

    def refuse_other_spec(self, spec: Spec) -> str:
        """What differs in the spec of an earlier run of this name that never trained; empty where nothing does.

        Raises:
            RunError: the name is taken by a run that trained with another spec, or whose spec.yaml is gone.
        """
        if not self.exists():
            if self._has_trained():
                raise RunError(
                    f"{self.place}: a run trained here, and its spec.yaml is gone; put it back, or give this one a new "
                    "name"
                )
            return ""
        changed = "; ".join(differences(self.spec(), spec))
        # On S3 nothing tells a run that never trained from one that begins just now: see `lock`.
        if changed and (self.place.remote or self._has_trained()):
            raise RunError(
                f"{self.place}: an earlier run of this name had another spec ({changed}); give this one a new name, "
                f"with start_from={self.place} to begin with what that one learnt, or go back to the old values to "
                "resume"
            )
        return changed

    def new_values(self, spec: Spec) -> list[str]:
        """The values of `spec` that the run's spec.yaml does not have, as lines `key: there -> here`."""
        return changes(self.spec(), spec)

    def exists(self) -> bool:
        """Whether there is a run."""
        return (self.place / "spec.yaml").entry() is not None

    def _has_trained(self) -> bool:
        return bool(self._data() or self.checkpoints()) or self._is_finished()

    def _is_finished(self) -> bool:
        return (self.place / "summary.json").entry() is not None

    def spec(self) -> Spec:
        """The resolved spec. Raises RunError or SpecError where its file is damaged."""
        place = self.place / "spec.yaml"
        return parse(text_of(place), source=str(place))

    @property
    def of_model(self) -> Place:
        """The folder of what a run over pairs keeps of its model."""
        return self.place / "model"

    def model(self, spec: Spec) -> ModelFiles | None:
        """What the run, whose spec it is, keeps of its model; None over images. Raises RunError where it is gone."""
        return ModelFiles.kept(self.of_model) if spec.of_texts else None

    def summary(self) -> dict[str, Any] | None:
        """The run's summary, if it is finished. Raises RunError where its file is damaged.

        The paths in it are those of now, for the folder may have moved; `checkpoint` is None where none is left.
        """
        place = self.place / "summary.json"
        found = json_of(place) if place.entry() else None
        if found is None:
            return None
        if "run_dir" not in found:
            raise RunError(f"{place}: names no run_dir, so it is no summary of a run; {_MEND}")
        newest = self.checkpoints()[:1]
        return found | {"run_dir": str(self.place), "checkpoint": str(newest[0]) if newest else None}

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary."""
        self._write("summary.json", as_json(summary, indent=1))

    def versions(self) -> dict[str, str | None]:
        """Versions of what it ran with; see `versions`."""
        place = self.place / "versions.json"
        return json_of(place) if place.entry() else {}

    @property
    def metrics(self) -> Place:
        """The file of the rows."""
        return self.place / "metrics.jsonl"

    def lines(self) -> list[bytes]:
        """The rows of metrics so far as they stand in the file, but for one that is only half written.

        Raises:
            RunError: the run is finished, so that the last row is not being written: it was cut off.
        """
        *whole, rest = self._data().split(b"\n")
        if rest and self._is_finished():
            raise RunError(
                f"{self.metrics}: line {len(whole) + 1} is cut off, and the run is finished; put the whole file back, "
                "or remove that line to go on without its row"
            )
        return whole

    def rows(self) -> list[dict[str, Any]]:
        """All rows of metrics so far. Raises RunError where one is damaged, or the last one of a finished run cut."""
        return self.parsed(self.lines())

    def drop_cut_row(self) -> None:
        """Remove a last row that was cut off as it was written, and say so: what is added next begins a line."""
        whole, newline, rest = self._data().rpartition(b"\n")
        if rest:
            say(f"{self.metrics}: its last row was cut off as it was written, and is dropped")
            self.metrics.write(whole + newline)

    def _data(self) -> bytes:
        return self.metrics.read() if self.metrics.entry() else b""

    def parsed(self, lines: Sequence[bytes], before: int = 0) -> list[dict[str, Any]]:
        """The rows of lines of the file, before which `before` others stand. Raises RunError where one is damaged."""
        rows = [_parsed(self.metrics, line, before + number) for number, line in enumerate(lines, 1)]
        for number, row in enumerate(rows, before + 1):
            wrong = _wrong_with(row)
            if wrong:
                raise RunError(f"{self.metrics}: line {number} {wrong}; {_MEND}")
        return rows

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows of metrics; one that says that the run resumed drops the rows past its step first."""
        restarts = [position for position, row in enumerate(rows) if row.get("resumed") is not None]
        if restarts:
            last = restarts[-1]
            self.append(rows[:last])
            rows = rows[last:]
            kept: list[Row] = []
            if rows[0]["resumed"]:  # else it begins anew
                kept = [row for row in self.rows() if row["step"] <= rows[0]["step"]]
            self._write("metrics.jsonl", _lines(kept))
        if rows:
            self.metrics.append(_lines(rows).encode())

    def announce(self, address: str) -> None:
        """Say where the run's metrics are served, HOST:PORT."""
        self._write("prometheus.json", json.dumps([{"targets": [address], "labels": {"job": "emc2dist"}}]))

    def withdraw(self) -> None:
        """Say no more where they are: the port may be somebody else's next. That it cannot be written ends no run."""
        with suppress(StorageError):
            (self.place / "prometheus.json").remove()

    def trackers(self) -> dict[str, str]:
        """The run's id at each service that tracks it."""
        place = self.place / "trackers.json"
        return json_of(place) if place.entry() else {}

    def track(self, service: str, run_id: str) -> None:
        """Note the run's id at a service that tracks it, to go on under when the run resumes."""
        self._write("trackers.json", json.dumps(self.trackers() | {service: run_id}))

    def checkpoints(self) -> list[Place]:
        """Checkpoint folders, newest first; the newest may still be on its way here."""
        places = (self.place / name for name in self.place.folders())
        return sorted(filter(is_checkpoint, places), key=step_of, reverse=True)

    def without_checkpoints(self) -> str:
        """Why there is no checkpoint where there is none, and what would help."""
        if self._is_finished():
            return (
                f"{self.place}: its checkpoints are gone, so it can be neither evaluated nor exported; put one back, "
                f"or remove {self.place / 'summary.json'} and train it again"
            )
        return f"{self.place}: holds no checkpoint yet; train for at least one epoch"

    def _write(self, name: str, text: str) -> None:
        (self.place / name).write(text.encode())


def changes(old: BaseModel, new: BaseModel) -> list[str]:
    """All values that differ, but for where the folder lies, as lines `key: old -> new`."""
    before, after = (dict(leaves(one.model_dump(mode="json"))) for one in (old, new))
    keys = [key for key in before | after if not key.endswith("run_dir") and before.get(key) != after.get(key)]
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys]


_MEND = "it was damaged or changed since it was written; put it right, or remove it"


def runs_near(path: str, s3: S3 | None) -> str:
    """What to give instead of a path that is no run folder: the run that it lies in, or those in it; empty: none."""
    above = path.rstrip("/").rpartition("/")[0]
    if above and RunFolder(files.at(above, s3)).exists():
        if is_checkpoint(files.at(path, s3)):
            return f"it is a checkpoint of {above}: give that, whose newest is taken (export, evaluate, embed: any)"
        return f"it lies in one, which is {above}"
    place = files.at(path, s3)
    within = [name for name in place.folders() if RunFolder(place / name).exists()]
    if within:
        more = f" and {len(within) - _MOST_NAMED} more" if len(within) > _MOST_NAMED else ""
        return f"runs lie in it: {', '.join(within[:_MOST_NAMED])}{more}"
    beside = dict[str, str]()
    for folder in (above, f"{above}/runs" if above else "runs"):  # the latter is where runs go
        beside = {name: f"{folder}/{name}".lstrip("/") for name in files.at(folder or ".", s3).folders()} | beside
    alike = (beside[name] for name in difflib.get_close_matches(place.name, beside, n=_MOST_NAMED))
    return next((f"the nearest is {run}" for run in alike if RunFolder(files.at(run, s3)).exists()), "")


def text_of(place: Place) -> str:
    """A file of a run as text. Raises RunError where it is none."""
    content = place.read()
    if what := pointer(content):
        raise RunError(f"{place}: {what}")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise RunError(f"{place}: is no text (byte {error.start}); {_MEND}") from error


def json_of(place: Place) -> dict[str, Any]:
    """A file of a run as JSON. Raises RunError where it is none, or no object."""
    return _parsed(place, place.read())


def _parsed(place: Place, data: bytes, line: int | None = None) -> dict[str, Any]:
    where = str(place) if line is None else f"{place}: line {line}"
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:  # no JSON, or no text
        if what := pointer(data):
            raise RunError(f"{place}: {what}") from error
        raise RunError(f"{where}: is no JSON ({error}); {_MEND}") from error
    if not isinstance(found, dict):
        raise RunError(f"{where}: is {type(found).__name__} where an object is to be; {_MEND}")
    return found


def _wrong_with(row: dict[str, Any]) -> str:
    """The fault of a row that no run has written; empty where there is none."""
    events = {name for name in row if name in METRICS and METRICS[name].kind == "event"}
    if type(row.get("step")) is not int or row["step"] < 0:
        return "names no step"
    for name in row.keys() - events:
        if not _is_number(row[name]):
            return f"has {name}: {json.dumps(row[name])[:40]}, which is no number"
    if row.keys() - events - {"step"} and not 0 <= row.get("epoch", -1) < math.inf:
        return "names no epoch"
    return ""


def _is_number(value: object) -> bool:
    """Whether it is one, NaN and infinite ones too, that a float holds."""
    return type(value) is float or (type(value) is int and abs(value) <= sys.float_info.max)


def numbers(rows: Sequence[Row]) -> dict[str, Any]:
    """A run's results so far, from its rows; None where no row says it."""

    def last(name: str) -> Any:
        return next((row[name] for row in reversed(rows) if name in row), None)

    speeds = [row["images_per_second"] for row in rows if "images_per_second" in row]
    return {
        "epochs": last("epoch"),
        "images_per_second": sorted(speeds)[len(speeds) // 2] if speeds else None,
        "loss": last("loss"),
        "acceptance_rate": last("acceptance_rate"),
        "knn_accuracy": last("knn_accuracy"),
        "knn_untrained": next((row["knn_accuracy"] for row in rows if "knn_accuracy" in row), None),
        "knn_pixels": last("knn_pixels"),
        "knn_per_class": last("knn_per_class"),
        "probe_accuracy": last("probe_accuracy"),
        "ndcg_at_10": last("ndcg_at_10"),
        "ndcg_untrained": next((row["ndcg_at_10"] for row in rows if "ndcg_at_10" in row), None),
        "ndcg_bm25": last("bm25_ndcg_at_10"),
        "effective_rank": last("effective_rank"),
    }


def checkpoint_name(step: int) -> str:
    """The folder of the checkpoint after `step` steps."""
    return f"checkpoint-{step:09d}"


def is_checkpoint(place: Place) -> bool:
    """Whether a folder is named as a checkpoint is."""
    return _CHECKPOINT.fullmatch(place.name) is not None


def step_of(checkpoint: Place) -> int:
    """The steps that a checkpoint is named after."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _lines(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


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
