"""Pairs of texts: every format, what becomes of bad rows, splits by index, and tokens."""

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emc2dist import files
from emc2dist.cli import main
from emc2dist.config import Data
from emc2dist.data.catalogue import MANIFEST, UNFINISHED
from emc2dist.data.texts import ingest as ingesting
from emc2dist.data.texts import tables
from emc2dist.data.texts.collection import Collection, Example, Passage
from emc2dist.data.texts.documents import open_documents
from emc2dist.data.texts.ingest import ingest_pairs
from emc2dist.data.texts.manifest import read_pairs_manifest
from emc2dist.data.texts.pairs import load_tokenizer, open_pairs
from emc2dist.data.texts.sources import is_pairs, is_texts
from emc2dist.data.texts.tokenizer import MASK, TokenView, train_tokenizer, vocabulary_size
from emc2dist.errors import DataError, SpecError, StorageError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
FRUIT = [("red fruit", "apple"), ("yellow fruit", "banana"), ("long drink", "lemonade")]


def jsonl(file: Path, rows) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return file


def parquet(file: Path, **columns) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)
    return file


def pairs_of(rows=FRUIT, **more):
    return [{"query": query, "document": document, **more} for query, document in rows]


def beir(root: Path) -> Path:
    jsonl(root / "corpus.jsonl", [{"_id": f"d{n}", "title": "On", "text": text} for n, (_, text) in enumerate(FRUIT)])
    jsonl(root / "queries.jsonl", [{"_id": f"q{n}", "text": text} for n, (text, _) in enumerate(FRUIT)])
    for split, rows in {"train": ["q0\td0\t1", "q1\td1\t2"], "test": ["q2\td2\t1", "q2\td0\t0"]}.items():
        jsonl(root / f"qrels/{split}.tsv", ["query-id\tcorpus-id\tscore", *rows])
    return root


@pytest.fixture
def run(tmp_path):
    """Ingest in this process; returns the summary and a function that opens a split."""

    def run(source, dest=tmp_path / "set", **options):
        result = ingest_pairs(str(source), str(dest), **{"vocabulary": 512, **options})
        return result, lambda split="train", **more: open_pairs(Data(path=str(dest), **more), split)

    return run


def told(pairs) -> dict[str, list[str]]:
    """The documents of each query, sorted."""
    found: dict[str, list[str]] = {}
    for query, document in pairs.relevance:
        [text], [answer] = pairs.queries.get(np.array([query])), pairs.documents.get(np.array([document]))
        found.setdefault(text, []).append(answer)
    return {query: sorted(documents) for query, documents in found.items()}


def every(texts) -> list[str]:
    return sorted(texts.get(np.arange(len(texts))))


# What comes out.


def test_pairs_come_out_as_a_bijection_in_which_both_sides_have_the_same_row(run, tmp_path):
    result, opened = run(jsonl(tmp_path / "pairs.jsonl", pairs_of()))
    pairs = opened()
    assert told(pairs) == {query: [document] for query, document in FRUIT}
    assert pairs.is_bijection
    assert pairs.relevance.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert (pairs.relevance.dtype, pairs.scores.tolist(), pairs.scores.dtype) == (np.int64, [1, 1, 1], np.int16)
    assert len(pairs) == 6
    assert (result["queries"], result["documents"], result["relevance"]) == ({"train": 3}, {"train": 3}, 3)


def test_the_files_are_those_of_the_manifest(run, tmp_path):
    result, _ = run(jsonl(tmp_path / "pairs.jsonl", pairs_of()))
    dest = tmp_path / "set"
    manifest = read_pairs_manifest(files.at(dest))
    assert {name: hashlib.sha256((dest / name).read_bytes()).hexdigest() for name in manifest.files} == manifest.files
    names = ["documents.parquet", "ingest.json", "manifest.json", "queries.parquet", "relevance.parquet"]
    assert sorted(file.name for file in dest.iterdir()) == [*names, "tokenizer.json"]
    assert result["bytes"] == sum((dest / name).stat().st_size for name in manifest.files)
    assert manifest.text_bytes == sum(len(text) for pair in FRUIT for text in pair)
    assert pq.read_table(dest / "queries.parquet").column_names == ["id", "text", "split"]


def test_beirs_files_have_splits_by_judgements_and_documents_of_all(run, tmp_path):
    result, opened = run(beir(tmp_path / "beir"))
    assert (result["queries"], result["documents"]) == ({"train": 2, "test": 1}, {"": 3})
    assert told(opened()) == {"red fruit": ["On apple"], "yellow fruit": ["On banana"]}
    assert sorted(opened().scores.tolist()) == [1, 2]
    assert told(opened("test")) == {"long drink": ["On lemonade"]}
    assert every(opened("test").documents) == ["On apple", "On banana", "On lemonade"]
    assert opened("validation") is None


def test_a_query_that_no_document_answers_is_left_out_and_said(run, tmp_path):
    source = beir(tmp_path / "beir")
    jsonl(source / "qrels/train.tsv", ["query-id\tcorpus-id\tscore", "q0\td0\t1", "q1\td1\t0"])
    pairs = run(source)[1]()
    assert told(pairs) == {"red fruit": ["On apple"]}
    assert "train: 1 of 2 queries have no document and are left out" in pairs.remarks


def test_queries_that_are_judged_nowhere_are_left_out_and_said(run, tmp_path):
    source = beir(tmp_path / "beir")
    (source / "qrels/test.tsv").unlink()
    result, opened = run(source)
    assert "1 of 3 queries are judged nowhere and left out" in result["remarks"]
    assert every(opened().queries) == ["red fruit", "yellow fruit"]


def test_a_corpus_in_parquet_tells_splits_in_a_column(run, tmp_path):
    parquet(tmp_path / "s/corpus.parquet", id=["1", "2"], title=["", "A"], text=["one", "two"])
    parquet(tmp_path / "s/queries.parquet", id=["7", "8"], text=["uno", "dos"], split=["train", "dev"])
    parquet(tmp_path / "s/qrels.parquet", query_id=[7, 8], doc_id=["1", "2"], score=pa.array([1, 1], pa.int8()))
    result, opened = run(tmp_path / "s")
    assert result["queries"] == {"train": 1, "validation": 1}
    assert told(opened("val")) == {"dos": ["A two"]}


@pytest.mark.parametrize("names", [("anchor", "positive"), ("question", "answer"), ("Docstring", "Code")])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_columns_are_known_by_name_whatever_their_order(run, tmp_path, names, kind):
    query, document = names
    rows = [{"extra": "x", document: answer, query: text, "negative_1": f"no {answer}"} for text, answer in FRUIT]
    file = tmp_path / f"pairs.{kind}"
    if kind == "jsonl":
        jsonl(file, rows)
    elif kind == "parquet":
        parquet(file, **{name: [row[name] for row in rows] for name in rows[0]})
    else:
        separator = {"csv": ",", "tsv": "\t"}[kind]
        jsonl(file, [separator.join(rows[0]), *(separator.join(row.values()) for row in rows)])
    result, opened = run(file)
    assert told(opened()) == {text: [answer] for text, answer in FRUIT}
    assert every(opened().documents) == sorted([a for _, a in FRUIT] + [f"no {a}" for _, a in FRUIT])
    assert not opened().is_bijection
    assert "columns that are not read: extra" in result["remarks"]


