"""Runs over pairs of texts: two sides through the real loop, as pairs or judged."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from train.harness import PAIRS, Run, pairs_spec, write_pairs

from emc2dist.config import parse
from emc2dist.core.batch import Batch
from emc2dist.core.contrast import contrast_for
from emc2dist.data.texts.tokenizer import TokenView
from emc2dist.errors import DataError, NonFiniteError, SpecError
from emc2dist.train import loop
from emc2dist.train.checkpoint import load_trainer, read_table
from emc2dist.train.profile import alone
from emc2dist.train.sets import open_training_set, order_of, token_views, tokenizer_of
from emc2dist.train.texts import RandomTokens

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return {judged: write_pairs(folder / str(judged), judged=judged) for judged in (False, True)}


KINDS = [
    (False, []),
    (False, ["objective.directions=both", "negatives.draws=4", "negatives.kernel=mh"]),
    (False, ["objective.directions=all", "negatives.draws=4"]),
    (False, ["negatives.carried=cached", "negatives.cache_proposals=6"]),
    (True, ["negatives.draws=6", "negatives.cache_proposals=6"]),
    (True, ["objective=dcl", "negatives={name: moving_average, draws: 6}"]),
]


def whole_and_resumed(spec, folder, after):
    """A run that is not stopped, one that is stopped after so many steps, and the rest of that."""
    folders = [folder / name for name in ("whole", "stopped", "resumed")]
    for one in folders:
        one.mkdir()
    whole, stopped = Run(spec, folders[0]).go(), Run(spec, folders[1], stop_after=after).go()
    return whole, stopped, Run(spec, folders[2]).go(resume=stopped.checkpoints[max(stopped.checkpoints)])


def assert_same_encoder(one, other):
    last = max(one.checkpoints)
    first, second = (load_trainer(run.checkpoints[last])["encoder"] for run in (one, other))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("judged", "kind"), KINDS, ids=str)
def test_a_run_that_is_stopped_within_an_epoch_ends_as_one_that_is_not(judged, kind, sets, tmp_path):
    spec = pairs_spec(sets[judged], *kind)
    whole, stopped, resumed = whole_and_resumed(spec, tmp_path, 3)
    assert max(stopped.checkpoints) < spec.epochs * loop.order_for(spec, open_training_set(spec)).steps_per_epoch / 2
    assert_same_encoder(whole, resumed)
    assert whole.column("ndcg_at_10")[-1] == resumed.column("ndcg_at_10")[-1]


def batches(spec, steps, monkeypatch):
    """The batches of a run's first steps."""
    seen: list[Batch] = []
    train = open_training_set(spec)
    with alone(spec, train, CPU) as trainer:
        contrast = trainer.contrast

        class Watched:
            denominators = contrast.denominators

            def foreseen(self, *arguments):
                return contrast.foreseen(*arguments)

            def __call__(self, batch, recalls, encode):
                seen.append(batch)
                return contrast(batch, recalls, encode)

        monkeypatch.setattr(trainer, "contrast", Watched())
        for step in range(steps):
            trainer.step(step)
    return seen, train


def test_judged_documents_are_candidates_by_draws_alone_and_never_for_who_they_answer(sets, monkeypatch):
    spec = pairs_spec(sets[True], "negatives.draws=8")
    seen, train = batches(spec, 8, monkeypatch)
    queries, answers = len(train.queries), {}
    for query, document in train.relevance:
        answers.setdefault(int(query), set()).add(int(document) + queries)
    assert max(map(len, answers.values())) > 1
    closed = 0
    for batch in seen:
        what = contrast_for(spec).denominators[0]
        scores, index, _, count = what.candidates(batch)
        assert int(count) == 8
        assert (scores[:, : len(batch.index)] == -torch.inf).all()
        for row, query in enumerate(batch.index.tolist()):
            assert batch.sides["document"].index[row].item() in answers[query]
            for column in range(len(batch.index), len(index)):
                is_closed = bool(scores[row, column] == -torch.inf)
                assert is_closed == (index[column].item() in answers[query])
                closed += is_closed
    assert closed > 0


