"""A certificate of a spec: what is frozen, what is compared, and the number that tells rows apart."""

import dataclasses

import numpy as np
import pytest
import torch
from train.harness import small_spec

from emc2dist.config.negatives import Chain, InBatch
from emc2dist.core.certify import FrozenRun, Report, certify
from emc2dist.core.contrast import contrast_for
from emc2dist.core.streams import fork
from emc2dist.data.images import open_images
from emc2dist.errors import DataError, NonFiniteError, SpecError
from emc2dist.towers.views import RandomView
from emc2dist.train.certificate import (
    AVERAGED,
    Row,
    _Plan,
    certificates,
    choose,
    most_of_a_class,
    samples_for,
    untrained,
    ways,
)
from emc2dist.train.frozen import freeze

CPU = torch.device("cpu")


def row(spec, *, role="own", relbias=0.5, floor=0.1, iact=1.0, error=4.0, reencoded=0.0, samples=500, temperature=0.2):
    """Of a spec; a bias can be told from 0.11 on, with the defaults where relbias is 0.15."""
    curve, excess = ((100, 2 * relbias), (1000, relbias)), relbias**2 - floor**2 * iact
    report = Report(relbias, floor, iact, error, curve, excess, 0.0125 / 3, {"reencoded_images": reencoded})
    return Row(role, spec, temperature, samples, 1000, report)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"samples": 24}, r"--samples 24: too few for batches of 8.*at least 32"),
        ({"views": 3}, r"--views 3: a step takes views.count: 2 .*at least 4"),
        ({"views": 60, "overrides": ["objective=simclr"]}, r"mean over the 1,770 ways .*give --views 49"),
        ({"views": 24, "overrides": ["objective=simclr", "views.count=12"]}, r"set views.count=2"),
        ({"views": 60, "overrides": ["objective.name=dclw"]}, r"exact loss of dclw is a mean over the 1,770 ways"),
        ({"overrides": ["objective.name=groco"]}, r"objective: groco: it takes the hardest .* nothing to certify"),
        ({"views": 2**13}, r"393,216 features of 16 numbers, 24 MiB.*at most 131,072"),
        ({"views": 500, "overrides": ["encoder.features=65536"]}, r"6,000 MiB.*and 1,024 MiB"),
    ],
)
def test_what_is_too_little_or_too_much_is_refused_with_the_reason(given, words):
    spec = small_spec(*given.get("overrides", []))
    images = open_images(spec.data, "train")
    with pytest.raises(SpecError, match=words):
        samples_for(spec, images, given.get("samples"), given.get("views", 4))


