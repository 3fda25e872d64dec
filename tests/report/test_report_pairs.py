"""The report of a run over pairs, and what other commands say of it."""

import html
import re

import numpy as np
import pytest
from run.trained_pairs import ingest, rows, trained

from emc2dist.cli import main
from emc2dist.data.texts.pairs import open_pairs
from emc2dist.report.page import report
from emc2dist.report.runs import ReportedRun
from emc2dist.report.texts import TextChains

MARKUP = "<script>alert(1)</script>"
LONG = "word " * 100


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run over 24 pairs, one document of which is markup, and one query long, with a sign not to be seen."""
    table = rows()
    table[3]["document"] = f"{MARKUP} {table[3]['document']}"
    table[5]["query"] = f"which\n\u202eevil {table[5]['query']} {LONG}"
    data = ingest(tmp_path_factory.mktemp("sets") / "pairs", [*table, *rows("test")])
    return trained(tmp_path_factory.mktemp("runs"), data)


@pytest.fixture(scope="module")
def found(run):
    """The chains of the run, as the report reads them."""
    (opened,) = ReportedRun.open_all([run], None)
    return TextChains.of(opened), opened


def test_its_numbers_are_those_of_the_chains(found):
    chains, run = found
    pairs = open_pairs(run.spec.data, "train")
    sides = [side.get(np.arange(len(side))) for side in (pairs.queries, pairs.documents)]
    state = run.newest.table("negatives")["state"][: len(sides[0]), 0] - len(sides[0])
    assert {(one.text, one.negatives[0].text) for one in chains.mined} == {
        (sides[0][row], sides[1][held]) for row, held in enumerate(state)
    }
    scores = {one.text: (one.positives[0].score, one.negatives[0].score) for one in chains.mined}
    assert chains.hardness == pytest.approx(np.mean([negative for _, negative in scores.values()]))
    assert chains.above == np.mean([negative > answer for answer, negative in scores.values()])
    assert chains.held == 1
    assert len(chains.between) == 24 * 23  # no query with its own answer


def test_uniform_pairs_are_of_queries_with_documents_that_do_not_answer(found):
    chains, _ = found
    others = [passage.score for one in chains.mined for passage in one.negatives]
    seen = np.sort(chains.between)
    assert all(np.isclose(seen, score, atol=1e-5).any() for score in others)


def test_texts_are_cut_and_escaped_and_each_stands_with_its_negative(found, run, tmp_path):
    chains, _ = found
    written = report([run], out=tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page
    cells = [html.unescape(cell) for cell in re.findall("<td>(.*?)</td>", page)]
    table = chains.table()
    assert len(table) == 12
    for row in table:
        assert list(row) == cells[cells.index(row[0]) :][:6]
        assert all(len(text) <= 200 and text.isprintable() for text in row)
    assert any(picture.endswith("chains-similarity.png") for picture in written["pictures"])


def test_a_long_text_shows_its_beginning_on_one_line(found):
    chains, _ = found
    everything = TextChains([one for one in chains.mined if "evil" in one.text], 1.0, chains.between)
    ((query, *_),) = everything.table()
    assert query.startswith("which \\u202eevil which lemon")
    assert len(query) == 200
    assert query.endswith("…")


def test_what_is_not_there_is_said(run, tmp_path):
    written = report([run], out=tmp_path / "out")
    assert "Map of pairs: No map to show: it is of images, and this run is over pairs." in written["remarks"]


def test_a_run_without_chains_says_so(run, tmp_path, capsys):
    data = ReportedRun.open_all([run], None)[0].spec.data.path
    plain = trained(tmp_path / "runs", data, "negatives={name: in_batch}")
    assert main(["report", str(plain), "--out", str(tmp_path / "out")]) == 0
    assert "keeps no chains, so it has no carried negatives" in capsys.readouterr().err


def test_commands_of_images_refuse_a_run_over_pairs_with_the_reason(run, tmp_path, capsys):
    spec = tmp_path / "spec.yaml"
    spec.write_text((run / "spec.yaml").read_text())
    picture = str(tmp_path / "c.png")
    for words, reason in {
        ("certify", str(run), "--out", picture): "`certify` is of images so far",
        ("certify", str(spec), "text.vocabulary=null", "--out", picture): "`certify` is of images so far",
        ("ask", str(run), str(tmp_path / "q"), "--by-labels"): "is a run over pairs of texts",
    }.items():
        assert main(list(words)) == 2
        assert reason in capsys.readouterr().err


def test_commands_of_any_run_take_one_over_pairs(run, capsys):
    for words in (["checkpoint", "ls", str(run)], ["checkpoint", "verify", str(run)], ["watch", str(run), "--once"]):
        assert main(words) == 0
