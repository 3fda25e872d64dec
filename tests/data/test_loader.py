"""The loader: a view depends on its seed and image alone, wherever it is made; errors come out as they were."""

import errno
import os
import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch

from emc2dist.config import Views
from emc2dist.data.digits import DigitsImages
from emc2dist.data.loader import ViewLoader, _SharedMemory
from emc2dist.errors import DataError, Emc2Error
from emc2dist.towers.batched import BatchedViews
from emc2dist.towers.views import RandomView

INDICES = np.array([5, 0, 9, 5, 2])
SEEDS = np.array([[11, 12, 13, 14, -15], [21, 22, 23, 24, 2**62]])


class FlawedDigits(DigitsImages):
    """Digits of which number 13 is damaged."""

    def get(self, indices):
        if 13 in indices:
            raise DataError("digits.parquet, row 13: the image is null")
        return super().get(indices)


@pytest.fixture(scope="module")
def images() -> FlawedDigits:
    return FlawedDigits("train")


@pytest.fixture(scope="module")
def view() -> RandomView:
    return RandomView(Views(size=16, rotate=10.0))


@pytest.fixture(scope="module")
def expected(images, view) -> torch.Tensor:
    """Drawn one by one, with nothing but the seed."""
    made = []
    for row in SEEDS:
        for index, seed in zip(INDICES, row, strict=True):
            made.append(view(images.get(np.array([index])), np.array([[seed]])))
    return torch.stack(made).view(2, 5, 3, 16, 16)


@pytest.fixture
def refused():
    """A system call that this machine does not have."""

    def call(*arguments, **options):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    return call


@pytest.fixture(scope="module")
def pool(images, view):
    with ViewLoader(images, view, 16, processes=2) as loader:
        yield loader


def test_a_thread_draws_each_view_from_its_seed(images, view, expected):
    with ViewLoader(images, view, 16) as loader:
        made = loader.submit(INDICES, SEEDS).result(60)
    assert made.dtype == torch.uint8
    assert torch.equal(made, expected)
    assert not torch.equal(made[0], made[1])


def test_processes_draw_the_same(pool, expected):
    assert torch.equal(pool.submit(INDICES, SEEDS).result(120), expected)
    assert torch.equal(pool.submit(INDICES[:1], SEEDS[:, :1]).result(120), expected[:, :1])


def test_a_view_does_not_depend_on_its_batch_mates(images, view, expected):
    order = np.array([4, 2, 0])
    with ViewLoader(images, view, 16) as loader:
        made = loader.submit(INDICES[order], SEEDS[:, order]).result(60)
    assert torch.equal(made, expected[:, order])


def test_each_image_is_decoded_once(images, view):
    class Counting(FlawedDigits):
        asked = 0

        def get(self, indices):
            self.asked += len(indices)
            return super().get(indices)

    counting = Counting("train", limit=20)
    with ViewLoader(counting, view, 16) as loader:
        loader.submit(INDICES, SEEDS).result(60)
    assert counting.asked == 5


def test_no_generator_is_drawn_from(images, view):
    state = torch.get_rng_state()
    with ViewLoader(images, view, 16) as loader:
        loader.submit(INDICES, SEEDS).result(60)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_error_comes_out_as_itself_and_the_loader_goes_on(images, view, pool, expected):
    bad = np.array([0, 13])
    with ViewLoader(images, view, 16) as thread:
        for loader in (thread, pool):
            with pytest.raises(DataError, match=r"digits\.parquet, row 13: the image is null"):
                loader.submit(bad, SEEDS[:, :2]).result(120)
            assert torch.equal(loader.submit(INDICES, SEEDS).result(120), expected)


def test_close_drops_what_has_not_begun(images):
    begun, go_on = threading.Event(), threading.Event()

    def slow(images, seeds):
        begun.set()
        go_on.wait(60)
        return torch.stack(images).expand(*seeds.shape, -1, -1, -1)

    loader = ViewLoader(images, slow, 8)
    first, *others = (loader.submit(INDICES[:1], SEEDS[:, :1]) for _ in range(4))
    assert begun.wait(60)
    threading.Timer(0.2, go_on.set).start()
    loader.close()
    assert first.result(0).shape == (2, 1, 3, 8, 8)
    for other in others:
        with pytest.raises(CancelledError):
            other.result(0)
    with pytest.raises(RuntimeError):
        loader.submit(INDICES, SEEDS)


def test_a_batch_of_many_pieces_comes_out_in_order(images, view, pool, monkeypatch):
    monkeypatch.setattr("emc2dist.data.loader._PIECE_BYTES", 7 * 2 * 3 * 16**2)
    indices, seeds = np.arange(100) % 12, np.arange(200).reshape(2, 100)
    with ViewLoader(images, view, 16) as thread:
        made = [loader.submit(indices, seeds).result(120) for loader in (thread, pool)]
        alone = thread.submit(indices[70:71], seeds[:, 70:71]).result(60)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0][:, 70:71], alone)


def test_an_urgent_batch_goes_before_what_waits(images):
    begun, go_on, drawn = threading.Event(), threading.Event(), []

    def slow(images, seeds):
        begun.set()
        assert go_on.wait(60)
        drawn.append(int(seeds.item()))
        return torch.stack(images).unsqueeze(0)

    with ViewLoader(images, slow, 8) as loader:
        patient = [loader.submit(INDICES[:1], np.array([[number]])) for number in range(4)]
        assert begun.wait(60)
        urgent = loader.submit(INDICES[:1], np.array([[99]]), urgent=True)
        go_on.set()
        urgent.result(60)
        for future in patient:
            future.result(60)
    assert drawn == [0, 1, 99, 2, 3]  # 0 was being made, 1 was at hand


