"""Images with captions: two towers through the real loop, one caption an image or several images a caption."""

import numpy as np
import pytest
import torch
from train.harness import Run, captions_spec, write_captions
from train.test_sides import assert_same_encoder, batches, whole_and_resumed

from emc2dist.config import parse
from emc2dist.data.captions import open_captions
from emc2dist.errors import DataError, SpecError
from emc2dist.evaluate.retrieval import measures
from emc2dist.train import loop
from emc2dist.train.profile import alone
from emc2dist.train.retrieval import Judged, RetrievalEvaluation
from emc2dist.train.sets import judge_of, open_training_set, plain_views

BAG = ["text.tower=bag", "text.layers=2", "text.heads=4"]  # what bag does not read as by default
CPU = torch.device("cpu")
BOTH = ["objective.directions=both", "objective.learn_temperature=true"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return {shared: write_captions(folder / str(shared), shared=shared) for shared in (False, True)}


KINDS = [
    (False, BOTH),
    (True, [*BOTH, "negatives.kernel=mh"]),
    (True, [*BAG, "negatives={name: moving_average, draws: 6}", *BOTH]),
    (True, ["negatives={name: in_batch}", "objective=dcl", "objective.directions=both"]),
]


@pytest.mark.parametrize(("shared", "kind"), KINDS, ids=str)
def test_a_run_that_is_stopped_within_an_epoch_ends_as_one_that_is_not(shared, kind, sets, tmp_path):
    whole, stopped, resumed = whole_and_resumed(captions_spec(sets[shared], *kind), tmp_path, 2)
    assert max(stopped.checkpoints) == 2
    assert_same_encoder(whole, resumed)
    for name in ("ndcg_at_10", "to_images_ndcg_at_10"):
        assert whole.column(name)[-1] == resumed.column(name)[-1]


@pytest.mark.parametrize("shared", [False, True])
def test_either_tower_meets_its_own_side_and_is_trained(shared, sets, monkeypatch):
    spec = captions_spec(sets[shared], *BOTH)
    train = open_training_set(spec)
    assert train.is_bijection != shared
    with alone(spec, train, CPU) as trainer:
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.step(0)
        trainer.step(1)
        after = trainer.model.state_dict()
    for tower in ("image.", "text.", "learnt."):
        names = [name for name in before if name.startswith(tower) and before[name].is_floating_point()]
        assert any(not torch.equal(before[name], after[name]) for name in names), tower
    seen, _ = batches(spec, 3, monkeypatch)
    pairs = {(int(image), int(caption)) for image, caption in train.relevance}
    for batch in seen:
        first = len(train.queries)
        slots = zip(batch.index_of("query").tolist(), batch.index_of("document").tolist(), strict=True)
        assert {(image, caption - first) for image, caption in slots} <= pairs


def test_images_of_a_batch_are_candidates_of_captions_that_several_share(sets, monkeypatch):
    """They come uniformly, whatever is judged; captions do not, and are candidates by draws alone."""
    seen, _ = batches(captions_spec(sets[True], "objective.directions=both"), 2, monkeypatch)
    for batch in seen:
        assert batch.sides["query"].proposes
        assert not batch.sides["document"].proposes


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_give_the_gradient_of_the_whole(chunk, sets):
    def trained(*more):
        exact = ["precision=float64", "lr=0.5", "optimiser.warmup_epochs=0", "objective.directions=both"]
        spec = captions_spec(sets[True], *exact, *more)
        with alone(spec, open_training_set(spec), CPU) as trainer:
            losses = torch.stack([trainer.step(step).values["loss"].detach() for step in range(6)])
            return losses, [parameter.detach().clone() for parameter in trainer.model.parameters()]

    for one, other in zip(trained(), trained(f"encode_chunk={chunk}"), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_images_and_captions_are_asked_for_each_other_as_explicit_features_say(sets):
    spec = captions_spec(sets[True])
    judge, remarks = judge_of(spec, open_training_set(spec))
    assert isinstance(judge, RetrievalEvaluation)
    assert not remarks
    encoder = loop.initial_encoder(spec, CPU).eval()
    found = judge.measured(encoder, CPU)
    pairs, views = open_captions(spec.data, "test"), plain_views(spec)
    with torch.no_grad():
        images, captions = (
            encoder(views[side](source.get(np.arange(len(source)))))
            for side, source in (("query", pairs.queries), ("document", pairs.documents))
        )
    scores = (images.double() @ captions.double().T).float()
    ways = (scores, pairs.relevance), (scores.T, pairs.relevance[:, ::-1])
    there, back = (
        measures(some.argsort(dim=1, descending=True, stable=True), Judged(relevance, pairs.scores))
        for some, relevance in ways
    )
    assert found == {
        **{name: there[name] for name in ("ndcg_at_10", "mrr_at_10", "recall_at_10")},
        **{f"to_images_{name}": back[name] for name in ("ndcg_at_10", "mrr_at_10", "recall_at_10")},
    }
    assert judge.baseline() == {}


def test_training_raises_how_well_they_find_each_other(sets, tmp_path):
    kind = ["epochs=60", "eval.asked=train", "eval.every=0", *BOTH, "temperature=0.1", *BAG]
    quick = ["optimiser.name=adamw", "optimiser.momentum=null", "lr=1e-2", "views.flip=0", "views.crop=[0.9, 1.0]"]
    run = Run(captions_spec(sets[False], *kind, *quick), tmp_path)
    run.go()
    for name in ("ndcg_at_10", "to_images_ndcg_at_10"):
        before, after = run.column(name)
        assert after > before + 0.3, name


SPEC = "name: a\nepochs: 3\nbatch_size: 16\nlr: 1e-4\nobjective: infonce\ndata: {kind: captions, path: set}\n"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("encoder.backbone=bag", "encoder.backbone"),
        ("text.tower=resnet18", "text.tower"),
        ("text.query_length=5", "text.query_length"),
        ("text.crop=[0.1, 0.5]", "text.crop"),
        ("views.count=2", "views.count"),
        ("encoder.norm=batch", "encoder.norm"),
        ("negatives.close=[label]", "negatives.close"),
        ("data.negatives=1", "data.negatives"),
        ("compile=true", "compile"),
        ("eval.voters=test", "eval.voters"),
        ("objective=supremix", "objective"),
        ("objective=debcse", "objective: debcse reads words"),
        ("negatives.guide={queries: q.parquet, documents: d.parquet}", "negatives.guide"),
    ],
)
def test_what_captions_cannot_do_is_refused_by_its_key(override, key):
    assert parse(SPEC).views.count == 1
    with pytest.raises(SpecError, match=key):
        parse(SPEC, [override])


def test_a_tower_of_captions_is_of_captions_alone():
    with pytest.raises(SpecError, match=r"text\.tower: bag is of captions"):
        parse("name: a\nepochs: 3\nbatch_size: 16\nlr: 1e-4", ["text.tower=bag"])


def test_images_without_captions_are_refused_by_what_is_missing(sets):
    with pytest.raises(DataError, match=r"no captions/manifest\.json.*--captions"):
        captions_spec(sets[False] / "captions")
