"""SyCL: the distance against textbooks, and graded pairs through the real loop."""

import json

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from train.harness import Run, pairs_spec

from emc2dist.config import parse
from emc2dist.core.contrast import contrast_for
from emc2dist.core.objectives.sycl import wasserstein
from emc2dist.data.texts.ingest import ingest_pairs
from emc2dist.errors import SpecError
from emc2dist.train.profile import alone
from emc2dist.train.sets import grades_of, open_training_set

CPU = torch.device("cpu")


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("rows", "columns"), [(40, 5), (4, 9)])
def test_the_distance_is_that_of_two_gaussians(rows, columns):
    one, other = drawn(0, rows, columns), 2 * drawn(1, rows, columns) + 1
    s, t = (np.cov(of.numpy().T) for of in (one, other))
    root = sqrtm(s)
    wanted = (one.mean(0) - other.mean(0)).square().sum().item() + np.trace(s + t - 2 * sqrtm(root @ t @ root)).real
    assert wasserstein(one, other).item() == pytest.approx(wanted, abs=1e-6)


def test_of_uncorrelated_columns_it_is_that_of_each_by_itself():
    white = torch.linalg.qr(drawn(2, 30, 4) - drawn(2, 30, 4).mean(0)).Q * 29**0.5  # covariance 1
    far, wide = torch.tensor([0.0, 1, -2, 0.5]).double(), torch.tensor([1.0, 3, 0.2, 0]).double()
    wanted = far.square().sum() + (1 - wide).square().sum()
    torch.testing.assert_close(wasserstein(white, white * wide + far), wanted)


def test_it_is_nothing_between_the_same_and_its_gradient_is_finite_there():
    rows = drawn(3, 6, 20).softmax(1).requires_grad_()
    distance = wasserstein(rows, rows.detach())
    assert distance.abs() < 1e-12
    (gradient,) = torch.autograd.grad(distance, rows)
    assert gradient.abs().max() < 1e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of each query a document that answers it well, and of some another that does a little, or not at all."""
    things = [f"{one}{other}" for one in "bdfgklmn" for other in "aeiou"]
    lines = []
    for row, thing in enumerate(things):
        query = f"{thing} {things[row // 5]}"
        lines.append({"query": query, "document": f"the {thing} {things[(3 * row + 1) % 40]}", "score": 3})
        if row % 2:
            lines.append({"query": query, "document": f"{things[(row + 1) % 40]} only", "score": row % 4 // 2})
    source = tmp_path_factory.mktemp("sets") / "graded.jsonl"
    source.write_text("".join(json.dumps(line | {"split": "train"}) + "\n" for line in lines))
    ingest_pairs(str(source), str(source.with_suffix("")), vocabulary=512)
    return source.with_suffix("")


GRADED = ["objective=sycl", "negatives={name: in_batch, draws: 8}", "data.negatives=1"]


def test_a_querys_candidates_have_the_scores_of_the_set(folder, monkeypatch):
    spec = pairs_spec(folder, *GRADED)
    train = open_training_set(spec)
    scores = {(int(q), int(d)): int(s) for (q, d), s in zip(train.relevance, train.scores, strict=True)}
    assert {1, 3} <= set(scores.values())
    seen = []
    with alone(spec, train, CPU) as trainer:
        gathered = trainer._gathered
        monkeypatch.setattr(trainer, "_gathered", lambda *given: seen.append(gathered(*given)) or seen[-1])
        losses = [trainer.step(step).values for step in range(6)]
    assert all(torch.as_tensor(one["loss"]).isfinite() for one in losses)
    graded = 0
    for batch in seen:
        side, queries = batch.sides["document"], len(train.queries)
        documents = dict.fromkeys(side.index.tolist())
        documents |= dict.fromkeys(index for index in side.drawn_index.tolist() if index >= 0)
        where = {index: side.all[0, slot] for slot, index in enumerate(side.index.tolist())}
        where = {index: side.drawn[0, slot] for slot, index in enumerate(side.drawn_index.tolist())} | where
        grades = torch.tensor(
            [[scores.get((q, d - queries), 0) for d in documents] for q in batch.index.tolist()], dtype=torch.float64
        )
        graded += int(((grades > 0) & (grades < 3)).sum())
        cosines = batch.sides["query"].all[0] @ torch.stack([where[index] for index in documents]).T
        wanted = wasserstein((cosines.double() / spec.temperature).softmax(1), grades.softmax(1))
        found = contrast_for(spec).objective.terms(batch, {})["lists"]
        assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert graded > 0


def test_a_run_brings_its_lists_nearer_to_the_grades(folder, tmp_path, monkeypatch):
    spec = pairs_spec(folder, *GRADED, "epochs=12", "lr=0.01", "optimiser.momentum=null", "optimiser.name=adamw")
    found = []
    objective = type(contrast_for(spec).objective)
    terms = objective.terms

    def watched(self, batch, estimates):
        made = terms(self, batch, estimates)
        found.append(float(made["lists"].detach()))
        return made

    monkeypatch.setattr(objective, "terms", watched)
    run = Run(spec, tmp_path / "run")
    run.folder.mkdir()
    run.go()
    assert np.mean(found[-5:]) < 0.8 * np.mean(found[:5])


def test_scores_that_are_all_the_same_are_refused_and_so_is_what_sycl_does_not_read(folder, tmp_path):
    source = tmp_path / "flat.jsonl"
    source.write_text("".join(json.dumps({"query": f"a{n} b", "document": f"c d{n}"}) + "\n" for n in range(20)))
    ingest_pairs(str(source), str(tmp_path / "flat"), vocabulary=512)
    spec = pairs_spec(tmp_path / "flat", "objective=sycl", "negatives=in_batch")
    with pytest.raises(SpecError, match=r"objective: sycl: reads grades, and all 20 judged pairs .* have score 1"):
        grades_of(spec, open_training_set(spec))
    with pytest.raises(SpecError, match="reads none, but lists of the batch; give in_batch"):
        pairs_spec(folder, "objective=sycl", "negatives={name: chain, draws: 8}")
    images = "name: a\nepochs: 1\nbatch_size: 4\nlr: 1\nobjective: sycl\nnegatives: {name: in_batch, draws: 4}\n"
    with pytest.raises(SpecError, match=r"negatives\.draws: 4 have no gradient"):
        parse(images)
    with pytest.raises(SpecError, match="singular values of a matrix of 4098 rows"):
        parse(images.replace("4\nlr", "2049\nlr").replace("{name: in_batch, draws: 4}", "in_batch"))
