"""The promise, whatever a library raises: a command does what it was asked for, or ends with one message and leaves
nothing half-written.

At each border (the file system, Parquet, pictures, tars, JSON, YAML, numpy's and safetensors' files) each exception of
its library is raised, at the first or a later call, under each command that crosses it.
"""

import contextlib
import errno
import fcntl
import io
import json
import os
import shutil
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from raising import exceptions_of
from train.harness import Run, small_spec
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.parser import ParserError
from yaml.scanner import ScannerError

import emc2dist.train.checkpoint
from emc2dist.cli import main
from emc2dist.data.parquet import ParquetImages
from emc2dist.errors import LaunchError
from emc2dist.files.disk import DiskPlace
from emc2dist.run.folder import RunFolder, checkpoint_name

CODES = ("EACCES", "EIO", "ENOSPC", "EROFS", "ESTALE", "EMFILE", "ENOENT", "EISDIR", "ENOTDIR", "ENAMETOOLONG", "ELOOP")
FILES = [OSError(getattr(errno, name), os.strerror(getattr(errno, name)), "a file") for name in (*CODES, "ETIMEDOUT")]
NO_LOCKS = [OSError(getattr(errno, name), "no locks") for name in ("ENOLCK", "EOPNOTSUPP", "EIO", "EBADF")]
ARROW = [
    *(error for error in exceptions_of(pa.lib) if isinstance(error, pa.ArrowException)),
    OSError("Corrupt snappy compressed data."),
    *FILES[:3],
]
PICTURES = [*exceptions_of(PIL, Image), SyntaxError("broken"), struct.error("short"), EOFError(), IndexError("range")]
PICTURES += [OSError("image file is truncated"), ValueError("odd"), OverflowError("large"), ZeroDivisionError("none")]
ZIPS = [
    ValueError("no file of numpy"),
    zipfile.BadZipFile("cut"),
    EOFError("cut"),
    KeyError("names"),
    zlib.error("bad"),
]
YAML: list[Exception] = [yaml.YAMLError("odd"), yaml.reader.ReaderError("spec", 0, 0, "utf-8", "not allowed")]
YAML += [kind(None, None, "odd") for kind in (ScannerError, ParserError, ComposerError, ConstructorError)]
DAMAGED_JSON = [json.JSONDecodeError("Expecting value", "", 0), RecursionError("deep")]

BORDERS = {
    "listing": (os, "scandir", FILES),
    "folder": (Path, "iterdir", FILES),
    "open": (Path, "open", FILES),
    "read": (Path, "read_bytes", FILES),
    "write": (Path, "write_bytes", FILES),
    "rename": (Path, "replace", FILES),
    "make": (Path, "mkdir", FILES),
    "pinned": (DiskPlace, "_pinned", FILES),
    "range": (os, "pread", FILES),
    "lock": (fcntl, "flock", NO_LOCKS),
    "footer": (pq, "ParquetFile", ARROW),
    "column": (pq.ParquetFile, "read", ARROW),
    "batch": (pq.ParquetFile, "iter_batches", ARROW),
    "table": (pq.ParquetWriter, "write_table", ARROW),
    "metadata": (pq, "read_metadata", ARROW),
    "picture": (Image, "open", PICTURES),
    "tar": (tarfile, "open", exceptions_of(tarfile)),
    "json": (json, "loads", DAMAGED_JSON),
    "numpy": (np, "load", ZIPS),
    "yaml": (yaml, "compose", YAML),
    "tensors": (emc2dist.train.checkpoint, "safe_open", [*exceptions_of(safetensors), *FILES[:2], KeyError("encoder")]),
}
NTH = [1, 2, 3, 5, 8]
"""The call that raises."""
SEALED = {("ingest parquet", "json"), ("ingest parquet", "numpy")}  # what is kept is checked as a whole
CASES = [(border, n) for border, (_, _, errors) in BORDERS.items() for n in range(len(errors))]