def test_tevatrons_records_name_passages_and_their_negatives(run, tmp_path):
    record = {
        "query_id": "1",
        "query": "red fruit",
        "positive_passages": [{"docid": "a", "title": "Apple", "text": "is red"}, {"docid": "c", "text": "cherry"}],
        "negative_passages": [{"docid": "b", "title": "", "text": "banana"}],
    }
    again = {**record, "query_id": "2", "query": "ripe", "positive_passages": record["positive_passages"][:1]}
    _, opened = run(jsonl(tmp_path / "train.jsonl", [record, again]))
    assert told(opened()) == {"red fruit": ["Apple is red", "cherry"], "ripe": ["Apple is red"]}
    assert every(opened().documents) == ["Apple is red", "banana", "cherry"]
    ids = pq.read_table(tmp_path / "set/documents.parquet")["id"].to_pylist()
    assert sorted(ids) == ["a", "b", "c"]


def test_flag_embeddings_records_are_lists_of_texts(run, tmp_path):
    record = {"query": "red fruit", "pos": ["apple", "cherry"], "neg": ["banana", "apple"], "prompt": "p"}
    result, opened = run(jsonl(tmp_path / "train.jsonl", [record]))
    assert told(opened()) == {"red fruit": ["apple", "cherry"]}
    assert every(opened().documents) == ["apple", "banana", "cherry"]
    assert "1 negatives are positives of the same query, and count as these" in result["remarks"]


def test_a_csv_may_have_semicolons_a_byte_order_mark_and_dos_lines(run, tmp_path):
    (tmp_path / "p.csv").write_bytes("\ufeffquery;document\r\na, b;c\r\n".encode())
    assert told(run(tmp_path / "p.csv")[1]()) == {"a, b": ["c"]}


def test_values_in_quotes_go_over_lines(run, tmp_path):
    file = jsonl(tmp_path / "p.csv", ["query,document", '"a ""b"", c","one\ntwo"'])
    assert told(run(file)[1]()) == {'a "b", c': ["one\ntwo"]}


def test_splits_are_those_of_files_or_of_a_column(run, tmp_path):
    for split, pair in zip(("train", "valid", "test"), FRUIT, strict=True):
        jsonl(tmp_path / f"s/data/{split}-0.jsonl", pairs_of([pair]))
    result, opened = run(tmp_path / "s")
    assert result["queries"] == {"train": 1, "test": 1, "validation": 1}
    assert (told(opened("test")), every(opened("test").documents)) == ({"long drink": ["lemonade"]}, ["lemonade"])
    whole = open_pairs(Data(path=str(tmp_path / "set")), "test", corpus=True)
    assert every(whole.documents) == ["apple", "banana", "lemonade"]
    assert not whole.is_bijection
    jsonl(tmp_path / "column.jsonl", [*pairs_of(FRUIT[:2], split="train"), *pairs_of(FRUIT[2:], split="test")])
    assert run(tmp_path / "column.jsonl", tmp_path / "other")[0]["queries"] == {"train": 2, "test": 1}


def test_a_file_by_itself_trains_whatever_its_name_which_is_said(run, tmp_path):
    said = "test.jsonl: all of it trains, though its name tells test: names in what is given tell splits"
    result, _ = run(jsonl(tmp_path / "test.jsonl", pairs_of()))
    assert result["queries"] == {"train": 3}
    assert said in result["remarks"]
    result, _ = run(jsonl(tmp_path / "a/test.jsonl", pairs_of(split="dev")), tmp_path / "other")
    assert said not in result["remarks"]


def test_equal_texts_are_one_and_that_is_said(run, tmp_path):
    rows = [*pairs_of([("q", "a"), ("q", "b"), ("r", "a")]), *pairs_of([("q", "a")], split="test")]
    result, opened = run(jsonl(tmp_path / "p.jsonl", rows))
    assert told(opened()) == {"q": ["a", "b"], "r": ["a"]}
    assert told(opened("test")) == {"q": ["a"]}
    assert result["documents"] == {"train": 1, "": 1}
    assert {remark for remark in result["remarks"] if not remark.startswith("vocabulary")} == {
        "1 queries repeat another of their split, 3 differ",
        "2 documents repeat another, 2 differ",
        "1 queries stand in another split, too, and are a query of each",
        "1 documents stand in several splits and are of all",
    }


def test_texts_that_bm25_cannot_find_or_be_asked_for_are_counted(run, tmp_path):
    result, _ = run(jsonl(tmp_path / "p.jsonl", pairs_of([*FRUIT, ("???", "北京"), ("погода", "-- _"), ("2", "!")])))
    assert {remark for remark in result["remarks"] if "BM25" in remark} == {
        "1 queries hold no letter and no digit, so BM25 finds nothing for them",
        "2 documents hold no letter and no digit, so BM25 finds none of them",
    }


@pytest.mark.parametrize("last", ["train", "Training set"])
def test_a_document_of_validation_and_test_alone_is_not_trained_on(run, tmp_path, last):
    held = [*pairs_of([("q", "a"), ("p", "b")], split="val"), *pairs_of([("r", "a"), ("s", "b")], split="test")]
    rows = [*held, *pairs_of([("t", "b"), ("u", "c")], split=last)]
    result, opened = run(jsonl(tmp_path / "p.jsonl", rows))
    assert every(opened().documents) == ["b", "c"]
    assert opened().is_bijection
    whole = open_pairs(Data(path=str(tmp_path / "set")), "test", corpus=True)
    assert told(whole) == {"r": ["a"], "s": ["b"]}
    assert {
        "1 documents stand in several splits and are of all",
        "1 documents stand in several splits, none of them train, and are of the first",
    } <= set(result["remarks"])
    result, opened = run(jsonl(tmp_path / "turned.jsonl", rows[::-1]), tmp_path / "other")
    assert every(opened().documents) == ["b", "c"]


def test_a_document_of_a_corpus_is_of_all_splits_though_a_query_of_one_brought_it_first():
    gathered = Collection(skip=False)
    gathered.example("row 1", Example(Passage("q"), [Passage("a")], []), "test")
    assert gathered.documents.splits == ["test"]
    gathered.document("row 2", Passage("a"))
    assert gathered.documents.splits == [""]


