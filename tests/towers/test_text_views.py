"""Views of texts: spans, deletion and masks as often as asked for, and each of its stream and text alone."""

import pickle

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from emc2dist.towers.text_views import TextViews

STREAMS = np.random.default_rng(1).integers(0, 2**63, (2, 2000))
MASK = 999


def ascending(length: int, first: int = 1) -> np.ndarray:
    """A text each token of which tells where it stands."""
    return np.arange(first, first + length, dtype=np.int32)


def views(length: int, text: np.ndarray, **keys) -> np.ndarray:
    """Views [4000, L] of one text."""
    made = TextViews(length, **keys)([text] * STREAMS.shape[1], STREAMS)
    assert made.dtype == torch.int32
    return made.reshape(-1, length).numpy()


def sizes(made: np.ndarray) -> np.ndarray:
    counts = (made > 0).sum(1)
    assert ((made > 0) == (np.arange(made.shape[1]) < counts[:, None])).all()  # padding comes after the text
    return counts


def within(found: float, expected: float, deviation: float, count: int) -> bool:
    return abs(found - expected) < 4 * deviation / count**0.5


def test_a_view_without_changes_is_the_text():
    assert (views(8, ascending(5)) == [1, 2, 3, 4, 5, 0, 0, 0]).all()


def test_a_span_is_contiguous_and_as_long_as_its_share():
    made = views(40, ascending(30), crop=(0.2, 0.6))
    counts = sizes(made)
    assert (counts.min(), counts.max()) == (6, 18)
    inside = np.arange(40) < counts[:, None]
    assert (np.where(inside, made - made[:, :1], 0) == np.where(inside, np.arange(40), 0)).all()
    # Uniform over 12 tokens, and rounded: the two ends are half as likely.
    expected = np.full(13, len(made) / 12)
    expected[[0, -1]] /= 2
    assert chisquare(np.bincount(counts)[6:], expected).pvalue > 0.001


def test_a_span_has_one_token_at_least():
    assert (sizes(views(10, ascending(5), crop=(0.01, 0.05))) == 1).all()


def test_a_span_begins_anywhere_alike():
    made = views(10, ascending(20), crop=(0.5, 0.5))
    assert (sizes(made) == 10).all()
    assert chisquare(np.bincount(made[:, 0])[1:12]).pvalue > 0.001
    assert made[:, -1].max() == 20


def test_a_span_for_which_there_is_no_room_is_one_that_fits_from_anywhere():
    made = views(4, ascending(9))
    assert (sizes(made) == 4).all()
    assert set(made[:, 0]) == {1, 2, 3, 4, 5, 6}


def test_two_crops_of_a_text_are_independent():
    made = TextViews(10, crop=(0.5, 0.5))([ascending(20)] * STREAMS.shape[1], STREAMS).numpy()
    starts = made[:, :, 0]
    assert abs(np.corrcoef(starts)[0, 1]) < 4 / STREAMS.shape[1] ** 0.5


def test_tokens_are_deleted_each_by_itself_and_in_order():
    made = views(12, ascending(12), delete=0.3)
    counts = sizes(made)
    assert (np.diff(made, axis=1)[made[:, 1:] > 0] > 0).all()
    assert within(counts.mean(), 12 * 0.7, (12 * 0.3 * 0.7) ** 0.5, len(made))
    assert counts.var() == pytest.approx(12 * 0.3 * 0.7, rel=0.1)
    stayed = (made[:, :, None] == np.arange(1, 13)).any(1).mean(0)
    assert all(within(share, 0.7, 0.46, len(made)) for share in stayed)


def test_one_token_always_stays_and_any_may():
    made = views(3, ascending(3), delete=0.999)
    assert (sizes(made) >= 1).all()
    assert chisquare(np.bincount(made[:, 0])[1:]).pvalue > 0.001