N = 6
COMMANDS = {
    "validate": ["spec.yaml"],
    "train": ["spec.yaml", "data.path=set", "data.cache_dir=cache"],
    "ingest": ["folder", "dest", "--workers", "0"],
    "ingest tar": ["shard.tar", "dest", "--workers", "0"],
    "ingest parquet": ["parquet", "dest", "--workers", "0", "--cache-dir", "cache"],
    "evaluate": ["RUN"],
    "export": ["RUN", "dest/out"],
    "checkpoint verify": ["RUN", "--newest"],
    "watch": ["RUN", "--once"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder with a checkpoint."""
    spec = small_spec("epochs=1", f"run_dir={tmp_path_factory.mktemp('runs')}", "eval.every=0", "data.limit=16")
    folder = RunFolder.prepare(spec)
    run = Run(spec, folder.place.path).go()
    run.checkpoints[2].rename(folder.place.path / checkpoint_name(2))
    folder.append(run.rows)
    return folder.place.path


@pytest.fixture(scope="module")
def desk(tmp_path_factory, trained):
    """What the commands are run on, and what comes of it when nothing goes wrong."""
    root = tmp_path_factory.mktemp("desk")
    pictures = []
    for n in range(N):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (40 * n, 0, 0)).save(buffer, "png")
        pictures.append(buffer.getvalue())
    for n, picture in enumerate(pictures):
        (root / "folder" / f"class {n % 2}").mkdir(parents=True, exist_ok=True)
        (root / "folder" / f"class {n % 2}" / f"{n}.png").write_bytes(picture)
    with tarfile.open(root / "shard.tar", "w") as shard:
        for n, picture in enumerate(pictures):
            for name, content in ((f"{n}.png", picture), (f"{n}.cls", b"%d" % (n % 2))):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    (root / "parquet").mkdir()
    rows = pa.array([{"bytes": picture, "path": None} for picture in pictures])
    pq.write_table(pa.table({"image": rows, "label": [n % 2 for n in range(N)]}), root / "parquet" / "train.parquet")
    assert main(["ingest", str(root / "folder"), str(root / "set"), "--workers", "0"]) == 0
    (root / "spec.yaml").write_text("{name: x, epochs: 1, batch_size: 2, lr: 1.0, data: {path: digits}}")
    return SimpleNamespace(root=root, pictures=sorted(pictures), run=trained)


def clear(desk, command):
    for name in ("dest", "cache", "runs"):
        shutil.rmtree(desk.root / name, ignore_errors=True)
    if command == "export":
        (desk.root / "dest").mkdir()


def on(desk, command):
    """Run a command there; returns its exit status and what it said."""
    words = [word.replace("RUN", str(desk.run)) for word in COMMANDS[command]]
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()) as told:
        status = main([*command.split()[:1], *(["verify"] if "verify" in command else []), *words])
    found = [line for line in told.getvalue().splitlines() if "  cannot be used: " in line]  # its result
    return status, found + [line for line in said.getvalue().splitlines() if line.startswith("emc2dist: ")]


def check_nothing_half_written(desk, command):
    """But for the notes of an unfinished ingest, which the same command goes on from."""
    assert [path for path in desk.root.rglob("*.draft") if ".ingest" not in path.parts] == []
    assert not (desk.root / "dest" / "out").exists()
    if (desk.root / "dest" / "manifest.json").exists():  # the last thing that is written
        check_what_was_asked_for(desk, command)


def check_what_was_asked_for(desk, command):
    if command.startswith("ingest"):
        images = ParquetImages.open(desk.root / "dest", cache_dir=desk.root / "unused")
        assert sorted(images.encoded(np.arange(N))) == desk.pictures
        assert sorted(images.labels(np.arange(N))) == [0, 0, 0, 1, 1, 1]
    if command == "export":
        assert (desk.root / "dest" / "out").stat().st_size > 10**6


@pytest.fixture
def no_cluster(monkeypatch, desk):
    """`train` up to where it asks for one: what follows is Ray's."""

    def connected(spec):
        raise LaunchError("the data could be opened, and this test has no cluster")

    monkeypatch.setattr("emc2dist.run.cluster.connected", connected)
    monkeypatch.chdir(desk.root)


def test_without_a_fault_each_command_does_what_it_was_asked_for(desk, no_cluster):
    for command in COMMANDS:
        clear(desk, command)
        status, told = on(desk, command)
        assert (status, len(told)) == ((1, 1) if command == "train" else (0, 0)), (command, told)
        check_what_was_asked_for(desk, command)


def keep_the_promise(desk, command, border, number, nth):
    """Run a command under a fault, raised at the nth call, and check what comes of it."""
    where, name, errors = BORDERS[border]
    real, calls = getattr(where, name), []

    def faulty(*arguments, **options):
        calls.append(None)
        if len(calls) == nth:
            raise errors[number]
        return real(*arguments, **options)

    clear(desk, command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, faulty)
        status, told = on(desk, command)
    if status == 0:
        check_what_was_asked_for(desk, command)
        return
    assert status in (1, 2)
    assert [len(line) > 20 for line in told] == [True], told
    check_nothing_half_written(desk, command)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("examples", [10, pytest.param(500, marks=pytest.mark.slow)])
def test_whatever_is_raised_the_promise_is_kept(desk, no_cluster, command, examples):
    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=st.sampled_from([one for one in CASES if (command, one[0]) not in SEALED]), nth=st.sampled_from(NTH))
    def promise(case, nth):
        keep_the_promise(desk, command, *case, nth)

    clear(desk, command)
    on(desk, command)  # imports what it needs, for those are no borders
    promise()
