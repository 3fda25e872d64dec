"""Event files, read back record by record as TensorBoard does."""

import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from emc2dist.config import parse
from emc2dist.errors import SpecError
from emc2dist.run.listeners.tensorboard import TensorBoard


def events(folder):
    for path in sorted(folder.glob("events*")):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])  # length, its checksum, the event, its checksum
            yield Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]


def test_rows_are_scalars_and_a_resumed_run_purges_what_lay_behind(tmp_path):
    board = TensorBoard(tmp_path)
    board.record({"step": 0, "resumed": 0, "epoch": 0.0})
    board.record({"step": 6, "acceptance_rate": 0.5})
    board.record({"step": 3, "resumed": 1})
    board.record({"step": 6, "acceptance_rate": 0.25})
    board.close()
    found = list(events(tmp_path / "tensorboard"))
    scalars = [(e.step, v.tag, v.simple_value) for e in found for v in e.summary.value]
    acceptance = "chains/acceptance_rate"
    assert scalars == [(0, "learning/epoch", 0.0), (6, acceptance, 0.5), (6, acceptance, 0.25)]
    started = [e.step for e in found if e.session_log.status == e.session_log.START]
    assert started == [1, 4]


def test_it_needs_a_folder_on_disk():
    minimal = "{name: a, epochs: 1, batch_size: 8, lr: 0.1, run_dir: 's3://bucket/runs', watch: {tensorboard: true}}"
    with pytest.raises(SpecError, match=r"watch.tensorboard: true needs a run_dir on disk, got s3://bucket/runs"):
        parse(minimal)
