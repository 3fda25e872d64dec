"""A person's own transform in the place of ours: image and stream give the view, and what cannot do that is refused."""

import pickle

import numpy as np
import pytest
import torch
from train.harness import Run, small_spec

from emc2dist.config import Views, parse
from emc2dist.data.loader import ViewLoader
from emc2dist.data.omniglot import SmallOmniglotImages
from emc2dist.errors import SpecError
from emc2dist.towers.views import OwnView

MODULE = """
import random
import torch
from emc2dist.towers._torchvision import v2

cropped = v2.Compose([v2.RandomResizedCrop(8, antialias=True), v2.RandomHorizontalFlip()])
number = 3

class Of:
    @staticmethod
    def noise(image):
        return torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)

def floats(image):
    return torch.zeros(3, 8, 8)

def large(image):
    return image

def by_random(image):
    return torch.full((3, 8, 8), random.randrange(256), dtype=torch.uint8)

def constant(image):
    return torch.full((3, 8, 8), 7, dtype=torch.uint8)

def nothing(image):
    return None
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module of transforms."""
    (tmp_path / "mine_of_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return "mine_of_test"


def own(module, name, **keys):
    return OwnView(Views(transform=f"{module}:{name}", size=8, **keys))


@pytest.mark.parametrize("name", ["cropped", "Of.noise"])
def test_a_view_is_a_function_of_image_and_stream(module, name):
    view, images = own(module, name), SmallOmniglotImages("train").get(np.arange(6))
    streams = np.arange(12).reshape(2, 6)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    made = view(images, streams)
    assert made.shape == (2, 6, 3, 8, 8)
    assert torch.get_rng_state().equal(before)  # nobody else's numbers are taken
    assert len({one.numpy().tobytes() for one in made.flatten(0, 1)}) == 12
    assert pickle.loads(pickle.dumps(view))(images[3:], streams[:, 3:]).equal(made[:, 3:])


def test_processes_make_the_same(module):
    images, indices = SmallOmniglotImages("train"), np.arange(20)
    seeds = np.arange(40).reshape(2, 20)
    made = []
    for processes in (0, 1):
        with ViewLoader(images, own(module, "cropped"), 8, processes=processes) as loader:
            made.append(loader.submit(indices, seeds).result(timeout=60))
    assert made[0].equal(made[1])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("floats", "gives torch.float32 [3, 8, 8] of an image; it has to give torch.uint8 [3, 8, 8]"),
        ("large", "gives torch.uint8 [3, 40, 56] of an image"),
        ("nothing", "gives NoneType of an image"),
        ("by_random", "draws what does not come of torch's global generator"),
        ("number", "is int, which cannot be called"),
        ("missing", "AttributeError"),
    ],
)
def test_what_makes_no_views_is_refused(module, name, said):
    with pytest.raises(SpecError) as refused:
        own(module, name)
    assert said in str(refused.value)
    assert str(refused.value).startswith("views.transform: ")


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(SpecError, match=r"no_such_module_at_all:x: ModuleNotFoundError.*PYTHONPATH"):
        own("no_such_module_at_all", "x")


def test_keys_that_nobody_reads_beside_it_are_refused():
    base = "{name: x, epochs: 1, batch_size: 2, lr: 1.0, views: {transform: 'a:b'}}"
    for words, key in (
        (["views.crop=[0.5, 1.0]"], "views.crop"),
        (["views.solarise=0.1"], "views.solarise"),
        (["views.made_on=device"], "views.made_on"),
        (["data.shrink=true"], "data.shrink"),
        (["views.transform=a.b"], "views.transform"),
    ):
        with pytest.raises(SpecError) as refused:
            parse(base, words)
        assert f"{key}: " in str(refused.value)


def test_a_run_trains_on_them(module, tmp_path):
    spec = small_spec("epochs=1", "eval.every=0")
    views = Views(count=spec.views.count, size=8, transform=f"{module}:constant")
    run = Run(spec.model_copy(update={"views": views}), tmp_path).go()
    assert max(run.column("alignment")) < 1e-6