def test_tokens_that_stay_are_masked_each_by_itself():
    made = views(12, ascending(12), mask=0.25, mask_id=MASK)
    masked = made == MASK
    assert (np.where(masked, ascending(12), made) == ascending(12)).all()
    assert all(within(share, 0.25, 0.44, len(made)) for share in masked.mean(0))
    assert within(masked.mean(), 0.25, 0.44, masked.size)
    both = views(12, ascending(12), delete=0.5, mask=1.0, mask_id=MASK)
    assert set(both.ravel()) == {0, MASK}
    assert within((both > 0).mean(), 0.5, 0.5, both.size)


def test_where_a_span_begins_what_is_deleted_and_what_is_masked_are_independent():
    crop, delete = {"crop": (0.5, 0.5)}, {"delete": 0.5}
    starts = views(10, ascending(20), **crop)[:, 0]
    deleted = views(10, ascending(20), **crop, **delete)
    for place in range(10):
        stayed = (deleted == starts[:, None] + place).any(1)
        assert abs(np.corrcoef(starts, stayed)[0, 1]) < 4 / len(starts) ** 0.5
    masked = views(10, ascending(10), **delete, mask=0.5, mask_id=MASK) == MASK
    assert within(masked.sum(), 0.25 * masked.size, 0.43 * masked.size, masked.size)


def test_what_is_left_out_takes_no_other_random_numbers():
    crop = views(30, ascending(30), crop=(0.2, 0.6))
    masked = views(30, ascending(30), crop=(0.2, 0.6), mask=0.5, mask_id=MASK)
    assert (np.where(masked == MASK, crop, masked) == crop).all()
    deleted = views(30, ascending(30), crop=(0.2, 0.6), delete=0.5)
    for full, rest in zip(crop[:200], deleted[:200], strict=True):
        assert set(rest) <= set(full)


def test_a_view_is_the_same_alone_in_any_batch_and_in_any_order():
    make = TextViews(16, crop=(0.3, 0.9), delete=0.2, mask=0.2, mask_id=MASK, begin=500, end=501)
    make = pickle.loads(pickle.dumps(make))
    texts = [ascending(length, first=1 + 40 * number) for number, length in enumerate((7, 1, 30, 0, 12))]
    streams = STREAMS[:, :5]
    together = make(texts, streams)
    assert together.shape == (2, 5, 16)
    for n in range(5):
        assert torch.equal(make(texts[n : n + 1], streams[1:, n : n + 1]), together[1:, n : n + 1])
        own = together[:, n][(together[:, n] > 0) & (together[:, n] < 500)]
        assert np.isin(own, texts[n]).all()
    order = np.array([3, 1, 4, 0, 2])
    assert torch.equal(make([texts[n] for n in order], streams[:, order]), together[:, order])


def test_begin_and_end_stand_round_what_is_left():
    made = views(7, ascending(12), delete=0.5, begin=500, end=501)
    counts = sizes(made)
    assert counts.max() == 7
    assert (made[:, 0] == 500).all()
    assert (np.take_along_axis(made, counts[:, None] - 1, 1) == 501).all()
    assert ((made >= 500).sum(1) == 2).all()


@pytest.mark.parametrize(("keys", "expected"), [({}, [0, 0, 0]), ({"begin": 8, "end": 9}, [8, 9, 0])])
def test_a_text_without_tokens_has_a_view_without(keys, expected):
    assert (views(3, ascending(0), delete=0.5, **keys) == expected).all()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"crop": (0.0, 0.5)}, "crop"),
        ({"crop": (0.6, 0.5)}, "crop"),
        ({"crop": (0.5, 1.1)}, "crop"),
        ({"delete": 1.0}, "delete"),
        ({"mask": 0.1}, "mask: got 0.1 with mask_id 0"),
        ({"mask": 1.1, "mask_id": 5}, "mask"),
        ({"length": 2, "begin": 1, "end": 2}, "length: got 2"),
    ],
)
def test_values_out_of_range_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        TextViews(**{"length": 5} | keys)