def test_every_document_is_drawn_and_is_cached_at_its_own_row(sets, monkeypatch, tmp_path):
    spec = pairs_spec(sets[True], "negatives.draws=8", "epochs=3")
    run = Run(spec, tmp_path / "run")
    run.folder.mkdir()
    run.go()
    train = open_training_set(spec)
    from emc2dist import files
    from emc2dist.train.checkpoint import read_manifest

    last = files.at(run.checkpoints[max(run.checkpoints)])
    manifest = read_manifest(last)
    present = read_table(last, manifest, tmp_path, "feature")["present"]
    state, visited = (read_table(last, manifest, tmp_path, "negatives")[name] for name in ("state", "visited"))
    assert not present[: len(train.queries)].any()  # queries are no candidates
    assert present[len(train.queries) :].all()
    assert visited[: len(train.queries)].mean() > 0.8
    assert not visited[len(train.queries) :].any()
    carried = state[: len(train.queries)][visited[: len(train.queries)]]
    assert (carried >= len(train.queries)).all()
    pairs = {(int(q), int(d) + len(train.queries)) for q, d in train.relevance}
    assert not pairs & {(q, int(state[q, 0])) for q in range(len(train.queries)) if visited[q, 0]}


def test_draws_get_a_gradient_as_the_batch_does(sets, monkeypatch):
    seen, _ = batches(pairs_spec(sets[False], "negatives.draws=5"), 1, monkeypatch)
    side = seen[0].sides["document"]
    assert side.drawn.requires_grad
    assert not contrast_for(pairs_spec(sets[False])).denominators[0].candidates(seen[0]).one_sided.any()


def test_a_positive_of_several_is_drawn_anew_in_every_epoch(sets):
    spec = pairs_spec(sets[True], "negatives.draws=4", "epochs=40")
    train = open_training_set(spec)
    order = order_of(spec, train)
    several = np.flatnonzero(np.bincount(train.relevance[:, 0]) > 1)
    drawn = {}
    for step in range(spec.epochs * order.steps_per_epoch):
        for query, document in zip(order.batch(step), order.batch(step, "document"), strict=True):
            drawn.setdefault(int(query), []).append(int(document) - len(train.queries))
    for query in several:
        mine = train.relevance[train.relevance[:, 0] == query, 1]
        shares = [drawn[query].count(document) / len(drawn[query]) for document in mine]
        assert sum(shares) == pytest.approx(1)
        assert min(shares) > 0.2


def by_loops(batch, temperature):
    """InfoNCE over all distinct documents of a step that do not answer the query."""
    query, document = batch.sides["query"], batch.sides["document"]
    brought = {int(index): document.all[0, slot] for slot, index in reversed(list(enumerate(document.index)))}
    if document.drawn_index is not None:
        drawn = {int(index): document.drawn[0, row] for row, index in enumerate(document.drawn_index) if index >= 0}
        brought = drawn | brought
    judged = None if batch.judged is None else set(batch.judged.tolist())
    losses = []
    for slot, entity in enumerate(batch.index.tolist()):
        own = int(document.index[slot])
        others = [
            torch.dot(query.own[0, slot], feature) / temperature
            for index, feature in brought.items()
            if index != own and (judged is None or entity * batch.samples + index not in judged)
        ]
        positive = torch.dot(query.own[0, slot], document.own[0, slot]) / temperature
        losses.append(torch.stack([positive, *others]).logsumexp(0) - positive)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("judged", [False, True])
@pytest.mark.parametrize(
    "more", [[], ["negatives.draws=6"], ["data.negatives=1"], ["data.negatives=2", "negatives.draws=4"]]
)
def test_in_batch_softmax_takes_each_document_of_a_step_once(judged, more, sets, monkeypatch):
    spec = pairs_spec(sets[judged], "negatives={name: in_batch}", "precision=float64", *more)
    seen, _ = batches(spec, 4, monkeypatch)
    contrast = contrast_for(spec)
    repeats = named = 0
    for batch in seen:
        repeats += len(batch.index) - len(batch.sides["document"].index.unique())
        named += (
            0 if batch.sides["document"].drawn_index is None else int((batch.sides["document"].drawn_index >= 0).sum())
        )
        loss = contrast(batch, {}, None).loss
        torch.testing.assert_close(loss, by_loops(batch, spec.temperature), rtol=1e-10, atol=1e-12)
    assert bool(repeats) == judged
    assert bool(named) == bool(more)


def test_named_negatives_are_those_of_the_set_and_drawn_anew(sets):
    spec = pairs_spec(sets[True], "negatives={name: in_batch}", "data.negatives=1", "epochs=20")
    train = open_training_set(spec)
    order = order_of(spec, train)
    mine = {}
    for query, document in train.negatives:
        mine.setdefault(int(query), set()).add(int(document) + len(train.queries))
    answers = {(int(query), int(document) + len(train.queries)) for query, document in train.relevance}
    without = 0
    for step in range(2 * order.steps_per_epoch):
        for query, named in zip(order.batch(step), order.named(step)[:, 0], strict=True):
            assert (int(named) in mine[int(query)]) if int(query) in mine else named == -1
            assert (int(query), int(named)) not in answers
            without += named == -1
    assert without > 0


