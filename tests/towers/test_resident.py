"""Views of pixels that stay on the device: those of pixels that are sent, to the bit, and nothing else is sent."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from pretended_gpu import GPU, pretended_gpu
from towers.test_batched import ALL, CPU, photos

from emc2dist.config import Views
from emc2dist.towers import batched
from emc2dist.towers.batched import BatchedViews
from emc2dist.towers.resident import ResidentViews

CONFIG = Views(**ALL, size=33)  # no photo is longer than four views
IMAGES = photos(24)
PIXELS = sum(image[0].numel() for image in IMAGES)


def streams_of(indices, step):
    return np.arange(2 * len(indices)).reshape(2, -1) + 1000 * step


def expected(indices, step, config=CONFIG):
    views = BatchedViews(config, CPU)
    return views([views.pack([IMAGES[index] for index in indices], streams_of(indices, step))])


def asked(views, indices, step, pieces=3):
    """The views, and which images had to be packed for them."""
    packed, streams, finish = views.begin(np.array(indices), streams_of(indices, step))
    parts = [part for part in np.array_split(np.arange(len(packed)), pieces) if len(part)]
    buffers = [views.pack([IMAGES[index] for index in packed[part]], streams[:, part]) for part in parts]
    return finish(buffers), packed.tolist()


def test_views_are_those_of_pixels_that_are_sent_and_an_image_is_sent_once():
    views = ResidentViews(CONFIG, CPU, len(IMAGES), PIXELS)
    batches = [[5, 2, 19, 7], [2, 3, 5, 4, 19, 1], [7, 7, 3, 20, 20], [1, 2, 3, 4, 5, 7, 19, 20], list(range(24))]
    sent = [[5, 2, 19, 7], [3, 4, 1], [20, 20], [], [0, 6, *range(8, 19), 21, 22, 23]]
    for step, (indices, new) in enumerate(zip(batches, sent, strict=True)):
        found, packed = asked(views, indices, step)
        assert torch.equal(found, expected(indices, step))
        assert packed == new
    for step in range(5, 8):
        indices = np.random.default_rng(step).permutation(24)
        found, packed = asked(views, indices, step)
        assert (torch.equal(found, expected(indices, step)), packed) == (True, [])


def test_what_finds_no_room_is_sent_every_time_and_that_is_said_once(monkeypatch, capsys):
    monkeypatch.setattr("emc2dist.terminal._said", set())
    room = sum(image[0].numel() for image in IMAGES[:5]) + 1
    views, indices = ResidentViews(CONFIG, CPU, len(IMAGES), room), list(range(12))
    for step, new in enumerate([indices, indices[5:], indices[5:]]):
        found, packed = asked(views, indices, step)
        assert torch.equal(found, expected(indices, step))
        assert packed == new
    assert capsys.readouterr().err.count("no room is left there; other images are sent each time") == 1


def test_an_image_longer_than_four_views_is_sent_every_time():
    config = Views(**ALL, size=32)  # photos 3, 9, ... are of 131 x 132 pixels
    views, indices = ResidentViews(config, CPU, len(IMAGES), PIXELS), list(range(12))
    for step, new in enumerate([indices, [3, 9]]):
        found, packed = asked(views, indices, step)
        assert torch.equal(found, expected(indices, step, config))
        assert packed == new


def test_any_thread_may_ask():
    views = ResidentViews(CONFIG, CPU, len(IMAGES), PIXELS)

    def ask(step):
        indices = np.random.default_rng(step).permutation(24)[:9]
        return torch.equal(asked(views, indices, step)[0], expected(indices, step))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(ask, range(24)))
    assert asked(views, list(range(24)), 0)[1] == []


def test_nothing_waits_for_a_gpu_and_pixels_go_there_once(monkeypatch):
    sizes, batches = [], [list(range(16)), list(range(8, 24)), list(range(24))]
    right = [expected(indices, step) for step, indices in enumerate(batches)]

    def pinned(size, device):
        sizes.append(size)
        return torch.empty(size, dtype=torch.uint8).pin_memory()

    monkeypatch.setattr(batched, "_for_sending", pinned)
    with pretended_gpu() as waits:
        views = ResidentViews(CONFIG, GPU, len(IMAGES), PIXELS)
        for step, indices in enumerate(batches):
            found, _ = asked(views, indices, step)
            assert waits == []
            assert torch.equal(found.cpu(), right[step])
            waits.clear()
    pixels = [3 * sum(image[0].numel() for image in IMAGES[part]) for part in (slice(16), slice(16, 24))]
    assert len(sizes) == 4  # the second batch is made of both
    assert sizes[0] > pixels[0]
    assert sizes[1] > pixels[1]
    assert max(sizes[2:]) < 48 * 700  # numbers of each view


@pytest.mark.parametrize("pieces", [1, 4])
def test_neighbours_are_kept_by_one_copy(pieces, monkeypatch):
    copies = []
    copy = torch.Tensor.copy_
    views = ResidentViews(CONFIG, CPU, len(IMAGES), PIXELS)
    monkeypatch.setattr(torch.Tensor, "copy_", lambda to, of: copies.append(len(of)) or copy(to, of))
    asked(views, list(range(12)), 0, pieces)
    assert copies.count(sum(image[0].numel() for image in IMAGES[:12])) == 1