def test_a_limit_cuts_queries_and_of_a_bijection_their_documents(run, tmp_path):
    _, opened = run(jsonl(tmp_path / "p.jsonl", pairs_of()), keep_order=True)
    cut = opened(limit=2)
    assert told(cut) == {query: [document] for query, document in FRUIT[:2]}
    assert (len(cut.documents), cut.is_bijection) == (2, True)
    assert cut.fingerprint != opened().fingerprint == opened(limit=3).fingerprint
    _, opened = run(beir(tmp_path / "beir"), tmp_path / "other", keep_order=True)
    assert (told(opened(limit=1)), len(opened(limit=1).documents)) == ({"red fruit": ["On apple"]}, 3)


def test_the_order_is_that_of_the_seed_or_of_the_source(run, tmp_path):
    rows = [(f"q{n}", f"d{n}") for n in range(50)]
    source = jsonl(tmp_path / "p.jsonl", pairs_of(rows))
    queries = [
        run(source, tmp_path / str(n), **options)[1]().queries.get(np.arange(50))
        for n, options in enumerate([{}, {}, {"seed": 1}, {"keep_order": True}])
    ]
    assert queries[0] == queries[1] != queries[2]
    assert queries[3] == [query for query, _ in rows] != queries[0]
    assert sorted(queries[0]) == sorted(queries[2]) == sorted(queries[3])


def test_texts_are_picklable_and_asked_for_in_any_order(run, tmp_path):
    pairs = run(jsonl(tmp_path / "p.jsonl", pairs_of()))[1]()
    copy = pickle.loads(pickle.dumps(pairs))
    asked = np.array([2, 0, 2])
    assert copy.documents.get(asked) == pairs.documents.get(asked)
    assert copy.fingerprint == pairs.fingerprint
    with pytest.raises(IndexError):
        pairs.documents.get(np.array([3]))
    with pytest.raises(IndexError):
        pairs.documents.get(np.array([-1]))


# Documents alone.

BARE = {
    "corpus/corpus.jsonl": ['{"_id": "a", "title": "On", "text": "apple"}', '{"_id": "b", "text": "banana"}'],
    "rows/rows.jsonl": ['{"text": "On apple"}', '{"text": "banana"}'],
    "table/table.csv": ["text", "On apple", "banana"],
    "wiki/wiki.txt": ["On apple", "", "banana"],
}


@pytest.mark.parametrize("name", BARE)
@pytest.mark.parametrize("inner", [True, False], ids=["folder", "file"])
def test_documents_alone_are_a_set_to_train_on_without_queries(tmp_path, capsys, name, inner):
    file = jsonl(tmp_path / name, BARE[name])
    source, dest = str(file.parent if inner else file), str(tmp_path / "set")
    asked = ["--kind", "texts"] if name.endswith(".txt") else []
    assert is_texts(source) == (not asked)
    assert main(["ingest", source, dest, "--vocabulary", "512", "--json", *asked]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["queries"], result["documents"], result["relevance"]) == ({}, {"train": 2}, 0)
    assert "2 documents, no query: data.kind: texts trains on these, pairs cannot" in result["remarks"]
    opened = open_documents(Data(kind="texts", path=dest))
    assert every(opened.texts) == ["On apple", "banana"]
    assert opened.remarks == result["remarks"]
    assert len(open_documents(Data(kind="texts", path=dest, limit=1)).texts) == 1
    if name.startswith("corpus"):
        assert sorted(opened.texts.ids(np.arange(2))) == ["a", "b"]
    with pytest.raises(DataError, match=r"holds documents without queries; set data\.kind: texts, or ingest pairs"):
        open_pairs(Data(path=dest), "train")
    assert open_pairs(Data(path=dest), "test", corpus=True) is None


def test_documents_alone_have_the_splits_of_their_files_or_column(run, tmp_path):
    jsonl(tmp_path / "s/train.txt", ["apple", "banana"])
    jsonl(tmp_path / "s/test.txt", ["cherry"])
    result, _ = run(tmp_path / "s", alone=True)
    assert result["documents"] == {"train": 2, "test": 1}
    assert every(open_documents(Data(kind="texts", path=str(tmp_path / "set"))).texts) == ["apple", "banana"]
    rows = [{"body": "apple", "part": "dev", "x": 1}]
    result, _ = run(
        jsonl(tmp_path / "p.jsonl", rows), tmp_path / "other", alone=True, columns="document=body,split=part"
    )
    assert result["documents"] == {"validation": 1}
    assert "columns that are not read: x" in result["remarks"]
    with pytest.raises(DataError, match="has no documents of split train, but validation"):
        open_documents(Data(kind="texts", path=str(tmp_path / "other")))


def test_what_holds_no_documents_alone_is_refused(run, tmp_path):
    other = jsonl(tmp_path / "p.jsonl", [{"title": "t", "body": "b"}])
    with pytest.raises(DataError, match=r"no column positive, .* for the document, among title, body; say which"):
        run(other, alone=True)
    with pytest.raises(DataError, match="code and answer could all be the document"):
        run(jsonl(tmp_path / "two.jsonl", [{"code": "t", "answer": "b"}]), alone=True)
    with pytest.raises(DataError, match="--columns document=text: there is no such column, but title, body"):
        run(other, alone=True, columns="document=text")
    with pytest.raises(SpecError, match="--columns query=title: documents by themselves have no query"):
        run(other, alone=True, columns="query=title,document=body")
    with pytest.raises(DataError, match=r"p\.txt: no document \(no rows\)"):
        run(jsonl(tmp_path / "p.txt", [""]), alone=True)
    with pytest.raises(DataError, match=r"holds a corpus and no queries; .* --kind texts"):
        run(jsonl(tmp_path / "corpus/corpus.jsonl", BARE["corpus/corpus.jsonl"]).parent)


def test_a_table_of_addresses_or_beside_images_or_queries_is_none_of_documents_alone(tmp_path):
    assert not is_texts(str(parquet(tmp_path / "laion/a.parquet", url=["http"], text=["t"]).parent))
    assert not is_texts(str(beir(tmp_path / "beir")))
    beside = jsonl(tmp_path / "images/a.jsonl", [{"text": "t"}]).parent
    assert is_texts(str(beside))
    (beside / "a.png").write_bytes(b"")
    assert not is_texts(str(beside))


# What is refused, or dropped.

BAD = {
    '{"query": "", "document": "d"}': "the query is empty",
    '{"query": "q", "document": " "}': "the document is empty",
    '{"query": "q", "document": null}': "the document is missing",
    '{"query": "q", "document": 3}': "the document is no text",
    '{"query": "q", "document": "\\ud800"}': "the document is not UTF-8",
    '{"query": "same", "document": "same"}': "the document is the query's own text",
    '{"query": "q", "document": "d", "score": 1e9}': "the score 1000000000.0 is no whole number from -32768 to 32767",
    '{"query": "q", "document": "d", "score": "x"}': "the score 'x' is no number",
    '{"query": "q", "document": "d", "score": NaN}': "the score nan is no whole number from -32768 to 32767",
    '{"query": "q", "pos": []}': "no document that answers the query",
    '{"query": "q", "pos": "d"}': None,
    '{"query": "q", "positive_passages": [{"docid": [], "text": "d"}]}': "the id [] is neither text nor a whole number",
    '{"query": "q", "positive_passages": [{"docid": "' + "x" * 1025 + '", "text": "d"}]}': "the id 'xxx",
    '{"query": "q", "document"': "no JSON",
    "[" * 10_000: "no JSON",
    "[1]": "no JSON object",
}


