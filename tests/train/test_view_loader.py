"""The loader of a spec's views: which pixels it takes, and where it makes views of them."""

import numpy as np
import pytest
import torch
from train.harness import Run, small_spec
from train.test_loop import assert_equal

from emc2dist.data.decoded import shrunk
from emc2dist.data.images import open_images
from emc2dist.errors import SpecError
from emc2dist.towers.batched import BatchedViews
from emc2dist.towers.resident import ResidentViews
from emc2dist.towers.views import RandomView
from emc2dist.train import views
from emc2dist.train.views import cores_of, loaders, view_loader

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("made_on", "device", "expected"),
    [
        ("auto", "cpu", RandomView),
        ("auto", "cuda", BatchedViews),
        ("cpu", "cuda", RandomView),
        ("device", "cpu", BatchedViews),
    ],
)
def test_where_views_are_made(made_on, device, expected, monkeypatch):
    seen = []
    monkeypatch.setattr(views, "ViewLoader", lambda images, view, size, processes: seen.append((view, size, processes)))
    spec = small_spec(f"views.made_on={made_on}", "data.loaders=3", "data.on_device=false")
    view_loader(spec, open_images(spec.data, "train"), torch.device(device))
    ((view, size, processes),) = seen
    assert (type(view), size, processes) == (expected, 8, 3)


@pytest.mark.parametrize("made_on", ["cpu", "device"])
@pytest.mark.parametrize("shrink", [False, True])
def test_views_of_shrunk_and_kept_images(made_on, shrink, tmp_path):
    keys = ["data.path=omniglot-small", "views.size=7", "views.crop=[0.5, 0.5]", "views.aspect=[1.0, 1.0]"]
    keys += [f"data.cache_dir={tmp_path}", "data.decoded_mib=1", f"data.shrink={shrink}", f"views.made_on={made_on}"]
    spec = small_spec(*keys)
    images, index, streams = open_images(spec.data, "train"), np.array([4, 30]), np.arange(4).reshape(2, 2)
    shorter = 10 if shrink else 28
    expected = RandomView(spec.views)([shrunk(image, shorter) for image in images.get(index)], streams)
    for _ in range(2):
        with view_loader(spec, images, CPU) as loader:
            assert torch.equal(loader.submit(index, streams).result(60), expected)
    (file,) = (tmp_path / "decoded").iterdir()
    assert file.stat().st_size == len(images) * 24 + 2 * 3 * shorter**2


def test_a_run_over_kept_images_is_the_same_run(tmp_path):
    plain = Run(small_spec("epochs=1"), tmp_path / "plain").go()
    keeping = small_spec("epochs=1", "data.decoded_mib=1", f"data.cache_dir={tmp_path}")
    for folder in ("filling", "reading"):
        assert Run(keeping, tmp_path / folder).go().column("loss") == plain.column("loss")
    assert (tmp_path / "decoded").is_dir()


SET = 3 * 8**2 * 48  # bytes of the 48 digits


@pytest.mark.parametrize(
    ("on_device", "device", "made_on", "free", "stays"),
    [
        ("auto", "cuda", "auto", 8 * SET, True),
        ("auto", "cuda", "device", 8 * SET, True),
        ("auto", "cuda", "auto", 8 * SET - 24, False),  # an eighth of it is not enough
        ("auto", "cuda", "cpu", 80 * SET, False),
        ("auto", "cpu", "device", 80 * SET, False),
        ("false", "cuda", "auto", 80 * SET, False),
        ("true", "cuda", "auto", 2 * SET, True),
        ("true", "cpu", "device", 2 * SET, True),
    ],
)
def test_when_pixels_stay_on_the_device(on_device, device, made_on, free, stays, monkeypatch):
    told, rooms = [], []
    monkeypatch.setattr(views, "ViewLoader", lambda images, view, size, processes: view)
    monkeypatch.setattr(views, "free_bytes", lambda device: free)
    monkeypatch.setattr(
        ResidentViews, "__init__", lambda self, config, device, count, room: rooms.append((count, room))
    )
    spec = small_spec(f"data.on_device={on_device}", f"views.made_on={made_on}")
    view = view_loader(spec, open_images(spec.data, "train"), torch.device(device), cores=1, tell=told.append)
    assert isinstance(view, ResidentViews) == stays
    assert rooms == [(48, SET // 3)] * stays
    assert ("of pixels that stay there (0.0 MiB)" in told[0]) == stays


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (
            ["views.made_on=device"],
            r"takes 0\.0 MiB \(48 images\), more than 0\.5 of the 0\.0 MiB that are free on cpu",
        ),
        (
            ["views.made_on=device", "views.size=1"],
            "has images of 8 pixels, longer than 4 views, of which only crops go",
        ),
        ([], r"on cpu views are made where images are decoded; give views\.made_on: device"),
    ],
)
def test_pixels_that_cannot_stay_on_the_device_are_refused(keys, reason, monkeypatch):
    monkeypatch.setattr(views, "free_bytes", lambda device: 2 * SET - 6)
    spec = small_spec("data.on_device=true", *keys)
    with pytest.raises(SpecError, match=f"^data.on_device: true, but .*{reason}"):
        view_loader(spec, open_images(spec.data, "train"), CPU)


