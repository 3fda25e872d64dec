"""The views: shape, dependence on the seed alone, and what each probability does."""

import pickle

import pytest
import torch

from emc2dist.config import Views
from emc2dist.towers._torchvision import v2
from emc2dist.towers.views import PlainView, RandomView

OFF = {"flip": 0.0, "jitter_probability": 0.0, "grey": 0.0, "blur": 0.0, "rotate": 0.0}
WHOLE = {"crop": (1.0, 1.0), "aspect": (1.0, 1.0)}
IMAGE = torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SQUARE = IMAGE[:, :32, :32]


def seeded(view: RandomView, image: torch.Tensor, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return view(image)


@pytest.mark.parametrize("size", [8, 32, 100])
def test_shape_and_type(size):
    view = RandomView(Views(size=size, rotate=10.0, blur=1.0))
    for made in (seeded(view, IMAGE, 0), PlainView(size)(IMAGE)):
        assert made.shape == (3, size, size)
        assert made.dtype == torch.uint8


def test_the_seed_decides_the_view_also_after_pickling():
    view = RandomView(Views(rotate=10.0, blur=0.5))
    copy = pickle.loads(pickle.dumps(view))
    assert torch.equal(seeded(view, IMAGE, 7), seeded(copy, IMAGE, 7))
    assert not torch.equal(seeded(view, IMAGE, 7), seeded(view, IMAGE, 8))


def test_everything_off_is_the_image_itself():
    view = RandomView(Views(**OFF, **WHOLE))
    assert len(view.transform.transforms) == 1
    assert torch.equal(seeded(view, SQUARE, 0), SQUARE)


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"flip": 0.5}, "RandomHorizontalFlip"),
        ({"rotate": 15.0}, "RandomRotation"),
        ({"jitter_probability": 0.8}, "RandomApply"),
        ({"grey": 0.2}, "RandomGrayscale"),
        ({"blur": 0.5}, "RandomApply"),
    ],
)
def test_each_probability_brings_in_its_own_transform(keys, name):
    steps = RandomView(Views(**(OFF | keys))).transform.transforms
    assert [type(step).__name__ for step in steps] == ["RandomResizedCrop", name]


def test_a_jitter_of_no_strength_is_left_out():
    assert (
        len(RandomView(Views(**(OFF | {"jitter_probability": 1.0}), jitter=(0.0, 0.0, 0.0, 0.0))).transform.transforms)
        == 1
    )


def test_a_flip_of_probability_one_flips():
    view = RandomView(Views(**(OFF | {"flip": 1.0}), **WHOLE))
    assert torch.equal(seeded(view, SQUARE, 0), SQUARE.flip(-1))


def test_grey_views_are_grey():
    made = seeded(RandomView(Views(**(OFF | {"grey": 1.0}))), IMAGE, 3)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


@pytest.mark.parametrize(("size", "kernel"), [(8, 3), (32, 3), (96, 9), (224, 23)])
def test_the_blur_kernel_is_odd_and_about_a_tenth_of_the_side(size, kernel):
    blur = RandomView(Views(**(OFF | {"blur": 1.0}), size=size)).transform.transforms[-1].transforms[0]
    assert tuple(blur.kernel_size) == (kernel, kernel)


def test_the_plain_view_is_the_centre_and_draws_nothing():
    state = torch.get_rng_state()
    assert torch.equal(PlainView(40)(IMAGE), IMAGE[:, :, 8:48])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(40, 56), (56, 40), (30, 240), (240, 30), (1, 8), (7, 7), (33, 100)])
@pytest.mark.parametrize("size", [8, 32, 100])
def test_the_plain_view_is_resized_and_then_cut(shape, size):
    image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    whole = v2.functional.resize(image, [size], antialias=True)
    assert torch.equal(PlainView(size)(image), v2.functional.center_crop(whole, [size]))


@pytest.mark.parametrize("shape", [(8, 121), (121, 8), (16, 500), (33, 1000), (5, 400)])
def test_of_a_thin_image_the_plain_view_is_the_middle(shape):
    long = max(shape)
    wave = (127 + 120 * torch.sin(torch.arange(long) / min(shape))).to(torch.uint8)
    image = (wave[None, :] if shape[1] == long else wave[:, None]).expand(3, *shape)
    whole = v2.functional.resize(image, [32], antialias=True)
    expected = v2.functional.center_crop(whole, [32])
    # The centre falls up to half a pixel of the view elsewhere, over which the wave changes by 120 / 64.
    assert (PlainView(32)(image).int() - expected.int()).abs().max() <= 4


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1), (2, 2**22), (1, 1)])
def test_no_image_makes_a_view_allocate_more_than_the_view_is_worth(shape):
    image = torch.full((1, *shape), 7, dtype=torch.uint8).expand(3, -1, -1)
    plain, seen = PlainView(64), []
    plain.transform.transforms[0].register_forward_hook(lambda _, inputs, made: seen.append(made.numel()))
    assert torch.equal(plain(image), torch.full((3, 64, 64), 7, dtype=torch.uint8))
    assert max(seen) <= 3 * 64 * 64 * (PlainView.LONGEST + 1)
    made = seeded(RandomView(Views(**OFF, size=64)), image, 0)
    assert torch.equal(made, torch.full((3, 64, 64), 7, dtype=torch.uint8))