@pytest.mark.parametrize("line", BAD, ids=lambda line: line[:60])
def test_a_bad_row_stops_the_work_by_file_and_row_or_is_dropped_and_counted(run, tmp_path, line):
    source = jsonl(tmp_path / "p.jsonl", [*pairs_of(), line])
    what = BAD[line]
    if what is None:  # a text where a list is meant
        assert told(run(source)[1]())["q"] == ["d"]
        return
    with pytest.raises(DataError, match="--skip-unreadable") as raised:
        run(source)
    assert str(raised.value).startswith(f"{source}, line 4: {what}")
    assert not (tmp_path / "set" / MANIFEST).exists()
    result, opened = run(source, skip_unreadable=True)
    assert result["dropped"] == 1
    assert f"1 rows were dropped ({source}, line 4: {what}" in " ".join(result["remarks"])
    assert len(told(opened())) == 3


def test_scores_that_are_fractions_are_similarities_and_no_row_is_left_out_for_them(run, tmp_path):
    rows = [{"query": f"q {n}", "document": f"d {n}", "score": n / 2} for n in range(6)]
    what = "line 2: the score 0.5 is a fraction, as similarities are; choose from .* --columns unread=COLUMN$"
    for skip in (False, True):
        with pytest.raises(DataError, match=what):
            run(jsonl(tmp_path / "p.jsonl", rows), skip_unreadable=skip)
    source = beir(tmp_path / "beir")
    jsonl(source / "qrels/train.tsv", ["query-id\tcorpus-id\tscore", "q0\td0\t0.5"])
    with pytest.raises(DataError, match=r"train\.tsv, line 2: the score '0\.5' is a fraction, .* 0 for others$"):
        run(source, skip_unreadable=True)


def test_scores_above_one_are_counted(run, tmp_path):
    rows = [{"query": f"q {n}", "document": f"d {n}", "score": n % 3 - 1 + (n == 8)} for n in range(9)]
    assert (
        "9 judgements have scores, the highest 3 of -1, 3 of 0, 2 of 1, 1 of 2; each above 0 is an answer"
        in (run(jsonl(tmp_path / "p.jsonl", rows))[0]["remarks"])
    )
    told = run(jsonl(tmp_path / "few.jsonl", rows[:8]), tmp_path / "other")[0]["remarks"]
    assert not any("have scores" in remark for remark in told)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_bytes_that_are_not_utf8_are_found_in_their_row(run, tmp_path, kind):
    file = tmp_path / f"p.{kind}"
    if kind == "parquet":
        offsets = pa.py_buffer(np.array([0, 1, 3], np.int32).tobytes())
        bad = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"a\xff\xff")])
        parquet(file, query=["q", "r"], document=bad)
        where = "row 1"
    else:
        rows = {"jsonl": b'{"query": "q", "document": "a"}\n{"query": "r", "document": "\xff"}\n'}
        file.write_bytes(rows.get(kind, b"query,document\nq,a\nr,\xff\n"))
        where = {"jsonl": "line 2", "csv": "line 3"}[kind]
    with pytest.raises(DataError, match=f"{where}: the document is not UTF-8"):
        run(file)
    assert told(run(file, skip_unreadable=True)[1]()) == {"q": ["a"]}


@pytest.mark.parametrize(("size", "what"), [(2**20 + 1, "1,048,576 are the most"), (11 * 2**20, "a line of more than")])
def test_a_text_or_a_line_that_is_too_long_is_refused_or_dropped(run, tmp_path, size, what):
    source = jsonl(tmp_path / "p.jsonl", [*pairs_of(), json.dumps({"query": "q", "document": "x" * size}), *pairs_of()])
    with pytest.raises(DataError, match=f"line 4: .*{what}"):
        run(source)
    assert run(source, skip_unreadable=True)[0]["dropped"] == 1


def test_a_text_of_the_most_bytes_is_taken(run, tmp_path):
    source = jsonl(tmp_path / "p.jsonl", pairs_of([("q", "ab " * (2**20 // 3))]))
    assert run(source)[0]["relevance"] == 1


def test_rows_of_parquet_are_counted_over_all_of_the_file(run, tmp_path):
    texts = [f"q{n}" for n in range(3000)]
    source = parquet(tmp_path / "p.parquet", query=texts, document=[f"d {text}" for text in texts[:-1]] + [""])
    with pytest.raises(DataError, match="row 2999: the document is empty"):
        run(source)


def test_more_text_than_is_held_in_memory_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr("emc2dist.data.texts.collection.MOST_BYTES", 20)
    with pytest.raises(DataError, match="line 2: more than 20 bytes of text"):
        run(jsonl(tmp_path / "p.jsonl", pairs_of()), skip_unreadable=True)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("q9\td0\t1", "no query has the id 'q9'"),
        ("q0\td9\t1", "no document has the id 'd9'"),
        ("q0\td0", "2 values under 3 headings"),
    ],
)
def test_judgements_of_what_is_not_there_are_refused_or_dropped(run, tmp_path, row, what):
    source = beir(tmp_path / "beir")
    with (source / "qrels/train.tsv").open("a") as file:
        file.write(f"{row}\n")
    with pytest.raises(DataError, match=f"train.tsv, line 4: {what}"):
        run(source)
    assert run(source, skip_unreadable=True)[0]["dropped"] == 1


def test_an_id_that_stands_for_two_texts_is_refused(run, tmp_path):
    source = beir(tmp_path / "beir")
    with (source / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "d0", "text": "another"}\n')
    with pytest.raises(DataError, match="line 4: the id 'd0' stands for another document already"):
        run(source)
    with (source / "queries.jsonl").open("a") as file:
        file.write('{"_id": "q0", "text": "another"}\n')
    (source / "corpus.jsonl").write_text("".join((source / "corpus.jsonl").read_text().splitlines(True)[:3]))
    with pytest.raises(DataError, match=r"queries.jsonl, line 4: the id 'q0' stands for another query"):
        run(source)


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([{"query": "q", "question": "r", "document": "d"}], "query and question could all be the query, among query"),
        ([{"query": "q", "text": "d", "document": "d"}], "text and document could all be the document"),
        ([{"query": "q", "title": "d"}], "no column positive, document, .* for the document, among query, title"),
        ([{"sentence1": "q", "sentence2": "d", "label": 0}], "label may tell which pairs belong together"),
    ],
)
def test_columns_that_do_not_tell_are_refused_and_named(run, tmp_path, rows, what):
    with pytest.raises(DataError, match=what):
        run(jsonl(tmp_path / "p.jsonl", rows))


VERDICTS = {
    "gold_label": ["entailment", "contradiction", "neutral", "-"],
    "is_duplicate": ["0", "1"],
    "belongs": [True, False],
    "grade": [1, 2, 3, 4, 5],
}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("name", VERDICTS)
def test_a_column_that_may_say_whether_a_pair_belongs_together_has_to_be_chosen_or_left(run, tmp_path, name, kind):
    values = VERDICTS[name]
    rows = [
        {"sentence1": f"q {n}", "sentence2": f"d {n}", name: values[n % len(values)], "id": n, "of": "all"}
        for n in range(2 * len(values))
    ]
    if kind == "parquet":
        file = parquet(tmp_path / "p.parquet", **{key: [row[key] for row in rows] for key in rows[0]})
    elif kind == "jsonl":
        file = jsonl(tmp_path / "p.jsonl", rows)
    else:
        file = jsonl(tmp_path / "p.csv", [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)])
    with pytest.raises(DataError, match=f"{name} may tell which pairs .* --columns score={name}, .* unread={name}$"):
        run(file)
    assert not (tmp_path / "set" / MANIFEST).exists()
    result, opened = run(file, columns=f"unread={name},unread=id")
    assert len(told(opened())) == len(rows)
    assert f"columns that are not read: {name}, id, of" in result["remarks"]


