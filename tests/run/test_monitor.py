"""What takes a run's rows as they come: where it fails, the workers are told to end, and nothing waits for it."""

import threading

import pytest
from ray.exceptions import GetTimeoutError
from train.harness import small_spec

from emc2dist.run import monitor
from emc2dist.run.folder import RunFolder
from emc2dist.run.monitor import Monitor
from emc2dist.store import Layout, LocalStore

ROWS = [{"step": step, "epoch": step / 6, "loss": 1.0} for step in range(1, 4)]


class Channel:
    """A channel in this process, with three rows to take."""

    def __init__(self):
        self.rows, self.saved = list(ROWS), threading.Event()
        self.stopped = threading.Event()
        self.late = 0

    def take(self):
        if self.late:
            self.late -= 1
            raise GetTimeoutError("late\nand how it came to that")
        rows, self.rows = self.rows, []
        return rows

    def report_saved(self, rows, problem=None):
        if rows == len(ROWS):
            self.saved.set()
        return False

    def stop(self):
        self.stopped.set()


class Listener:
    """One that raises an error whenever it is shown a row, where it has one."""

    def __init__(self, error=None):
        self.error, self.said, self.shown = error, [], []

    def show(self, row):
        if self.error:
            raise self.error
        self.shown.append(row)

    def say(self, text):
        self.said.append(text)


@pytest.fixture
def watch(tmp_path, monkeypatch):
    monkeypatch.setattr(monitor, "_INTERVAL_S", 0.01)
    folder = RunFolder.prepare(small_spec(f"run_dir={tmp_path}"))

    def watch(channel, listener, why_stop=lambda: None):
        exporter = type("Exporter", (), {"record": lambda self, row: None})()
        return Monitor(channel, folder, listener, exporter, LocalStore(Layout(5, 1), {}), why_stop)

    watch.folder = folder
    return watch


def test_one_that_fails_has_the_workers_end_and_keeps_their_rows(watch):
    channel, listener = Channel(), Listener(ValueError("no such row"))
    fails = pytest.raises(ValueError, match="no such row")
    with fails, watch(channel, listener):
        assert channel.stopped.wait(60)
        assert channel.saved.wait(60)
        channel.rows = [{"step": 4, "epoch": 0.7, "loss": 1.0}]  # of the checkpoint, which waits for it
    assert [row["step"] for row in watch.folder.rows()] == [1, 2, 3, 4]
    assert listener.said == ["stopping: the run cannot be watched (ValueError: no such row)"]


def test_whatever_looks_for_a_reason_to_stop_may_fail(watch):
    channel = Channel()
    fails = pytest.raises(OSError, match="lost")
    with fails, watch(channel, Listener(), why_stop=lambda: raises(OSError("lost"))):
        assert channel.stopped.wait(60)
        assert channel.saved.wait(60)


def raises(error):
    raise error


def test_an_answer_that_comes_late_is_waited_for_and_said_once_in_a_line(watch, capsys):
    channel, listener = Channel(), Listener()
    channel.late = 2
    with watch(channel, listener):
        assert channel.saved.wait(60)
    assert capsys.readouterr().err == "the run cannot be watched for now: late\n"
    assert not channel.stopped.is_set()
    assert listener.shown == watch.folder.rows() == ROWS
