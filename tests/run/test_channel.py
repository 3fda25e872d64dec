"""What workers leave: rows for the driver, which a checkpoint waits for, on a real Ray; and files, when killed."""

import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from train.harness import Run, small_spec

from emc2dist.errors import StorageError, StorageUnreachable
from emc2dist.run.channel import StopPoller, _answer
from emc2dist.run.folder import RunFolder, checkpoint_name
from emc2dist.run.scratch import scratch


@pytest.fixture
def channel(ray_cluster):
    from emc2dist.run.channel import ChannelHandle

    return ChannelHandle.create()


def test_rows_are_taken_once_in_order(channel):
    for step in range(3):
        channel.record({"step": step})
    assert channel.take() == [{"step": 0}, {"step": 1}, {"step": 2}]
    assert channel.take() == []


def test_a_checkpoint_is_there_only_when_the_rows_before_it_are_written(channel, tmp_path):
    """So a driver that is killed takes with it no row of a step that the run will not take again."""
    from ray.train import Checkpoint

    from emc2dist.run.worker import _CheckpointWriter

    trained = Run(small_spec("epochs=1", f"run_dir={tmp_path}"), tmp_path).go()
    folder = RunFolder.prepare(trained.spec)
    for row in trained.rows:
        channel.record(row)
    writer = _CheckpointWriter(trained.spec, folder, channel)
    with ThreadPoolExecutor() as pool:
        sent = pool.submit(writer._send, Checkpoint(str(trained.checkpoints[6])), checkpoint_name(6))
        while not channel.report_saved(len(trained.rows) - 1):  # until it waits
            assert not sent.done()
        assert folder.checkpoints() == []
        assert not channel.report_saved(len(trained.rows))
        sent.result(timeout=60)
    assert [place.name for place in folder.checkpoints()] == [checkpoint_name(6)]


def test_it_does_not_wait_for_ever_and_says_why(channel):
    channel.record({"step": 1})
    with pytest.raises(StorageUnreachable, match=r"the driver has not written its metrics for 0\.5 s"):
        channel.wait_until_saved(0.5)
    channel.report_saved(0, StorageError("metrics.jsonl: no room"))
    with pytest.raises(StorageError, match=r"metrics\.jsonl: no room"):
        channel.wait_until_saved(0.5)


def test_one_that_has_died_ends_its_segment(channel):
    """Rank 0 finds it out between two steps; the driver, which waits for the attempt's end, is not disturbed."""
    import ray

    with StopPoller(channel, 0.05) as poller:
        assert not poller.is_set()
        channel.record({"step": 1})
        ray.kill(channel._actor)
        with pytest.raises(ray.exceptions.ActorDiedError):
            wait_until(poller.is_set)
    assert (channel.take(), channel.nodes(), channel.failure(), channel.late()) == ([], set(), None, None)
    assert not channel.report_saved(1)
    channel.stop()


def test_one_that_ray_ended_for_want_of_memory_has_died_too(monkeypatch):
    import ray

    class Ended:
        def stopping(self):
            raise ray.exceptions.OutOfMemoryError("1 worker(s) were killed due to the node running low on memory")

    with StopPoller(Ended(), 0.01) as poller, pytest.raises(ray.exceptions.OutOfMemoryError):
        wait_until(poller.is_set)

    def refused(reference, timeout):
        Ended().stopping()

    monkeypatch.setattr("ray.get", refused)
    assert _answer(None, "otherwise") == "otherwise"


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_files_of_killed_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run = RunFolder.prepare(small_spec(f"run_dir={tmp_path / 'runs'}"))
    other = RunFolder.prepare(small_spec(f"run_dir={tmp_path / 'other'}"))

    def killed():
        with scratch(run) as one, scratch(other) as another:
            (one / "half").write_bytes(b"written so far")
            (another / "half").write_bytes(b"written so far")
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join(timeout=60)
    left = sorted(tmp_path.glob("emc2-*/half"))
    assert len(left) == 2
    with scratch(run) as own, scratch(run) as second:
        assert own.is_dir()
        assert second.is_dir()
        assert len(list(tmp_path.glob("emc2-*/half"))) == 1  # the other run's
    assert len(list(tmp_path.glob("emc2-*"))) == 1