def test_columns_of_many_values_or_of_one_beside_a_score_or_of_few_rows_are_no_verdicts(run, tmp_path):
    names = [f"{where} {n}" for n in range(6) for where in ("here", "there")]
    rows = [{"query": f"q {n}", "document": f"d {n}", "six": n % 6, "one": 1, "none": None} for n in range(12)]
    assert run(jsonl(tmp_path / "p.jsonl", [row | {"name": n} for row, n in zip(rows, names, strict=True)]))
    assert run(jsonl(tmp_path / "few.jsonl", [row | {"two": row["six"] // 2} for row in rows[:5]]), tmp_path / "few")
    scored = [row | {"score": 1, "two": row["six"] % 2} for row in rows]
    assert run(jsonl(tmp_path / "scored.jsonl", scored), tmp_path / "scored")
    with pytest.raises(DataError, match=r"two has 2 values in 12 rows \('0', '1'\): two may tell"):
        run(jsonl(tmp_path / "two.jsonl", [row | {"two": row["six"] % 2} for row in rows]), tmp_path / "two")


def test_a_score_that_is_chosen_not_to_be_read_is_none(run, tmp_path):
    rows = [{"query": f"q {n}", "document": f"d {n}", "score": n / 4} for n in range(4)]
    assert run(jsonl(tmp_path / "p.jsonl", rows), columns="unread=score")[1]().scores.tolist() == [1, 1, 1, 1]
    with pytest.raises(DataError, match="--columns unread=other: there is no such column, but query, document, score"):
        run(tmp_path / "p.jsonl", tmp_path / "other", columns="unread=score,unread=other")


def test_columns_can_be_chosen(run, tmp_path):
    told_by = [{"docstring": "q", "body": "d", "label": 2, "part": "dev"}]
    told_by += [{"docstring": "r", "body": "e", "label": 0, "part": "train"}]
    rows = [{"query": "no", **row} for row in told_by]
    columns = "query=docstring,document=body,score=label,split=part"
    _, opened = run(jsonl(tmp_path / "p.jsonl", rows), columns=columns)
    assert told(opened("validation")) == {"q": ["d"]}
    assert opened("validation").scores.tolist() == [2]
    with pytest.raises(DataError, match="no query of split train has a document with a score above 0"):
        opened()
    with pytest.raises(DataError, match="there is no such column, but query, docstring, body"):
        run(tmp_path / "p.jsonl", tmp_path / "other", columns="query=nothing")


@pytest.mark.parametrize("columns", ["query", "query=", "words=a", "query=a,query=b"])
def test_columns_that_are_not_well_written_are_refused(run, tmp_path, columns):
    with pytest.raises(SpecError, match="--columns"):
        run(jsonl(tmp_path / "p.jsonl", pairs_of()), columns=columns)


def test_a_column_of_many_splits_is_refused(run, tmp_path):
    rows = [row for n in range(65) for row in pairs_of([(f"q{n}", f"d{n}")], split=f"user {n}")]
    with pytest.raises(DataError, match=r"line 65: more than 64 splits \(user 0, "):
        run(jsonl(tmp_path / "p.jsonl", rows))
    assert len(run(jsonl(tmp_path / "p.jsonl", rows[:64]))[0]["queries"]) == 64


def test_names_that_are_no_unicode_are_escaped(run, tmp_path):
    rows = [{"query": "q", "document": "d", "split": "\ud800", "\udcff": 1}, *pairs_of()]
    result, _ = run(jsonl(tmp_path / "p.jsonl", rows))
    assert result["queries"] == {"train": 3, "\\ud800": 1}
    assert "columns that are not read: \\udcff" in result["remarks"]


UNREAD = {
    "a.tsv": (
        "0\tapple\n1\tpear",
        r"if a\.tsv holds texts \(columns: 0, apple\): as pairs .* --kind pairs with --columns",
    ),
    "a.csv": (
        "sent0,sent1\na,b",
        r"if a\.csv holds texts \(columns: sent0, sent1\): as pairs .* --kind pairs with",
    ),
    "b.jsonl": (
        '{"set": ["q", "d"]}',
        r"if b\.jsonl holds texts \(columns: set\): as pairs .* --kind pairs with",
    ),
    "b.jsonl.gz": ("\x1f", r"if b\.jsonl\.gz holds texts, unpack it, and then: as pairs of texts --kind pairs"),
    "c.json": ('{"query": "q", "pos": ["d"]}\n{"query": "r"}', r"if c\.json holds texts, call it c\.jsonl, and then: "),
    "d.json": ('[{"question": "q"}]', r"if d\.json holds texts, write an object a line, as \.jsonl, and then: "),
    "e.txt": ("apple", r"if e\.txt holds a text a line, --kind texts; else give "),
}


@pytest.mark.parametrize("name", UNREAD)
def test_texts_that_are_taken_for_images_are_told_how_they_are_read(tmp_path, capsys, name):
    content, what = UNREAD[name]
    file = jsonl(tmp_path / "s" / name, [content])
    for source in (file, file.parent):
        assert main(["ingest", str(source), str(tmp_path / "set")]) == 2
        assert re.search(what, capsys.readouterr().err)


def test_a_first_line_that_is_a_row_is_said_to_be_taken_for_the_heading(run, tmp_path):
    of_rows = jsonl(tmp_path / "p.tsv", ["a query\ta document", "another\tof it"])
    taken = r"\(its first line, which is taken for the heading\); "
    with pytest.raises(DataError, match=f"for the query, among a query, a document {taken}say which"):
        run(of_rows)
    with pytest.raises(DataError, match=r"called '1' in its first line, which is taken for the heading: write "):
        run(jsonl(tmp_path / "qrels.tsv", ["1\t0\t0\t1"]))
    for row in ("q0 0 d0 1", "q0\td0\t1"):
        source = beir(tmp_path / f"beir {len(row)}")
        jsonl(source / "qrels/train.tsv", [row, row])
        with pytest.raises(
            DataError, match=f"train.tsv, line 2: no value called query-id .* {taken}write a heading above"
        ):
            run(source)
    with pytest.raises(DataError, match=r"among x{40}, y; say which"):
        run(jsonl(tmp_path / "long.jsonl", [{"x" * 99: "q", "y": "d"}]))


def test_lists_in_place_of_objects_are_told_to_be_that(run, tmp_path):
    with pytest.raises(DataError, match=r"line 1: no JSON object, but a list: name its values, as in \{\"query\": "):
        run(jsonl(tmp_path / "p.jsonl", ['["q", "d"]']))


def test_two_columns_of_one_name_are_refused(run, tmp_path):
    with pytest.raises(DataError, match="two columns are called 'query'"):
        run(jsonl(tmp_path / "p.csv", ["query,document,query", "a,b,c"]))
    pq.write_table(pa.table([["a"], ["b"], ["c"]], names=["query", "document", "query"]), tmp_path / "p.parquet")
    with pytest.raises(DataError, match="two columns are called 'query'"):
        run(tmp_path / "p.parquet")


def test_a_link_that_leads_nowhere_is_refused(run, tmp_path):
    source = jsonl(tmp_path / "s/train.jsonl", pairs_of()).parent
    (source / "test.jsonl").symlink_to("nowhere")
    with pytest.raises(StorageError, match=r"test\.jsonl: a link that leads nowhere"):
        run(source)


def test_a_quote_that_never_ends_is_refused(run, tmp_path):
    source = jsonl(tmp_path / "p.csv", ["query,document", 'q,"a', "r,b"])
    with pytest.raises(DataError, match="line 3: no row of values"):
        run(source, skip_unreadable=True)


def test_a_source_without_a_usable_row_is_refused(run, tmp_path):
    with pytest.raises(DataError, match=r"no query with a document \(1 rows were dropped"):
        run(jsonl(tmp_path / "p.jsonl", ['{"query": "", "document": "d"}']), skip_unreadable=True)
    with pytest.raises(DataError, match=r"no query with a document \(no rows\)"):
        run(jsonl(tmp_path / "empty.jsonl", []), tmp_path / "other")


# Where it is written.


def test_the_very_same_set_is_finished_already(run, tmp_path, capsys):
    source = jsonl(tmp_path / "p.jsonl", pairs_of())
    run(source)
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "set").iterdir()}
    assert run(source)[0]["relevance"] == 3
    assert "this very set is finished already" in capsys.readouterr().err
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "set").iterdir()} == before
    (tmp_path / "set" / UNFINISHED).mkdir()  # of a run that was killed at the very end
    run(source)
    assert not (tmp_path / "set" / UNFINISHED).exists()
    with pytest.raises(DataError, match="another job: seed 0 there, 1 here"):
        run(source, seed=1)
    with pytest.raises(DataError, match="another job: vocabulary"):
        run(source, vocabulary=600)