def test_batches_by_class_are_certified_as_they_are():
    """A few images of a class at a time; the batches are of groups; the exact gradient is of the same batches."""
    spec = small_spec(
        "objective=supcon",
        "negatives={name: chain, kernel: isir, close: [label]}",
        "data.per_class=2",
        "data.limit=200",
    )
    images = open_images(spec.data, "train")
    assert [most_of_a_class(spec, samples) for samples in (40, 200)] == [2, 12]
    index = choose(images, 40, 3, 5)
    labels = images.labels(index)
    assert len(set(index.tolist())) == 40
    assert all(len(set(labels[first : first + 5])) == 1 for first in range(0, 40, 5))
    assert len(set(labels[::5].tolist())) == 8
    noise = torch.randn(1, 40, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features = torch.nn.functional.normalize(noise, dim=-1)
    rows = certificates(spec, features, {"label": torch.from_numpy(labels)}, steps=360)
    own, batch = (next(row for row in rows if row.role == role) for role in ("own", "batch"))
    assert own.report.facts["same_label_weight_ratio"] == 0
    assert own.report.relbias < 0.8 * batch.report.relbias
    run = _Plan("own", spec, 0.2, features, {"label": torch.from_numpy(labels)}).run()
    assert sorted(labels[run._visited(0)].tolist()) == sorted(2 * labels[run._visited(0)].tolist()[::2])


def test_as_many_images_as_the_batch_asks_for_and_no_more_than_there_are():
    def samples(*overrides, samples=None):
        spec = small_spec(*overrides)
        return samples_for(spec, open_images(spec.data, "train"), samples, 4)

    assert samples() == 48
    assert samples(samples=40) == 40
    assert samples("data.limit=null") == 500
    assert samples("data.limit=null", "batch_size=256") == 1024
    assert samples("data.limit=null", "batch_size=256", "optimiser.accumulate=8") == 500
    assert samples("batch_size=16", samples=48) == 48  # all there are, though not four batches
    with pytest.raises(DataError, match="48 training images are fewer than a batch of 64"):
        samples("batch_size=64")


def test_the_choice_is_uniform_and_seeded():
    images = range(60)
    chosen = np.stack([choose(images, 20, seed) for seed in range(300)])
    assert all(len(set(one)) == 20 for one in chosen)
    counts = np.bincount(chosen.flatten(), minlength=60)
    assert abs(counts / 300 - 1 / 3).max() < 0.12
    assert (choose(images, 20, 7) == chosen[7]).all()


def test_frozen_features_are_the_encoders_of_views_as_training_draws_them():
    spec = small_spec("views.crop=[0.3,1.0]", "seed=5")
    images, encoder = open_images(spec.data, "train"), untrained(spec, CPU)
    index = choose(images, 40, 3)
    found = freeze(spec, encoder, CPU, images, index, 8)
    assert found.shape == (8, 40, 16)
    for view, place in ((0, 0), (7, 39), (3, 11)):
        # `emc2dist.train.step` draws so the first view of step `view`.
        stream = fork(5, 2, view, torch.from_numpy(index[place : place + 1]), torch.zeros(1, 1, dtype=torch.int64))
        (pixels,) = RandomView(spec.views)(images.get(index[place : place + 1]), stream.numpy())
        torch.testing.assert_close(found[view, place], encoder(pixels)[0].detach(), atol=1e-5, rtol=0)


def test_a_diverged_encoder_is_no_row_of_nans():
    spec = small_spec()
    images, encoder = open_images(spec.data, "train"), untrained(spec, CPU)
    encoder.projector.weight.data[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="features are not finite"):
        freeze(spec, encoder, CPU, images, choose(images, 8, 0), 4)


def test_an_untrained_encoder_is_the_one_that_training_begins_with():
    torch.manual_seed(3)
    assert not untrained(small_spec(), CPU).training
    assert untrained(small_spec("encoder.norm=batch"), CPU).training
    one, other = (untrained(small_spec(f"seed={seed}"), CPU).projector.weight for seed in (0, 1))
    assert torch.equal(one, untrained(small_spec(), CPU).projector.weight)
    assert not torch.equal(one, other)


def test_the_ways_are_the_own_the_batch_and_chains_each_once():
    def told(*overrides, samples=500):
        return list(ways(small_spec(*overrides), samples))

    own = told("negatives.burn_in_fraction=0.25")
    assert [role for role, _ in own[:2]] == ["own", "batch"]
    assert own[1][1] == InBatch(name="in_batch")
    chains = [negatives for _, negatives in own if isinstance(negatives, Chain)]
    assert len({repr(chain) for chain in chains}) == len(chains) == 8
    assert {(one.kernel, one.carried, one.cache_proposals) for one in chains} == {
        *((kernel, carried, 0) for kernel in ("mh", "isir") for carried in ("reencode", "complete", "cached")),
        ("isir", "roulette", 0),
        ("mh", "reencode", 64),
    }
    assert {one.burn_in_fraction for one in chains if one.kernel == "mh"} == {0.25}
    assert 512 in {one.cache_proposals for _, one in told(samples=2048)[2:]}
    assert 64 not in {one.cache_proposals for _, one in told(samples=128)[2:]}
    assert [role for role, _ in told("objective=simclr")[:2]] == ["own", "other"]  # it is the batch alone
    assert [role for role, _ in told("objective=sogclr")[:2]] == ["own", "batch"]


def test_rows_are_certificates_of_the_same_features():
    spec = small_spec("temperature_end=0.1", "epochs=1")
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(4, 32, 16, generator=generator), dim=-1)
    rows = certificates(spec, features, {}, steps=24)
    count = len(list(ways(spec, 32)))
    assert [(one.temperature, one.samples) for one in rows] == [
        *[(0.2, 32)] * count, (0.2, 16), *[(0.1, 32)] * count, (0.1, 16),
    ]  # fmt: skip
    assert [one.role for one in rows].count("half") == 2
    last, batch = rows[-1], rows[1]
    assert last.report == certify(FrozenRun(contrast_for(spec), features[:, :16], 8, 0.1), 24)
    alone = spec.model_copy(update={"negatives": InBatch(name="in_batch")})
    assert batch.report == certify(FrozenRun(contrast_for(alone), features, 8, 0.2), 24)


def test_time_bounds_the_steps_and_few_are_taken_anyway():
    features = torch.nn.functional.normalize(torch.randn(4, 16, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    spec = small_spec("batch_size=8")
    rows = certificates(spec, features, {}, seconds=1e-6)
    assert {one.steps for one in rows} == {120}


def test_a_bias_is_what_noise_does_not_explain_and_a_distance_counts_dear_steps():
    spec = small_spec()
    quiet = row(spec, relbias=0.5, floor=0.3, iact=4.0, error=2.0)
    assert quiet.least == pytest.approx(0.0125**0.5)
    assert quiet.bias == 0
    assert not quiet.is_biased
    assert quiet.distance == pytest.approx((2.0 * 4 / AVERAGED) ** 0.5)
    loud = row(spec, relbias=0.5, floor=0.3, error=2.0)
    assert loud.is_biased
    assert loud.bias == pytest.approx(0.4)
    assert loud.distance == pytest.approx((0.16 + (2.0 - 0.16) / AVERAGED) ** 0.5)
    dear = dataclasses.replace(loud, report=dataclasses.replace(loud.report, facts={"reencoded_images": 16.0}))
    assert dear.images == 16
    assert dear.distance == pytest.approx((0.16 + 2 * (2.0 - 0.16) / AVERAGED) ** 0.5)
