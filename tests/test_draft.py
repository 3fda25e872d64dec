"""`emc2dist new`: what it writes is a spec that runs, whatever is answered, and nothing is written over."""

import io
import itertools

import pytest

from emc2dist.cli import main
from emc2dist.config import load, parse
from emc2dist.config.draft import GOALS, KINDS, Answers, draft

POSSIBLE = [
    (kind, size, gpus, goal)
    for kind, size, gpus, goal in itertools.product(KINDS, (28, 224), (0, 1, 8), GOALS)
    if kind == "images" or goal != "classes"
]


@pytest.mark.parametrize(("kind", "size", "gpus", "goal"), POSSIBLE)
def test_every_draft_is_a_spec(kind, size, gpus, goal):
    spec = parse(draft(Answers("first", kind, "sets/it's #1: ☃", size, gpus, goal)))
    assert (spec.name, spec.data.kind, spec.data.path) == ("first", kind, "sets/it's #1: ☃")
    assert spec.workers == max(1, gpus)
    assert spec.device == ("cuda" if gpus else "auto")
    assert size in (spec.views.size, spec.text.document_length)
    assert (spec.objective.name == "supcon") == (goal == "classes")


class Terminal(io.StringIO):
    """A person at a keyboard."""

    def isatty(self):
        return True


def test_what_options_do_not_answer_is_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", Terminal("\n96\n2\n"))  # where; how large; how many GPUs
    assert main(["new", "mine", "--data", "pairs", "--goal", "features"]) == 0
    spec = load(tmp_path / "mine.yaml")
    assert (spec.data.path, spec.text.document_length, spec.workers) == ("sets/mine", 96, 2)
    told = capsys.readouterr().err
    assert told.count("?") == 3
    assert "mine.yaml: written; read it, and then: emc2dist train mine.yaml" in told


def test_nothing_is_written_over_nor_left_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    (tmp_path / "there.yaml").write_text("mine")
    all_said = ["--data", "images", "--path", "digits", "--size", "8", "--gpus", "0", "--goal", "features"]
    for words, said in (
        (["there", *all_said], "there.yaml: is there already; give another name"),
        (["new", *all_said[:4]], "nobody is there to be asked, as stdin is no terminal; give --size, --gpus, --goal"),
        (["new", *all_said, "--size", "few"], "--size: got 'few'; give a whole number"),
        (["new", *all_said, "--size", "5000"], "--size: got 5000; give 8 to 1024 pixels"),
        (["new", *all_said, "--gpus", "-1"], "--gpus: got -1; give 0 to 4096"),
        (["new", *all_said, "--data", "sounds"], "--data: got 'sounds'; give images, pairs, texts"),
        (["new", *all_said, "--goal", "fame"], "--goal: got 'fame'; give features, representation, classes"),
        (["new", *all_said, "--data", "texts", "--goal", "classes"], "--goal: classes are of images"),
        (["new", *all_said, "--path", "gs://bucket/set"], "gs://"),
        (["a b", *all_said], "name: "),
    ):
        assert main(["new", *words]) == 2
        assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there.yaml"]
    assert (tmp_path / "there.yaml").read_text() == "mine"