def test_what_judged_pairs_cannot_do_is_refused_by_its_key(sets):
    def order(*overrides):
        spec = pairs_spec(sets[True], *overrides)
        return loop.order_for(spec, open_training_set(spec))

    with pytest.raises(
        SpecError, match=r"draws: 0, but documents are judged here \(\d+ pairs of \d+ .* documents, \d+ of"
    ):
        order()
    with pytest.raises(SpecError, match=r"objective\.directions: queries, documents are .* negatives: in_batch"):
        order("negatives.draws=4", "objective.directions=all")
    with pytest.raises(DataError, match=r"negatives\.draws: 1000 is more than"):
        order("negatives.draws=1000")
    with pytest.raises(DataError, match="batch_size: 64 is more than"):
        order("negatives.draws=4", "batch_size=64")
    with pytest.raises(SpecError, match=r"data\.negatives: 1 that a set names .*in_batch"):
        order("negatives.draws=4", "data.negatives=1")


def test_a_vocabulary_that_is_less_than_the_sets_is_refused_and_one_that_is_more_stays(sets):
    tokens = pairs_spec(sets[False]).text.vocabulary
    assert pairs_spec(sets[False], f"text.vocabulary={tokens}").text.vocabulary == tokens
    assert pairs_spec(sets[False], f"text.vocabulary={tokens + 7}").text.vocabulary == tokens + 7
    with pytest.raises(SpecError, match=rf"text\.vocabulary: {tokens - 1} is less than the {tokens} tokens"):
        pairs_spec(sets[False], f"text.vocabulary={tokens - 1}")


def test_a_sets_vocabulary_that_takes_too_much_room_is_refused(sets, monkeypatch):
    monkeypatch.setattr("emc2dist.config.pairs._MOST_BYTES", 2**12)
    with pytest.raises(SpecError, match=r"text\.vocabulary: \d+ with text\.width: 16 takes"):
        pairs_spec(sets[False])


