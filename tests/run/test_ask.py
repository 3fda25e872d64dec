"""Asking: a scripted person on stdin, answers that are kept as they are given, and training on them."""

import io
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command import in_process
from train.harness import Run, small_spec

from emc2dist.config import Data
from emc2dist.data.digits import DigitsImages
from emc2dist.data.images import known_of_each, open_images
from emc2dist.data.ingest.pixels import png
from emc2dist.errors import DataError, SpecError
from emc2dist.evaluate.triplets import triplet_accuracy
from emc2dist.run.ask import _near_or_not, ask, page
from emc2dist.train import checkpoint
from emc2dist.train.loop import encoder_for, initial_encoder


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "queries"


def answers(folder, split="train"):
    """Each answer's three images and labels, by file."""
    return [pq.read_table(path).to_pydict() for path in sorted(folder.glob(f"{split}-*.parquet"))]


class Person:
    """Remembers what was shown, and answers as written down; then leaves."""

    def __init__(self, *script):
        self.script, self.shown = list(script), []

    def __call__(self, pictures):
        self.shown.append(pictures)
        if not self.script:
            raise EOFError
        return self.script.pop(0)


def test_the_odd_one_is_kept_last_and_what_cannot_be_said_is_not_kept(folder):
    person = Person(0, None, 2, 1)
    assert ask("digits", str(folder), person) == (3, 1, 3, [])
    kept = answers(folder)
    assert [one["label"] for one in kept] == [[0] * 3, [1] * 3, [2] * 3]
    for one, (shown, order) in zip(kept, [(0, (1, 2, 0)), (2, (0, 1, 2)), (3, (0, 2, 1))], strict=True):
        pictures = person.shown[shown]
        assert [image["bytes"] for image in one["image"]] == [pictures[place] for place in order]
        assert len(set(pictures)) == 3


def test_asking_goes_on_where_it_was_left_with_other_queries(folder):
    first, second = Person(0, 0), Person(0, 0)
    ask("digits", str(folder), first)
    assert ask("digits", str(folder), second, count=2) == (2, 0, 4, [])
    assert len(answers(folder)) == 4
    assert second.shown[0] == first.shown[2]  # which was left unanswered
    again = Person(0, 0, 0, 0)
    ask("digits", str(folder.parent / "others"), again)
    assert again.shown[:4] == [*first.shown[:2], *second.shown]
    assert ask("digits", str(folder), Person(1), split="test") == (1, 0, 1, [])
    assert len(answers(folder)) == 4


def test_a_scripted_person_on_stdin_and_what_the_page_shows(folder, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdin", io.StringIO("2\nwhat\n4\ns\n 3 \nq\n1\n"))
    html = tmp_path / "ask.html"
    found = in_process("ask", "digits", folder, "--page", html, "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout.splitlines()[-1]) | {"queries": ""} == {
        "queries": "", "answered": 2, "skipped": 1, "kept": 2, "remarks": [],
    }  # fmt: skip
    assert "got 'what': answer 1, 2, 3, s or q" in found.stderr
    assert len(re.findall("data:image/png;base64,", html.read_text())) == 3
    assert "Query 4" in html.read_text()
    assert len(answers(folder)) == 2


def test_a_page_overwrites_no_file_of_another_kind(folder, tmp_path):
    notes = tmp_path / "spec.yaml"
    notes.write_text("mine")
    found = in_process("ask", "digits", folder, "--page", notes)
    assert found.returncode == 2
    assert "spec.yaml: is written anew for every query; give a name that ends in .html" in found.stderr
    assert notes.read_text() == "mine"


def test_nothing_is_lost_when_it_is_killed(folder, tmp_path):
    """After two answers, while the third is waited for."""
    words = [sys.executable, "-m", "emc2dist", "ask", "digits", str(folder), "--page", str(tmp_path / "ask.html")]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env=os.environ, **pipes) as process:
        process.stdin.write("1\n3\n")
        process.stdin.flush()
        for line in process.stderr:
            if "query 3" in line:
                break
        process.send_signal(signal.SIGKILL)
    assert len(answers(folder)) == 2
    assert not [path for path in folder.iterdir() if path.suffix != ".parquet"]
    assert ask("digits", str(folder), Person(0)) == (1, 0, 3, [])


def test_labels_may_answer(folder):
    assert ask("digits", str(folder), None, count=20) == (20, 0, 20, [])
    digits = DigitsImages("train")
    label = {np.asarray(image)[0].tobytes(): int(digits.labels(np.array([i]))[0]) for i, image in images_of(digits)}
    images = open_images(Data(path=str(folder)), "train")
    found = np.array([label[np.asarray(image)[0].tobytes()] for _, image in images_of(images)]).reshape(-1, 3)
    assert (found[:, 0] == found[:, 1]).all()
    assert (found[:, 0] != found[:, 2]).all()


def images_of(images):
    return enumerate(images.get(np.arange(len(images))))


def test_a_runs_queries_are_of_images_that_lie_near_each_other(folder, tmp_path):
    features = np.stack([np.cos(np.arange(40) / 40), np.sin(np.arange(40) / 40)], 1)
    for seed in range(20):
        first, *others = _near_or_not(np.random.default_rng(seed), range(40), features)
        assert len({first, *others}) == 3
        assert max(abs(first - other) for other in others) <= 10