def test_a_finished_set_without_some_rows_is_said_to_be_so(run, tmp_path):
    source = jsonl(tmp_path / "p.jsonl", [*pairs_of(), "nothing"])
    run(source, skip_unreadable=True)
    with pytest.raises(DataError, match="finished already, but without 1 rows"):
        run(source)


def test_a_folder_that_holds_other_things_is_refused(run, tmp_path):
    source = jsonl(tmp_path / "p.jsonl", pairs_of())
    jsonl(tmp_path / "other/notes.txt", ["mine"])
    with pytest.raises(DataError, match=r"holds notes\.txt, and is no set of pairs"):
        run(source, tmp_path / "other")
    (tmp_path / "source/inner").mkdir(parents=True)
    with pytest.raises(DataError, match="is the source, or lies in it"):
        run(jsonl(tmp_path / "source/p.jsonl", pairs_of()).parent, tmp_path / "source/inner")


def test_what_was_interrupted_is_no_set_and_is_written_again(run, tmp_path, monkeypatch):
    source = jsonl(tmp_path / "p.jsonl", pairs_of())

    def full(*_, **__):
        raise DataError("disk full")

    monkeypatch.setattr(ingesting, "PairsManifest", full)
    with pytest.raises(DataError, match="disk full"):
        run(source)
    with pytest.raises(DataError, match="an unfinished ingest; run the same"):
        open_pairs(Data(path=str(tmp_path / "set")), "train")
    monkeypatch.undo()
    assert run(source)[1]().is_bijection
    assert not (tmp_path / "set" / UNFINISHED).exists()


def test_a_set_that_was_changed_is_refused(run, tmp_path):
    _, opened = run(jsonl(tmp_path / "p.jsonl", pairs_of()))
    for name in ("documents.parquet", "relevance.parquet"):
        content = (tmp_path / "set" / name).read_bytes()
        (tmp_path / "set" / name).write_bytes(content[:-9] + b"x" + content[-8:])
        with pytest.raises(DataError, match=f"{name}: not the file that manifest.json tells of"):
            opened()
        (tmp_path / "set" / name).write_bytes(content)
    (tmp_path / "set/tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json: not the file"):
        load_tokenizer(Data(path=str(tmp_path / "set")))
    (tmp_path / "set" / MANIFEST).write_text('{"kind": "pairs"}')
    with pytest.raises(DataError, match=r"manifest.json: version: .*; ingest the set again"):
        opened()


def test_a_set_that_does_not_fit_in_memory_is_refused(run, tmp_path, monkeypatch):
    _, opened = run(jsonl(tmp_path / "p.jsonl", pairs_of()))
    monkeypatch.setattr("emc2dist.data.texts.pairs.MOST_BYTES", 40)
    with pytest.raises(DataError, match="50 bytes of text, and 40 are the most"):
        opened()


def test_a_pointer_of_git_lfs_is_told_as_such(run, tmp_path):
    source = jsonl(tmp_path / "p.jsonl", ["version https://git-lfs.github.com/spec/v1"])
    with pytest.raises(DataError, match="fetch that with `git lfs pull`"):
        run(source)