def test_a_process_that_dies_fails_its_batches_and_those_that_follow(images):
    with ViewLoader(images, _die, 8, processes=1) as loader:
        for _ in range(2):
            with pytest.raises(Emc2Error, match=r"killed, perhaps for want of memory; lower data\.loaders"):
                loader.submit(INDICES, SEEDS).result(120)


def _die(images, seeds):
    os._exit(1)


def test_processes_that_cannot_be_started_fail_what_waits_for_them(images, monkeypatch, refused):
    with ViewLoader(images, _die, 8, processes=1) as loader:
        monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", refused)
        for _ in range(2):
            with pytest.raises(Emc2Error, match=r"cannot be started \(Function not implemented\); lower data\.loaders"):
                loader.submit(INDICES, SEEDS).result(60)
    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refused)
    with pytest.raises(Emc2Error, match=r"cannot be started \(Function not implemented\); lower data\.loaders"):
        ViewLoader(images, _die, 8, processes=1)


class Unwieldy(Exception):
    """Cannot be built anew from its message, as those of some libraries."""

    def __init__(self, message, code):
        super().__init__(f"{message}, code {code}")


def test_an_error_that_cannot_travel_comes_out_in_words_and_is_no_dead_process(images):
    with ViewLoader(images, _unwieldy, 8, processes=1) as loader:
        for _ in range(2):
            with pytest.raises(Emc2Error, match=r"^Unwieldy: no such codec, code 7$"):
                loader.submit(INDICES, SEEDS).result(120)


def _unwieldy(images, seeds):
    raise Unwieldy("no such codec", 7)


def test_without_shared_memory_the_views_come_through_a_pipe_and_that_is_said(
    pool, expected, monkeypatch, capfd, refused
):
    monkeypatch.setattr("emc2dist.terminal._said", set())
    monkeypatch.setattr(os, "memfd_create", refused)
    for _ in range(2):
        assert torch.equal(pool.submit(INDICES, SEEDS).result(120), expected)
    assert capfd.readouterr().err.count("cannot share memory with their worker (Function not implemented)") == 1


def test_where_proc_shows_no_other_process_the_views_come_through_a_pipe(pool, expected, monkeypatch):
    monkeypatch.setattr(_SharedMemory, "__getstate__", _elsewhere, raising=False)
    assert torch.equal(pool.submit(INDICES, SEEDS).result(120), expected)


def _elsewhere(memory):
    """As a process gets it that is shown no folder of its parent in /proc."""
    return {**vars(memory), "_owner": 2**22 + 1}  # above the greatest process number


@pytest.fixture(scope="module")
def device_view() -> BatchedViews:
    return BatchedViews(Views(size=16, rotate=10.0), torch.device("cpu"))


@pytest.fixture(scope="module")
def packing(images, device_view):
    with ViewLoader(images, device_view, 16, processes=1) as loader:
        yield loader


def test_views_made_on_a_device_are_the_same(images, device_view, packing, expected, monkeypatch):
    monkeypatch.setattr("emc2dist.data.loader._PIECE_BYTES", 2 * 2 * 3 * 16**2)  # a batch of several pieces
    with ViewLoader(images, device_view, 16) as thread:
        for loader in (thread, packing):
            assert torch.equal(loader.submit(INDICES, SEEDS).result(120), expected)
            assert torch.equal(loader.submit(INDICES[:1], SEEDS[1:, :1], urgent=True).result(120), expected[1:, :1])


def test_an_error_comes_out_as_itself_where_pixels_are_packed_and_where_views_are_made(images, device_view, packing):
    with pytest.raises(DataError, match=r"digits\.parquet, row 13: the image is null"):
        packing.submit(np.array([0, 13]), SEEDS[:, :2]).result(120)

    class Full(BatchedViews):
        def __call__(self, buffers):
            raise torch.OutOfMemoryError("out of memory")

    with ViewLoader(images, Full(Views(size=16), torch.device("cpu")), 16) as loader:
        for _ in range(2):
            with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
                loader.submit(INDICES, SEEDS).result(60)


def test_an_urgent_batch_does_not_wait_for_views_in_the_making(images):
    begun, go_on = threading.Event(), threading.Event()

    class Slow(BatchedViews):
        def __call__(self, buffers):
            if not begun.is_set():
                begun.set()
                assert go_on.wait(60)
            return super().__call__(buffers)

    with ViewLoader(images, Slow(Views(size=16), torch.device("cpu")), 16) as loader:
        patient = loader.submit(INDICES, SEEDS)
        assert begun.wait(60)
        loader.submit(INDICES, SEEDS, urgent=True).result(60)
        assert not patient.done()
        go_on.set()
    assert patient.done()  # closing waits for what has begun


@pytest.mark.parametrize("hindrance", ["memfd_create", "/proc"])
def test_without_shared_memory_the_pixels_come_through_a_pipe(packing, expected, monkeypatch, refused, hindrance):
    if hindrance == "/proc":
        monkeypatch.setattr(_SharedMemory, "__getstate__", _elsewhere, raising=False)
    else:
        monkeypatch.setattr(os, "memfd_create", refused)
    assert torch.equal(packing.submit(INDICES, SEEDS).result(120), expected)
