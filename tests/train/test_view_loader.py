"""The loader of a spec's views: which pixels it takes, and where it makes views of them."""

import numpy as np
import pytest
import torch
from train.harness import Run, small_spec

from emc2dist.data.decoded import shrunk
from emc2dist.data.images import open_images
from emc2dist.towers.batched import BatchedViews
from emc2dist.towers.views import RandomView
from emc2dist.train import views
from emc2dist.train.views import view_loader

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
    spec = small_spec(f"views.made_on={made_on}", "data.loaders=3")
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