def test_a_set_of_images_or_none_is_refused_and_names_the_kind(tmp_path):
    data = Data(path=str(tmp_path))
    with pytest.raises(DataError, match=r"holds no set of pairs .* data\.kind: images"):
        open_pairs(data, "train")
    (tmp_path / MANIFEST).write_text('{"version": "1", "classes": [], "splits": {}}')
    with pytest.raises(DataError, match=r"is a set of images, and data\.kind is pairs"):
        open_pairs(data, "train")


def test_a_set_without_training_queries_is_said_and_opens_for_the_rest(run, tmp_path):
    result, opened = run(jsonl(tmp_path / "p.jsonl", pairs_of(split="test")))
    assert "no query is of split train, but of test: nothing can be trained on it" in result["remarks"]
    assert opened("test").is_bijection
    with pytest.raises(DataError, match="has no queries of split train, but test"):
        opened()


def test_a_set_on_s3_is_the_one_on_disk(run, tmp_path, s3):
    source = jsonl(tmp_path / "p.jsonl", pairs_of())
    _, here = run(source)
    _, there = run(source, f"{s3.uri}/set")
    assert told(there()) == told(here())
    assert there().fingerprint == here().fingerprint
    assert load_tokenizer(Data(path=f"{s3.uri}/set")) == load_tokenizer(Data(path=str(tmp_path / "set")))


# The command.