def test_what_cannot_be_asked_about_is_refused(folder, tmp_path):
    with pytest.raises(DataError, match="no split validation"):
        ask("digits", str(folder), Person(), split="validation")
    with pytest.raises(SpecError, match=r"data\.per_class"):
        small_spec("objective.name=sirl", "negatives.name=in_batch")
    with pytest.raises(DataError, match="three images for each query, and label 0"):
        known_of_each(DigitsImages("train"), {"label": "objective: sirl", "odd": "objective: sirl"})


def images_labelled(folder, labels):
    """A set of so many different images in one Parquet file."""
    folder.mkdir()
    pictures = [{"bytes": png(np.full((8, 8, 3), 20 * n, np.uint8))} for n in range(len(labels))]
    pq.write_table(pa.table({"image": pictures, "label": labels}), folder / "train-000000.parquet")
    return folder


@pytest.mark.parametrize("others", ["train-000000.parquet", "manifest.json", "spec.yaml", "cat/0.png", "digits"])
def test_a_folder_that_holds_anything_else_than_answers_is_left_as_it_is(folder, others, monkeypatch):
    if others == "train-000000.parquet":
        images_labelled(folder, [0, 0, 1])
    elif others != "digits":
        (folder / others).parent.mkdir(parents=True)
        (folder / others).write_bytes(b"of somebody else")
    monkeypatch.chdir(folder.parent)
    with pytest.raises(DataError, match=r"no answers? of `ask`.*name a new folder|digits: is a set of images"):
        ask("digits", "digits" if others == "digits" else str(folder), Person(0))
    assert [path.name for path in folder.rglob("*") if path.is_file()] == [others.rpartition("/")[2]] * folder.exists()
    assert not (folder.parent / "digits").exists()


def test_answers_are_not_written_into_the_set_that_is_asked_about(folder):
    ask("digits", str(folder), None, count=2)
    for queries in (folder, folder / "more"):
        with pytest.raises(DataError, match="lies in the one that is asked about"):
            ask(str(folder), str(queries), Person(0))
    assert len(list(folder.iterdir())) == 2


def test_notes_and_the_page_may_lie_beside_the_answers(folder):
    ask("digits", str(folder), Person(0))
    for name in ("ask.html", "README.md", ".DS_Store"):
        (folder / name).write_text("")
    assert ask("digits", str(folder), Person(0)).kept == 2


def test_no_query_comes_twice_and_it_is_said_when_there_are_no_more(folder, tmp_path):
    """Of six images, two of each label, 3 * 4 queries can be made."""
    six = images_labelled(tmp_path / "six", [0, 0, 1, 1, 2, 2])
    assert ask(str(six), str(folder), None, count=5)[:3] == (5, 0, 5)
    answered, _, kept, remarks = ask(str(six), str(folder), None, count=100, seed=1)
    assert (answered, kept) == (7, 12)
    assert len({frozenset(image["bytes"] for image in one["image"]) for one in answers(folder)}) == 12
    assert len(remarks) == 1
    assert "these give 12 queries and hardly more" in remarks[0]


def test_what_was_skipped_does_not_come_again_in_a_session(folder, tmp_path):
    """Of four images four queries can be made."""
    person = Person(None, None, None, None, 0)
    assert ask(str(images_labelled(tmp_path / "four", [0, 0, 0, 0])), str(folder), person)[:3] == (0, 4, 0)
    assert len({frozenset(shown) for shown in person.shown}) == 4


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], [0, 0, -1], [-1, -1, -1]])
def test_labels_that_tell_no_odd_one_out_are_refused(folder, tmp_path, labels):
    subject = images_labelled(tmp_path / "set", labels)
    with pytest.raises(DataError, match=r"no two images have one that a third has not|has a label"):
        ask(str(subject), str(folder), None, count=1)
    assert not folder.exists()


def test_answers_are_trained_on_and_the_accuracy_rises(folder, tmp_path):
    ask("digits", str(folder), None, count=60)
    columns, _ = known_of_each(open_images(Data(path=str(folder)), "train"), {"odd": "objective: sirl"})
    assert columns["odd"].tolist() == [0, 0, 1] * 60
    spec = small_spec(
        f"data.path={folder}", "data.limit=null", "objective.name=sirl", "negatives={name: in_batch}",
        "data.per_class=3", "batch_size=60", "epochs=20", "optimiser.name=adam", "lr=2e-3",
    )  # fmt: skip
    run = Run(spec, tmp_path).go()
    ask("digits", str(folder), None, count=60, split="test")
    asked = open_images(Data(path=str(folder)), "test")
    pictures = torch.stack(asked.get(np.arange(180)))
    trained, untrained = encoder_for(spec), initial_encoder(spec, torch.device("cpu"))
    checkpoint.restore_trainer(run.checkpoints[60], trained)
    with torch.no_grad():
        before, after = (
            triplet_accuracy(encoder(pictures).numpy(), np.arange(180) // 3) for encoder in (untrained, trained)
        )
    assert after > before + 0.1


def test_triplet_accuracy_counts_whole_queries():
    vectors = np.array([[1, 0], [0, 1], [0.9, 0.1], [0, 1], [1, 0], [0.1, 0.9], [1, 0.0]])
    assert triplet_accuracy(vectors, np.array([0, 1, 0, 1, 1, 0, 2])) == 1.0
    assert triplet_accuracy(vectors, np.array([0, 0, 0, 1, 1, 1, 2])) == 0.0
    assert triplet_accuracy(vectors, np.arange(7)) is None


def test_a_page_shows_three_pictures():
    text = page([b"one", b"two", b"three"], 7)
    assert text.count("<img") == 3
    assert "Query 7" in text
