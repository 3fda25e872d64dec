"""How texts look: hashes against the words themselves, and runs whose pairs weigh by them."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from train.harness import Run, pairs_spec, write_pairs

from emc2dist.config import parse
from emc2dist.core.batch import Batch, Side
from emc2dist.core.exact import exact_loss
from emc2dist.core.objectives import DebCse, InfoNce
from emc2dist.core.objectives.debcse import alike
from emc2dist.data.texts.pairs import Texts
from emc2dist.errors import SpecError
from emc2dist.train.sets import columns_of, open_training_set
from emc2dist.train.surface import surface_of


class Listed(Texts):
    def __init__(self, texts):
        self._listed = texts

    def __len__(self):
        return len(self._listed)

    def get(self, indices):
        return [self._listed[index] for index in indices]


def batch_of(columns, count):
    known = {name: torch.from_numpy(values) for name, values in columns.items()}
    features = torch.ones(2, count, 3, dtype=torch.float64)
    return Batch(torch.arange(count), 0, {"x": Side(features, features)}, 0.2, count, columns=known)


def test_what_two_texts_share_is_near_the_words_that_both_have():
    draw = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in draw.permutation(40)[: draw.integers(5, 30)]) for _ in range(40)]
    columns = surface_of([Listed(texts[:13]), Listed(texts[13:])])
    every = torch.arange(40)
    found = alike(batch_of(columns, 40), every.unsqueeze(1), every.unsqueeze(0))
    sets = [set(text.split()) for text in texts]
    wanted = torch.tensor(
        [[len(a & b) / len(a | b) / 2 + min(len(a), len(b)) / max(len(a), len(b)) / 2 for b in sets] for a in sets],
        dtype=torch.float64,
    )
    assert (found - found.T).abs().max() == 0
    torch.testing.assert_close(found.diagonal(), torch.ones(40, dtype=torch.float64))
    errors = (found - wanted)[~torch.eye(40, dtype=torch.bool)]
    assert errors.mean().abs() < 0.01
    assert errors.std() < 0.05  # of half a mean over 32: at most .044


def test_order_case_and_repeats_of_words_do_not_count_and_texts_without_words_are_like_none():
    columns = surface_of([Listed(["Red apple", "apple red apple", "?!", "...", "old river"])])
    assert columns["length"].tolist() == [2, 3, -1, -1, 2]
    found = alike(batch_of(columns, 5), torch.tensor([0, 2, 2, 0, 0]), torch.tensor([1, 3, 0, 2, 4]))
    assert found[:4].tolist() == pytest.approx([0.5 + 1 / 3, 0, 0, 0])
    assert 0.5 <= found[4] < 0.6


def test_without_strength_it_is_infonce():
    count = 6
    columns = surface_of([Listed([f"a{n} b{n % 2}" for n in range(count)])])
    generator = torch.Generator().manual_seed(0)
    z = normalize(torch.randn(2, count, 4, dtype=torch.float64, generator=generator), dim=-1)
    known = {name: torch.from_numpy(values) for name, values in columns.items()}
    losses = [exact_loss(one, z, 0.2, columns=known) for one in (DebCse(0.0), InfoNce(), DebCse(2.0))]
    torch.testing.assert_close(losses[0], losses[1], atol=1e-12, rtol=0)
    assert losses[2] < losses[1] - 0.1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("sets") / "set", judged=False)


@pytest.mark.parametrize(
    "more",
    [
        ["objective={name: debcse, directions: both}", "negatives={name: chain, kernel: isir, draws: 4}"],
        ["objective=debcse", "data.kind=texts", "negatives={name: chain, cache_proposals: 4}", "text.chunk=8",
         "text.crop=[0.5, 1]"],
    ],
    ids=["pairs", "texts"],
)  # fmt: skip
def test_a_run_over_texts_weighs_by_their_surface(more, folder, tmp_path):
    spec = pairs_spec(folder, *more)
    train = open_training_set(spec)
    columns, _ = columns_of(spec, train)
    assert {len(values) for values in columns.values()} == {len(train)}
    run = Run(spec, tmp_path / "run")
    run.folder.mkdir()
    run.go()
    assert np.isfinite(run.column("loss")).all()


def test_images_have_no_words():
    spec = parse("name: a\nepochs: 1\nbatch_size: 4\nlr: 1\ndata: {path: digits, limit: 20}\nobjective: debcse\n")
    with pytest.raises(SpecError, match=r"objective: debcse: reads words, and images have none"):
        columns_of(spec, open_training_set(spec))