def test_the_command_tells_pairs_from_images(tmp_path, capsys):
    source = jsonl(tmp_path / "p.jsonl", pairs_of())
    assert main(["ingest", str(source), str(tmp_path / "set"), "--vocabulary", "512", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["queries"] == {"train": 3}
    assert main(["ingest", str(source), str(tmp_path / "other"), "--classes", "imagenet100"]) == 2
    assert "--classes: is for sets of images" in capsys.readouterr().err
    assert main(["ingest", str(tmp_path), str(tmp_path / "other"), "--kind", "flat", "--vocabulary", "600"]) == 2
    assert "--vocabulary: is of texts" in capsys.readouterr().err
    assert main(["ingest", str(tmp_path / "set"), str(tmp_path / "copy")]) == 2
    assert "is a finished set; train on it, or copy the folder" in capsys.readouterr().err


def test_what_is_recognised_as_pairs(tmp_path):
    assert is_pairs(str(beir(tmp_path / "beir")))
    assert is_pairs(str(parquet(tmp_path / "pairs/a.parquet", query=["q"], code=["d"]).parent))
    assert not is_pairs(str(parquet(tmp_path / "vqa/a.parquet", question=["q"], answer=["a"], image=[b"jpeg"]).parent))
    assert not is_pairs(str(parquet(tmp_path / "films/a.parquet", title=["q"], genre=["d"]).parent))
    images = jsonl(tmp_path / "images/metadata.jsonl", pairs_of()).parent
    (images / "a.png").write_bytes(b"")
    assert not is_pairs(str(images))
    assert not is_pairs("s3://bucket/set")
    (images / MANIFEST).write_text("damaged")  # which is for images' readers to say
    assert not is_pairs(str(images))


def test_a_source_that_is_none_is_refused(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.txt").write_text("q d")
    jsonl(tmp_path / "unjudged/corpus.jsonl", ['{"_id": "1", "text": "d"}'])
    jsonl(tmp_path / "unjudged/queries.jsonl", ['{"_id": "1", "text": "q"}'])
    jsonl(tmp_path / "nameless/corpus.jsonl", ['{"text": "d"}'])
    jsonl(tmp_path / "nameless/queries.jsonl", ['{"_id": "1", "text": "q"}'])
    jsonl(tmp_path / "nameless/qrels.jsonl", [])
    for source, what in {
        "none": "no such file or folder",
        "empty": r"holds no \.parquet, \.jsonl, \.csv, \.tsv",
        "words.txt": r"is no \.parquet, \.jsonl, \.csv, \.tsv",
        "unjudged": "holds a corpus and queries, and no judgements",
        "nameless": "line 1: no value called _id or id or docid .*, but text; call one so",
    }.items():
        with pytest.raises(DataError, match=what):
            run(tmp_path / source)
    with pytest.raises(DataError, match="pairs are read from a disk"):
        run("s3://bucket/pairs")
    with pytest.raises(SpecError, match=r"--columns: .* is a corpus"):
        run(beir(tmp_path / "beir"), columns="query=text")


def test_files_that_are_not_read_are_said(run, tmp_path, capsys):
    source = jsonl(tmp_path / "s/train.jsonl", pairs_of()).parent
    for name in ("README.md", "more.jsonl", ".hidden.jsonl"):
        (source / name).write_text("no JSON")
    remarks = run(source)[0]["remarks"]
    assert "1 other files were passed over (README.md)" in remarks
    assert "1 other files were passed over (README.md)" in capsys.readouterr().err.splitlines()
    assert any(remark.startswith("1 files belong to no split and were left out (more.jsonl)") for remark in remarks)


# Real sets, the first rows.


def shortened(name: str, table: str, rows: int, into: Path) -> Path:
    if not (SHARED / name / table).exists():
        pytest.skip(f"no {SHARED / name}")
    into.mkdir(exist_ok=True)
    pq.write_table(pq.read_table(SHARED / name / table).slice(0, rows), into / table)
    return into


def test_pylibs_is_a_bijection(run, tmp_path):
    result, opened = run(shortened("pylibs", "pairs.parquet", 300, tmp_path / "pylibs"))
    train = opened()
    first = pq.read_table(tmp_path / "pylibs/pairs.parquet").to_pylist()
    assert told(train) == {row["query"]: [row["code"]] for row in first if row["split"] == "train"}
    assert train.is_bijection
    assert "columns that are not read: name, file, line, package" in result["remarks"]


@pytest.mark.parametrize("name", ["scifact", "cosqa"])
def test_a_corpus_with_judgements_is_as_its_tables_say(run, tmp_path, name):
    source = shortened(name, "queries.parquet", 2000, tmp_path / name)
    shortened(name, "qrels.parquet", 2000, source)
    shortened(name, "corpus.parquet", 10_000, source)
    _, opened = run(source)
    texts = {
        row["id"]: f"{row['title']} {row['text']}".strip()
        for row in pq.read_table(source / "corpus.parquet").to_pylist()
    }
    queries = {row["id"]: row["text"] for row in pq.read_table(source / "queries.parquet").to_pylist()}
    expected: dict[str, set[str]] = {}
    for row in pq.read_table(source / "qrels.parquet").to_pylist():
        if row["split"] == "test":
            expected.setdefault(queries[row["query_id"]], set()).add(texts[row["doc_id"]])
    assert told(opened("test")) == {query: sorted(documents) for query, documents in expected.items()}


# Tokens.

CODE = ["def maxPool2d(x_in): return HTTPServer", "the max pool of a server", "naïve café 東京 IDs"]


def test_a_tokenizer_is_the_same_in_any_process_and_for_any_order():
    trained = train_tokenizer(CODE, 600)
    script = f"from emc2dist.data.texts.tokenizer import train_tokenizer as t\nprint(t({CODE[::-1]!r}, 600), end='')"
    again = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert again.stdout == trained
    assert vocabulary_size(trained) <= 600


def test_code_and_prose_share_words_in_lower_case():
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(train_tokenizer(CODE * 5, 600))
    words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(
        tokenizer.normalizer.normalize_str("maxPool2d max_pool HTTPServer IDs 1234 ﬁ")
    )]  # fmt: skip
    assert [word.removeprefix("Ġ") for word in words] == [
        "max", "pool", "2", "d", "max", "_", "pool", "http", "server", "ids", "123", "4", "fi",
    ]  # fmt: skip
    assert words[0] == "Ġmax"


def test_views_are_tokens_from_one_and_padding_is_zero():
    from tokenizers import Tokenizer

    trained = train_tokenizer(CODE, 600)
    view = TokenView(trained, 12)
    tokens = view(["max pool", "", "maxPool " * 100], np.zeros((2, 3), np.int64))
    assert (tokens.shape, str(tokens.dtype)) == ((2, 3, 12), "torch.int32")
    assert (tokens[0] == tokens[1]).all()
    kept = [row[row > 0] - 1 for row in tokens[0]]
    assert Tokenizer.from_str(trained).decode(kept[0].tolist()).strip() == "max pool"
    assert (tokens[0, 0, len(kept[0]) :] == 0).all()
    assert [len(row) for row in kept[1:]] == [0, 12]
    assert tokens.max() <= vocabulary_size(trained)


def test_any_bytes_come_back_from_their_tokens():
    from tokenizers import Tokenizer

    trained = train_tokenizer(["only ascii"], 512)
    text = "наука 東京 ∑ \N{PILE OF POO}"
    [tokens] = TokenView(trained, 200)([text], np.zeros((1, 1), np.int64))[0]
    assert Tokenizer.from_str(trained).decode((tokens[tokens > 0] - 1).tolist()).split() == text.split()


def test_of_a_text_no_more_is_looked_at_than_64_characters_for_each_token():
    view = TokenView(train_tokenizer(CODE, 600), 4)
    tokens = view([" " * 256 + "max", " " * 253 + "max"], np.zeros((1, 2), np.int64))[0]
    assert (tokens > 0).any(1).tolist() == [False, True]


def test_a_tokenizer_is_trained_on_the_training_texts_and_on_so_many_at_most(run, tmp_path, monkeypatch):
    rows = [*pairs_of([("max", "pool")]), *pairs_of([("зима", "лето")] * 9, split="test")]
    run(jsonl(tmp_path / "p.jsonl", rows))
    assert load_tokenizer(Data(path=str(tmp_path / "set"))) == train_tokenizer(["max", "pool"], 512)
    monkeypatch.setattr(tables, "_MOST_TEXTS", 4)
    result, _ = run(jsonl(tmp_path / "p.jsonl", pairs_of()), tmp_path / "other")
    assert "the tokenizer is trained on 4 of 6 texts, drawn at random" in result["remarks"]


def test_a_prompt_stands_before_each_text_and_a_mask_is_no_text():
    from tokenizers import Tokenizer

    trained = train_tokenizer(CODE, 600)
    seeds = np.zeros((1, 1), np.int64)
    assert (TokenView(trained, 20, "pool: ")(["max"], seeds) == TokenView(trained, 20)(["pool: max"], seeds)).all()
    mask = Tokenizer.from_str(trained).token_to_id(MASK)
    assert mask + 1 not in TokenView(trained, 20)([f"a {MASK} b"], seeds)


def test_tokens_are_made_on_the_thread_that_asks():
    script = """if True:
        import os, numpy, torch
        from emc2dist.data.texts.tokenizer import TokenView, train_tokenizer
        before = len(os.listdir("/proc/self/task"))
        TokenView(train_tokenizer(["a b"] * 1000, 512), 4)(["a b"] * 1000, numpy.zeros((1, 1000), numpy.int64))
        assert len(os.listdir("/proc/self/task")) == before
    """
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, env=environment)


def test_a_view_is_picklable():
    view = TokenView(train_tokenizer(CODE, 600), 8, "a ")
    seeds = np.zeros((1, 2), np.int64)
    assert (pickle.loads(pickle.dumps(view))(CODE[:2], seeds) == view(CODE[:2], seeds)).all()


def test_what_a_tokenizer_adds_is_within_the_length():
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_str(train_tokenizer(CODE, 600))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{MASK} $A {MASK}", special_tokens=[(MASK, 0)])
    tokenizer.enable_padding(length=50)
    tokens = TokenView(tokenizer.to_str(), 6)(["max " * 50, "max"], np.zeros((1, 2), np.int64))[0]
    assert tokens[:, 0].tolist() == [1, 1]
    assert tokens[0, 5] == 1
    assert tokens.shape == (2, 6)
    assert tokens[1, -1] == 0
    with pytest.raises(SpecError, match="a length of 2 has no room"):
        TokenView(tokenizer.to_str(), 2)


@pytest.mark.parametrize("size", [0, 511, 2**20 + 1])
def test_a_vocabulary_out_of_range_is_refused(run, tmp_path, size):
    with pytest.raises(SpecError, match="--vocabulary"):
        run(jsonl(tmp_path / "p.jsonl", pairs_of()), vocabulary=size)


def test_without_the_package_one_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(SpecError, match=r"pip install 'emc2dist\[text\]'"):
        train_tokenizer(CODE, 600)


def test_a_vocabulary_reaches_to_the_highest_number_though_some_are_left_out():
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"max": 4, "pool": 9}, "max"))
    assert vocabulary_size(words.to_str()) == 10
    words.add_special_tokens(["[MASK]"])
    assert vocabulary_size(words.to_str()) == max(words.get_vocab().values()) + 1


def test_what_is_no_tokenizer_is_refused():
    with pytest.raises(DataError, match=r"tokenizer\.json: is no tokenizer"):
        TokenView("{}", 8)


def test_named_negatives_are_those_of_their_queries_whatever_the_order_of_rows(tmp_path):
    """Of a bijection documents stand where their queries do, so what is named moves with them."""
    lines = [{"query": f"ask {n}", "document": f"tell {n}", "negative": f"tell {(n + 2) % 7}"} for n in range(7)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ingest_pairs(str(tmp_path / "pairs.jsonl"), str(tmp_path / "set"), vocabulary=512, seed=3)
    pairs = open_pairs(Data(kind="pairs", path=str(tmp_path / "set")), "train")
    assert pairs.is_bijection
    assert len(pairs.negatives) == 7
    for query, document in pairs.negatives:
        asked, told = pairs.queries.get(np.array([query]))[0], pairs.documents.get(np.array([document]))[0]
        assert int(told.split()[1]) == (int(asked.split()[1]) + 2) % 7