def test_pixels_on_the_device_need_views_that_are_made_there():
    with pytest.raises(
        SpecError, match=r"data\.on_device: true needs views that are made there, and views\.made_on is cpu"
    ):
        small_spec("data.on_device=true", "views.made_on=cpu")


@pytest.mark.parametrize("processes", [0, 1])
def test_views_of_pixels_that_stay_are_those_of_pixels_that_are_sent(processes):
    keys = ["views.made_on=device", "data.path=omniglot-small", "data.limit=40", "views.flip=0.5", "views.rotate=9"]
    spec = small_spec(*keys, "data.on_device=true", f"data.loaders={processes}")
    images = open_images(spec.data, "train")
    make = RandomView(spec.views)
    with view_loader(spec, images, CPU) as loader:
        for step in range(3):  # the last one sends no pixels
            index, streams = np.arange(step % 2 * 8, 40), np.arange(80).reshape(2, 40)[:, step % 2 * 8 :] + 100 * step
            expected = make(images.get(index), streams)
            assert torch.equal(loader.submit(index, streams, urgent=step == 1).result(120), expected)


def test_a_run_whose_pixels_stay_is_the_same_run(tmp_path):
    """To the bit, from a checkpoint on too, with draws and what is encoded again."""
    keys = ["views.made_on=device", "views.flip=0.5", "negatives.carried=complete", "negatives.draws=12"]
    sent = Run(small_spec(*keys, "data.on_device=false"), tmp_path / "sent").go()
    stay = small_spec(*keys, "data.on_device=true")
    kept = Run(stay, tmp_path / "kept").go()
    assert_equal(sent, kept, 12)
    assert sent.column("loss") == kept.column("loss")
    assert "of pixels that stay there" in kept.column("loading")[0]
    again = Run(stay, tmp_path / "again").go(resume=sent.checkpoints[6])
    assert_equal(sent, again, 12)


@pytest.mark.parametrize(
    ("keys", "device", "made_on", "cores", "expected"),
    [
        (["data.loaders=3"], "cuda", "device", 16, 3),
        (["data.loaders=0"], "cuda", "device", 16, 0),
        (["data.path=digits"], "cuda", "cpu", 16, 0),
        ([], "cuda", "cpu", 16, 15),
        ([], "cuda", "device", 16, 8),
        ([], "cuda", "device", 2, 1),
        ([], "cuda", "device", 1, 0),
        ([], "cuda", "cpu", 64, 16),
        ([], "cpu", "cpu", 16, 4),
        ([], "cpu", "device", 16, 2),
        ([], "cpu", "cpu", 2, 0),
        (["threads=5"], "cpu", "cpu", 16, 11),
        (["threads=20"], "cpu", "cpu", 16, 0),
        (["threads=5"], "cuda", "cpu", 16, 15),
    ],
)
def test_how_many_processes_decode(keys, device, made_on, cores, expected):
    spec = small_spec("data.path=/a/set", *keys)
    assert loaders(spec, torch.device(device), made_on, cores) == expected


def test_cores_of_a_worker(monkeypatch):
    monkeypatch.setattr(views, "cpus", lambda: 12)
    assert [cores_of(small_spec(), beside) for beside in (1, 4, 5, 24)] == [12, 3, 2, 1]
    assert cores_of(small_spec("resources.worker_cpus=6"), 4) == 6
    assert cores_of(small_spec("resources.worker_cpus=0.5"), 4) == 1
