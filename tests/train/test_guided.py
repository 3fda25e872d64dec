"""A guide from files to the steps of a run: what is read, what is refused, and what a run then closes."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from train.harness import Run, pairs_spec, write_pairs

from emc2dist.config import dump, parse
from emc2dist.config.negatives import Guide
from emc2dist.data.texts import guide as guides
from emc2dist.data.texts.guide import open_guide
from emc2dist.errors import DataError, SpecError
from emc2dist.train.profile import alone
from emc2dist.train.sets import open_training_set

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("sets") / "set", judged=True)


def write_guide(folder, target, width=5, **changes):
    """Random features of all texts of a set, of each side a file, shuffled; returns them by id."""
    known = {}
    for seed, side in enumerate(("queries", "documents")):
        table = pq.read_table(folder / f"{side}.parquet")
        features = np.random.default_rng(seed).standard_normal((len(table), width)).astype(np.float32)
        ids, texts = table["id"].to_pylist(), table["text"].to_pylist()
        known[side] = dict(zip(ids, features / np.linalg.norm(features, axis=1, keepdims=True), strict=True))
        columns = {"id": [*ids, "nobody's"], "text": [*texts, "of no set"], "feature": [*features, features[0]]}
        columns |= changes.get(side, lambda columns: {})(columns)
        columns = {name: values for name, values in columns.items() if values is not None}
        order = np.random.default_rng(2).permutation(len(next(iter(columns.values()))))
        made = {name: [list(value) if name == "feature" else value for value in (values[row] for row in order)]
                for name, values in columns.items()}  # fmt: skip
        pq.write_table(pa.table(made), target / f"{side}.parquet")
    return Guide(queries=str(target / "queries.parquet"), documents=str(target / "documents.parquet")), known


def guided_spec(folder, guide, *overrides):
    paths = [f"negatives.guide.queries={guide.queries}", f"negatives.guide.documents={guide.documents}"]
    return pairs_spec(folder, "negatives.draws=8", *paths, *overrides)


@pytest.mark.parametrize("with_text", [True, False])
def test_features_come_in_the_order_of_entities_and_of_unit_length(with_text, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(guides, "_AT_ONCE", 7)
    without = {} if with_text else {side: lambda columns: {"text": None} for side in ("queries", "documents")}
    guide, known = write_guide(folder, tmp_path, **without)
    pairs = open_training_set(pairs_spec(folder))
    found = open_guide(guide, pairs)
    assert found.dtype == np.float16
    sides = (("queries", pairs.queries), ("documents", pairs.documents))
    wanted = np.concatenate([[known[side][one] for one in of.ids(np.arange(len(of)))] for side, of in sides])
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def twice(columns):
    return {name: [*values, values[0]] for name, values in columns.items()}


def without_first(columns):
    return {name: values[1:] for name, values in columns.items()}


WRONG = [
    ("queries", twice, "has an id twice"),
    ("documents", without_first, r"lacks 1 of \d+ texts of the set, '.*' the first"),
    ("queries", lambda columns: {"text": columns["text"][::-1]}, "has another text than the set"),
    ("queries", lambda columns: {"feature": [[0.0] * 5, *columns["feature"][1:]]}, "is zero or not finite"),
    ("queries", lambda columns: {"feature": [[float("nan")] * 5, *columns["feature"][1:]]}, "is zero or not finite"),
    ("queries", lambda columns: {"feature": [[1.0] * 4, *columns["feature"][1:]]}, "not all as wide"),
    ("queries", lambda columns: {"feature": [[1.0] * 4] * len(columns["id"])}, "are 4 wide, those of .* 5"),
    ("documents", lambda columns: {"feature": None}, "has no column feature"),
]


@pytest.mark.parametrize(("side", "change", "message"), WRONG, ids=[message for *_, message in WRONG])
def test_what_is_not_of_the_set_is_refused(side, change, message, folder, tmp_path):
    guide, _ = write_guide(folder, tmp_path, **{side: change})
    with pytest.raises(DataError, match=rf"negatives\.guide: .*{message}"):
        open_guide(guide, open_training_set(pairs_spec(folder)))


def test_a_file_that_is_not_there_no_table_or_too_large_is_refused(folder, tmp_path, monkeypatch):
    guide, _ = write_guide(folder, tmp_path)
    pairs = open_training_set(pairs_spec(folder))
    with pytest.raises(DataError, match="gone is not there; write it with emc2dist embed"):
        open_guide(guide.model_copy(update={"queries": str(tmp_path / "gone")}), pairs)
    monkeypatch.setattr(guides, "MOST_BYTES", 2 * 5 * len(pairs) - 1)
    with pytest.raises(DataError, match="take more than"):
        open_guide(guide, pairs)
    (tmp_path / "queries.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match=r"queries\.parquet: .*write it with emc2dist embed"):
        open_guide(guide, pairs)


@pytest.mark.parametrize("more", [[], ["objective.directions=both", "negatives={name: in_batch}"]], ids=str)
def test_a_run_closes_what_its_guide_finds_nearer_than_the_positive(more, folder, tmp_path):
    guide, _ = write_guide(folder, tmp_path)
    paths = f"guide: {{queries: '{guide.queries}', documents: '{guide.documents}'}}"
    negatives = f"negatives={{name: {'in_batch' if more else 'chain'}, draws: 8, {paths}}}"
    spec = pairs_spec(folder, *more[:1], negatives)
    train = open_training_set(spec)
    with alone(spec, train, CPU) as trainer:
        facts = [trainer.step(step).values for step in range(3)]
    closed, of = (float(part) for part in facts[0]["closed_ratio"])
    assert 0.2 < closed / of < 0.8  # a random guide: of two of its cosines either may be the higher
    run = Run(spec, tmp_path / "run")
    run.folder.mkdir()
    run.go()
    assert all(0.1 < value < 0.9 for value in run.column("closed_ratio"))


def test_a_spec_is_what_it_was_once_it_is_written_down(folder):
    for spec in (pairs_spec(folder), guided_spec(folder, Guide(queries="a", documents="b", share=0.9))):
        assert parse(dump(spec)) == spec


def test_a_guide_is_of_pairs_and_has_one_bound():
    spec = "name: a\nepochs: 1\nbatch_size: 4\nlr: 1\n"
    given = ["negatives.guide.queries=a", "negatives.guide.documents=b"]
    with pytest.raises(SpecError, match=r"negatives\.guide: is of pairs, and data\.kind is images"):
        parse(spec, given)
    with pytest.raises(SpecError, match=r"negatives\.guide\.above: 0\.9 does not look at the positive"):
        parse(spec, [*given, "negatives.guide.above=0.9", "negatives.guide.margin=0.1"])
