"""Views by the batch: the pixels of `augment.py`, the same to the bit in any batch, within bounds, without a wait."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from pretended_gpu import GPU, pretended_gpu
from torch.utils._python_dispatch import TorchDispatchMode

from emc2dist.config import Views
from emc2dist.towers import batched
from emc2dist.towers.batched import BatchedViews, Packer
from emc2dist.towers.views import RandomView

ALL = {
    "crop": (0.08, 1.0),
    "jitter": (0.8, 0.8, 0.8, 0.2),
    "grey": 0.3,
    "blur": 0.5,
    "solarise": 0.3,
    "rotate": 20.0,
}
CPU = torch.device("cpu")
SHAPES = [(40, 56), (28, 28), (100, 7), (131, 132), (1, 30), (33, 33)]


def photo(height: int, width: int) -> torch.Tensor:
    """Smooth and rough colours, laid out as they are decoded: pixel after pixel."""
    draws = torch.Generator().manual_seed(height * 1000 + width)
    coarse = torch.rand(1, 3, 3, 3, generator=draws)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    pixels = 255 * smooth + 40 * torch.randn(3, height, width, generator=draws)
    return pixels.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().permute(2, 0, 1)


def photos(count: int) -> list[torch.Tensor]:
    return [photo(*SHAPES[number % len(SHAPES)]) for number in range(count)]


def made(config: Views, images: list[torch.Tensor], streams: np.ndarray) -> torch.Tensor:
    views = BatchedViews(config, CPU)
    return views([views.pack(images, streams)])


def assert_alike(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """The arithmetic is the same; the sines and exponentials of two libraries may differ in their last place."""
    assert ours.shape == expected.shape
    assert (ours != expected).double().mean() < 0.001


@pytest.mark.parametrize("size", [1, 2, 8, 32, 33, 90])
def test_views_are_those_of_compiled_code(size):
    config, images = Views(**ALL, size=size), photos(24)
    streams = np.arange(48).reshape(2, 24) - 2**62
    assert_alike(made(config, images, streams), RandomView(config)(images, streams))


NONE = {"flip": 0.0, "jitter_probability": 0.0, "grey": 0.0, "blur": 0.0, "rotate": 0.0}
ONLY = {
    "crop": {},
    "flip": {"flip": 1.0},
    "rotation": {"rotate": 170.0},
    "brightness": {"jitter": (0.8, 0.0, 0.0, 0.0), "jitter_probability": 1.0},
    "contrast": {"jitter": (0.0, 0.8, 0.0, 0.0), "jitter_probability": 1.0},
    "saturation": {"jitter": (0.0, 0.0, 0.8, 0.0), "jitter_probability": 1.0},
    "hue": {"jitter": (0.0, 0.0, 0.0, 0.5), "jitter_probability": 1.0},
    "grey": {"grey": 1.0},
    "blur": {"blur": 1.0},
    "solarise": {"solarise": 1.0},
}


@pytest.mark.parametrize("name", ONLY)
def test_each_augmentation_alone(name):
    config, images, streams = Views(**(NONE | ONLY[name]), size=31), photos(12), np.arange(24).reshape(2, 12)
    ours = made(config, images, streams)
    assert_alike(ours, RandomView(config)(images, streams))
    assert name == "crop" or not torch.equal(ours, made(Views(**NONE, size=31), images, streams))


@pytest.mark.parametrize("shape", [(129, 64), (64, 129), (300, 500), (1, 4000), (4000, 3)])
@pytest.mark.parametrize("views", [1, 3])
def test_a_large_image_is_cropped_where_it_is_decoded(shape, views):
    config = Views(**ALL, size=32)
    images, streams = [photo(*shape), photo(20, 30), photo(*shape)], np.arange(3 * views).reshape(views, 3)
    buffer = Packer(config)(images, streams)
    assert len(buffer) <= 3 * Packer(config).most(views)
    assert len(buffer) < 3 * (600 + 2 * views * 32**2) + 3 * views * 300
    assert_alike(BatchedViews(config, CPU)([buffer]), RandomView(config)(images, streams))


@pytest.mark.parametrize("shape", [(128, 128), (128, 1), (1, 1)])
def test_no_buffer_is_larger_than_said(shape):
    config = Views(**ALL, size=32)
    for views in (1, 40):
        buffer = Packer(config)([photo(*shape)], np.arange(views).reshape(views, 1))
        assert len(buffer) <= Packer(config).most(views)


def test_a_view_is_the_same_alone_in_any_batch_and_in_any_order():
    config, images = Views(**ALL, count=3, size=24), photos(12)
    streams = np.arange(36).reshape(3, 12)
    together = made(config, images, streams)
    for n in range(12):
        assert torch.equal(made(config, images[n : n + 1], streams[:, n : n + 1]), together[:, n : n + 1])
        assert torch.equal(made(config, images[n : n + 1], streams[2:, n : n + 1]), together[2:, n : n + 1])
    order = np.random.default_rng(0).permutation(12)
    assert torch.equal(made(config, [images[n] for n in order], streams[:, order]), together[:, order])
    assert torch.equal(made(config, images, streams[1:2]), together[1:2])


def test_buffers_of_several_pieces_make_one_batch_in_any_thread():
    config, images, streams = Views(**ALL, size=24), photos(12), np.arange(24).reshape(2, 12)
    views = BatchedViews(config, CPU)
    pack = pickle.loads(pickle.dumps(views.pack))
    buffers = [pack(images[start:stop], streams[:, start:stop]) for start, stop in ((0, 1), (1, 8), (8, 12))]
    expected = made(config, images, streams)
    with ThreadPoolExecutor(3) as threads:
        for result in threads.map(lambda _: views(buffers), range(6)):
            assert torch.equal(result, expected)


class Operators(TorchDispatchMode):
    """Counts what is run, and notes the bytes of the largest tensor that comes of it."""

    count = largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not result._is_view():
            self.count += 1
            self.largest = max(self.largest, result.nbytes)
        return result


def test_a_larger_batch_takes_no_more_operators():
    config, counts = Views(**ALL, size=16), []
    views = BatchedViews(config, CPU)
    for count in (40, 200):
        buffer = views.pack([photo(40, 40)] * count, np.arange(2 * count).reshape(2, count))
        with Operators() as seen:
            views([buffer])
        counts.append(seen.count)
    assert counts[1] < 1.1 * counts[0]


def test_nothing_waits_for_a_gpu(monkeypatch):
    config, images, streams = Views(**ALL, size=16), photos(40), np.arange(80).reshape(2, 40)
    expected = made(config, images, streams)
    monkeypatch.setattr(batched, "_for_sending", lambda size, _: torch.empty(size, dtype=torch.uint8).pin_memory())
    views = BatchedViews(config, GPU)
    with pretended_gpu() as waits:
        there = views([views.pack(images, streams)])
        assert waits == []
        assert torch.equal(there.cpu(), expected)


def test_parts_bound_the_memory_and_change_nothing(monkeypatch):
    config, images, streams = Views(**ALL, size=16), [photo(64, 50)] * 8, np.arange(160).reshape(20, 8)
    views = BatchedViews(config, CPU)
    buffer = views.pack(images, streams)
    with Operators() as whole:
        expected = views([buffer])
    monkeypatch.setattr(batched, "_PIXELS", 4096)
    with Operators() as parts:
        assert torch.equal(views([buffer]), expected)
    sent = len(buffer) + 160 * 1000  # pixels, and some numbers for each view
    assert parts.largest <= max(24 * 4096, sent)
    assert whole.largest > 2 * sent
