"""A job whose data, run folder and checkpoints lie on a real S3 server: by the command, as a person runs it."""

import io
import json
import re
import signal
import time

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import ROOT, emc2dist, in_process, signal_group, start, wait_for
from PIL import Image
from train.harness import Run

from emc2dist import files
from emc2dist.config import load
from emc2dist.run.checkpoints import examine
from emc2dist.run.folder import RunFolder

SMALL = [
    "data.window=64", "views.size=8", "encoder.features=16", "encoder.hidden=0", "batch_size=16", "epochs=4",
    "threads=1", "log_every=1", "eval.bank=40", "eval.queries=20", "eval.neighbours=3", "eval.every=2",
    "negatives.feature_dtype=float32",
]  # fmt: skip


def upload(uri: str, name: str, rows: int, group: int) -> None:
    """Random images of two colours, which are their classes."""
    rng = np.random.default_rng(rows)
    labels = rng.integers(0, 2, rows)
    encoded = []
    for label in labels:
        pixels = rng.integers(0, 128, (8, 8, 3), dtype=np.uint8)
        pixels[..., label] += 100
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": encoded, "label": labels}), buffer, row_group_size=group)
    (files.at(uri) / name).write(buffer.getvalue())


@pytest.fixture
def job(s3, tmp_path):
    """The arguments of jobs/cifar10.yaml on a small set on S3, with the run there too."""
    for name, rows in (("train-0.parquet", 90), ("train-1.parquet", 70), ("test-0.parquet", 30)):
        upload(f"{s3.uri}/set", name, rows, group=10)
    paths = [f"data.path={s3.uri}/set", f"run_dir={s3.uri}/runs", f"data.cache_dir={tmp_path / 'cache'}"]
    return [ROOT / "jobs" / "cifar10.yaml", *paths, *SMALL]


def test_stopped_with_its_whole_process_group_and_resumed_on_s3_equals_never_having_stopped(job, s3, tmp_path):
    folder = files.at(f"{s3.uri}/runs/cifar10")
    # A small encoder, for every checkpoint goes through a server that is slow.
    # After its first checkpoint five more have to get there: it is stopped long before.
    one_worker = [*job, "workers=1", "shards=2", "encoder.backbone=conv4", "epochs=6"]
    process = start("train", *one_worker)
    # Not asked all the time: the server would do little else.
    wait_for(lambda: (folder / "checkpoint-000000010" / "checksums-00000-of-00001.json").entry(), process, every=0.3)
    family = signal_group(process, signal.SIGTERM)
    output = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert psutil.wait_procs(family, 30)[1] == []
    stopped = int(re.search(r"stopped at step (\d+) of 60, which a checkpoint holds", output[1])[1])
    assert next(s.step for s in examine(RunFolder(folder), contents=True) if s.problem is None) == stopped

    resumed = emc2dist("train", *one_worker, "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert f"resumed from the checkpoint at step {stopped}\n" in resumed.stderr
    result = json.loads(resumed.stdout.splitlines()[-1])
    assert result["run_dir"] == str(folder)
    assert result["checkpoint"] == f"{folder}/checkpoint-000000060"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read().splitlines()]
    oracle = Run(load(job[0], [*map(str, one_worker[1:]), "data.shuffle=block"]), tmp_path).go()
    assert [row["loss"] for row in rows if "loss" in row] == oracle.column("loss")
    assert result.pop("report") is None  # a run on S3 gets none without being asked
    assert json.loads((folder / "summary.json").read()) == result

    # Every block was fetched once, whatever was asked of it in six epochs; the rest was on this machine.
    fetched = sum(row["data_misses"] for row in rows if "data_misses" in row)
    assert 0 < fetched <= 16

    evaluated = in_process("evaluate", folder, "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout.splitlines()[-1])["queries"] == 30
    assert in_process("export", folder, tmp_path / "backbone.safetensors").returncode == 0
    refused = in_process("train", *one_worker, "data.shuffle=full")
    assert refused.returncode == 1
    assert "data.shuffle: block -> full" in refused.stderr

    secret = s3.server.secret_key.encode()
    everything = [*map(str.encode, output), resumed.stdout.encode(), resumed.stderr.encode(), *contents(folder)]
    assert len(everything) > 10
    assert not any(secret in content for content in everything)


@pytest.mark.slow
def test_a_run_goes_on_when_s3_hangs_and_when_it_refuses(job, s3, tmp_path):
    """For longer than an answer is waited for, and longer than a step takes; then an attempt's end is no end either."""
    arguments = [*job, "workers=1", "epochs=30", "s3.timeout_s=5", "s3.attempts=4", "restarts=5"]
    folder = files.at(f"{s3.uri}/runs/cifar10")

    def reached(step):
        return lambda: any(int(name[-9:]) >= step for name in folder.folders() if name.startswith("checkpoint-"))

    process = start("train", *arguments, "--json")
    wait_for(reached(20), process)
    s3.server.hang_object_server()
    time.sleep(12)  # how long it hangs
    s3.server.continue_object_server()
    wait_for(reached(100), process)
    s3.server.kill_object_server()
    time.sleep(25)  # longer than all attempts take
    s3.server.start_object_server()
    stdout, stderr = process.communicate(timeout=400)
    assert process.returncode == 0, stderr
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read().splitlines()]
    oracle = Run(load(job[0], [*map(str, arguments[1:]), "data.shuffle=block"]), tmp_path).go()
    assert [row["loss"] for row in rows if "loss" in row] == oracle.column("loss")
    assert json.loads(stdout.splitlines()[-1])["steps"] == 300
    print(stderr)


def contents(folder):
    """Every object of a folder."""
    yield from ((folder / entry.name).read() for entry in folder.entries())
    for name in folder.folders():
        yield from contents(folder / name)


def test_what_s3_refuses_exits_with_2_and_one_line(job, s3, monkeypatch):
    gone = in_process("train", *job, f"data.path={s3.uri}/gone")
    assert gone.returncode == 2
    *_, said = gone.stderr.splitlines()  # the first: data.path was given more than once
    assert said.startswith(f"emc2dist: {s3.uri}/gone: no such file or folder; set data.path to")
    assert gone.stderr.count("emc2dist: ") == 1
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    refused = emc2dist("train", *job)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"emc2dist: {s3.uri}/set: the secret of the AWS credentials does not fit")
    assert refused.stderr.count("\n") == 1
    assert "not-the-secret" not in refused.stderr
    assert s3.server.access_key not in refused.stderr


def test_a_secret_in_a_spec_is_refused(job):
    for key in ("data.path=s3://key:secret@bucket/set", "s3.endpoint=http://key:secret@host:9000"):
        done = in_process("train", *job, key)
        assert done.returncode == 2
        assert "holds credentials; leave them out" in done.stderr
        assert "key:secret" not in done.stderr