def test_a_folders_tokenizer_with_a_token_that_its_model_has_no_embedding_of_is_refused(sets, tmp_path):
    pytest.importorskip("transformers")
    tokenizer = Tokenizer.from_str((sets[False] / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    (tmp_path / "model.safetensors").touch()
    tokens = tokenizer.get_vocab_size()
    spec = parse(
        PAIRS,
        ["data.kind=pairs", f"encoder.backbone=transformers:{tmp_path}", "text={width: 128, layers: 2, heads: 4}"],
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": tokens}))
    assert set(token_views(spec)) == {"query", "document"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": tokens - 1}))
    with pytest.raises(SpecError, match=rf"encoder\.backbone: .* has {tokens} tokens, .* embeddings of {tokens - 1};"):
        token_views(spec)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=rf"^encoder\.backbone: {tmp_path}/tokenizer\.json: is no tokenizer \(.*; give"):
        token_views(spec)


def test_draws_of_two_sides_are_others_and_as_many_as_their_side_has(sets):
    spec = pairs_spec(sets[False], "negatives.draws=6", "objective.directions=both")
    train = open_training_set(spec)
    order = order_of(spec, train)
    queries, documents = (order.draws(6, 5, side) for side in ("query", "document"))
    same = [set(queries.batch(t)) == {d - len(train.queries) for d in documents.batch(t)} for t in range(6)]
    assert not any(same)
    judged = open_training_set(pairs_spec(sets[True]))
    assert len(judged.documents) > len(judged.queries)
    many = pairs_spec(sets[True], f"negatives.draws={len(judged.documents)}")
    assert len(order_of(many, judged).draws(len(judged.documents), 0, "document").batch(0)) == len(judged.documents)


@pytest.mark.parametrize("directions", ["forward", "both"])
def test_log_z_is_compared_with_that_over_the_cached_documents_alone(directions, sets, monkeypatch):
    spec = pairs_spec(sets[False], "epochs=5", "lr=0.0001", "negatives.draws=6", f"objective.directions={directions}")
    train = open_training_set(spec)
    asked, errors = set(), []
    with alone(spec, train, CPU) as trainer:
        features = trainer.memory.features

        def recorded(step, entities):
            asked.add(entities)
            return features(step, entities)

        monkeypatch.setattr(trainer.memory, "features", recorded)
        for step in range(16):
            found = trainer.step(step, health=True).values
            errors += [found["log_z_rms_error"]] if "log_z_rms_error" in found else []
    assert asked == {range(len(train.queries), len(train))}
    assert len(errors) > 4  # not before most documents are cached
    # An average over few candidates, of an encoder that hardly moves.
    assert max((total / weight).sqrt().item() for total, weight in errors) < 0.5


TEXTS = ["data.kind=texts", "text={document_length: 6, chunk: 8, crop: [0.4, 0.9], delete: 0.1}"]


@pytest.mark.parametrize(
    "kind",
    [
        ["negatives={name: chain, kernel: isir, draws: 4, cache_proposals: 5}"],
        ["objective=moco", "negatives.rows=12"],
        ["objective=mv_dhel", "negatives=chain", "views.count=3"],
        ["objective=nnclr", "negatives=in_batch"],
    ],
    ids=str,
)
def test_texts_by_themselves_go_with_what_goes_with_views_of_images(kind, sets, tmp_path):
    spec = pairs_spec(sets[True], *TEXTS, *kind)
    whole, _, resumed = whole_and_resumed(spec, tmp_path, 2)
    assert np.isfinite(whole.column("loss")).all()
    assert len(whole.column("ndcg_at_10")) == 3
    assert_same_encoder(whole, resumed)


def test_a_view_of_a_text_is_a_span_of_its_tokens(sets):
    spec = pairs_spec(sets[False], "data.kind=texts", "text={document_length: 6, chunk: 12, crop: [0.3, 0.6]}")
    train = open_training_set(spec)
    whole = TokenView(tokenizer_of(spec), 12)
    views = RandomTokens(tokenizer_of(spec), spec.text)
    texts = train.texts.get(np.arange(16))
    tokens = whole(texts, np.zeros((1, 16), np.int64))[0].tolist()
    made = views(texts, np.arange(32).reshape(2, 16))
    assert made.shape == (2, 16, 6)
    assert not torch.equal(made[0], made[1])
    for view in made:
        for text, span in zip(tokens, view.tolist(), strict=True):
            text, span = [t for t in text if t], [t for t in span if t]
            assert len(span) in range(round(0.3 * len(text)), min(6, round(0.6 * len(text))) + 1)
            assert any(text[first : first + len(span)] == span for first in range(len(text)))
    assert torch.equal(views(texts[3:4], np.array([[3], [19]])), made[:, 3:4])  # whoever else is in the batch


def test_what_a_tokenizer_puts_around_a_text_stands_around_each_view(sets):
    spec = pairs_spec(
        sets[False], "data.kind=texts", "text={document_length: 6, chunk: 12, crop: [0.5, 0.5], mask: 1.0}"
    )
    tokenizer = Tokenizer.from_str(tokenizer_of(spec))
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    numbers = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=numbers)
    views = RandomTokens(tokenizer.to_str(), spec.text)
    made = views(open_training_set(spec).texts.get(np.arange(4)), np.arange(8).reshape(2, 4))
    mask = tokenizer.token_to_id("[MASK]") + 1
    for view in made.flatten(0, 1).tolist():
        view = [token for token in view if token]
        assert (view[0] - 1, view[-1] - 1) == (numbers[0][1], numbers[1][1])
        assert set(view[1:-1]) == {mask}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["objective=supcon"], r"objective: supcon: needs labels"),
        (["objective.directions=both"], r"objective\.directions: are of pairs, and data\.kind is texts"),
        (["views.count=1"], r"views\.count: 1 view has no other"),
        (["views.size=8"], r"views\.size: is of images, and data\.kind is texts"),
        (["data.negatives=1"], r"data\.negatives: 1 are of pairs, and data\.kind is texts"),
        (["text.crop=[0.9, 0.2]"], r"text\.crop: \[0\.9, 0\.2\] is not an ascending pair"),
    ],
)
def test_what_texts_by_themselves_cannot_do_is_refused_by_its_key(given, words, sets):
    def columns():
        spec = pairs_spec(sets[False], *TEXTS, *given)
        return loop.columns_of(spec, open_training_set(spec))

    with pytest.raises(SpecError, match=words):
        columns()


def test_views_of_texts_are_no_matter_of_pairs(sets):
    with pytest.raises(SpecError, match=r"text\.crop: is of random views of a text, and data\.kind is pairs"):
        pairs_spec(sets[False], "text.crop=[0.2, 0.5]")


def test_what_is_not_finite_is_told_by_its_side_and_row(sets, monkeypatch):
    spec = pairs_spec(sets[False])
    train = open_training_set(spec)
    with alone(spec, train, CPU) as trainer:
        encode = trainer._encode

        def broken(views, drawn):
            made = encode(views, drawn)
            if views.shape[-1] == spec.text.document_length:
                made.features.data[0, 2] = torch.nan
            return made

        monkeypatch.setattr(trainer, "_encode", broken)
        row = int(trainer._order.batch(0, "document")[2]) - len(train.queries)
        with pytest.raises(NonFiniteError, match=f"rank 0, step 0, document {row}: the feature is not finite"):
            trainer.step(0, health=True)
