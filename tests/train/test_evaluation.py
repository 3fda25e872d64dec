"""Which images vote and which are asked about, and by what numbers: no accuracy may come of labels that are none."""

import io
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from emc2dist.config import Data, Eval, parse
from emc2dist.data.images import open_images, open_labelled
from emc2dist.errors import DataError
from emc2dist.evaluate import retrieval
from emc2dist.evaluate.retrieval import Judged
from emc2dist.train.evaluation import Evaluation
from emc2dist.train.measures import measures

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(folder, split, labels):
    """Images whose grey is 20 times their row, with these labels."""
    rows = []
    for n in range(len(labels)):
        buffer = io.BytesIO()
        Image.new("L", (2, 2), 20 * n).save(buffer, "png")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": pa.array(rows, IMAGE), "label": labels}), folder / f"{split}.parquet")


SPEC = "{name: x, epochs: 1, batch_size: 2, lr: 1.0, eval: {neighbours: 1}}"


def labelled(tmp_path, choice):
    data = Data(path=str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    return open_labelled(data, choice, open_images(data, "train"))


@pytest.fixture
def evaluation(tmp_path):
    return lambda **choice: Evaluation(parse(SPEC), labelled(tmp_path, Eval(**choice)))


def asked(evaluation):
    """Where the questions come from: how many there are, and their labels."""
    return evaluation.labels()[1].tolist()


def test_the_first_split_with_labels_is_asked_about(tmp_path, evaluation):
    write(tmp_path / "set", "train", pa.array([0, 1, 0, 1]))
    write(tmp_path / "set", "validation", pa.array([1, 1, 0]))
    assert asked(evaluation()) == [1, 1, 0]
    assert evaluation().remarks == []
    write(tmp_path / "set", "test", pa.array([-1] * 5))
    assert asked(evaluation()) == [1, 1, 0]
    (remark,) = evaluation().remarks
    assert remark.startswith("test is not asked about: ")
    assert "test.parquet: all 5 labels are withheld (-1 or null)" in remark
    write(tmp_path / "set", "test", pa.array([0, None]))
    assert asked(evaluation()) == [0]
    assert asked(evaluation(asked="val")) == [1, 1, 0]


def test_without_labels_to_ask_about_every_tenth_voter_is_and_it_is_said(tmp_path, evaluation):
    write(tmp_path / "set", "train", pa.array([n % 2 for n in range(11)] + [None]))
    assert len(asked(evaluation())) == 2
    tenth = "no other images are asked about: every tenth voter is, 2, and the other 9 vote"
    assert evaluation().remarks == [tenth]
    write(tmp_path / "set", "test", pa.nulls(3))
    first, second = evaluation().remarks
    assert first.startswith("test is not asked about: ")
    assert second == tenth
    with pytest.raises(DataError, match=r"eval\.asked: test has no labels"):
        evaluation(asked="test")
    with pytest.raises(DataError, match=r"has no split dev; set eval\.asked"):
        evaluation(asked="dev")
    assert len(asked(evaluation(asked="train"))) == 2  # never an image that votes for itself


def test_an_image_without_a_label_takes_no_part(tmp_path, evaluation):
    write(tmp_path / "set", "train", pa.array([0, -1, 1, None, 0]))
    write(tmp_path / "set", "test", pa.array([None, 1, -1, 0]))
    bank, queries = evaluation().labels()
    assert (bank.tolist(), queries.tolist()) == ([0, 1, 0], [1, 0])
    grey = [20 * n for n in (0, 2, 4)], [20 * n for n in (1, 3)]
    for pixels, expected in zip(evaluation().pixels(), grey, strict=True):
        assert pixels[:, 0].tolist() == expected


def test_labels_are_matched_by_the_names_of_their_classes(tmp_path, evaluation):
    write(tmp_path / "set", "train", pa.array(["cat", "dog", "dog"]))
    write(tmp_path / "set", "test", pa.array(["dog", "ape", "cat", "bee"]))  # ape is 0 there, cat is 2
    bank, queries = evaluation().labels()
    assert bank.tolist() == [0, 1, 1]
    assert queries[[0, 2]].tolist() == [1, 0]
    assert not np.isin(queries[[1, 3]], bank).any()
    assert evaluation().remarks == [
        "2 of 4 images asked about are of 2 classes of which no image votes: they count as wrong"
    ]
    points = torch.eye(3)
    right = evaluation().votes(points[[0, 1, 1]], points[[1, 0, 0, 1]]) == queries
    assert right.tolist() == [True, False, True, False]


def test_classes_whose_names_list_others_are_said(tmp_path, evaluation):
    write(tmp_path / "set", "train", pa.array(["cat", "dog|cat", "dog", "dog|cat"]))
    write(tmp_path / "set", "test", pa.array(["dog", "cat"]))
    (remark,) = evaluation().remarks
    assert remark.startswith(
        "2 of 4 images are of classes whose names list others, as 'dog|cat', and count as of these"
    )


def test_classes_of_which_no_image_votes_are_said_by_name(tmp_path, evaluation):
    write(tmp_path / "set", "train", pa.array([0, 0]))
    write(tmp_path / "set", "test", pa.array([0, 2, 2]))
    assert evaluation().remarks == [
        "2 of 3 images asked about are of 1 classes of which no image votes: they count as wrong"
    ]
    with pytest.raises(DataError, match="all 2 voters are of one class"):
        measures(evaluation(), torch.eye(2), torch.eye(2)[[0, 1, 1]], torch.eye(2)[None].expand(2, -1, -1))


def test_too_few_labels_are_refused(tmp_path, evaluation):
    write(tmp_path / "set", "train", pa.array([0, -1]))
    with pytest.raises(DataError, match="0 labelled images to vote and 1 to ask about are too few"):
        evaluation()
    none, remarks = Evaluation.of(parse(SPEC), labelled(tmp_path, Eval()))
    assert none is None
    assert remarks[-1].startswith("nothing is evaluated: 0 labelled images to vote")  # and training goes on
    write(tmp_path / "set", "train", pa.array([-1, -1]))
    with pytest.raises(
        DataError, match=r"all 2 labels are withheld.*; use data with labels \(data\.path=LABELLED\), or set eval"
    ):
        evaluation()


def test_names_of_classes_are_not_taken_for_their_numbers(tmp_path, evaluation):
    write(tmp_path / "set", "train", pa.array([0, 1, 2]))
    write(tmp_path / "set", "test", pa.array(["0", "1", "10"]))
    with pytest.raises(DataError, match="names its classes, the other only numbers them"):
        evaluation()


@pytest.mark.parametrize(("voters", "asked_for"), [("val", None), ("dev", "validation"), ("validation", "val")])
def test_no_image_is_asked_about_itself_whatever_its_split_is_called(tmp_path, evaluation, voters, asked_for):
    write(tmp_path / "set", "train", pa.array([-1, -1]))
    write(tmp_path / "set", "validation", pa.array([n % 2 for n in range(11)]))
    made = evaluation(voters=voters, asked=asked_for)
    bank, queries = made._bank[1], made._queries[1]
    assert (len(bank), len(queries)) == (9, 2)
    assert not set(bank) & set(queries)


def test_labels_that_a_spec_asks_for_have_to_be_there(tmp_path):
    write(tmp_path / "set", "train", pa.array([0.5, 0.5]))
    spec = parse(SPEC).model_copy(update={"eval": Eval(asked="train")})
    with pytest.raises(DataError, match="no whole number"):
        Evaluation.of(spec, labelled(tmp_path, spec.eval))


OF_ONE_OBJECTIVE = ("zero_shot_accuracy", "zero_shot_among_all", "triplet_accuracy")


def test_every_measure_is_of_these_images_and_has_a_row_in_the_docs(tmp_path, evaluation):
    write(tmp_path / "set", "train", pa.array([n % 3 for n in range(12)]))
    write(tmp_path / "set", "test", pa.array([n % 5 for n in range(20)]))
    bank, queries = torch.eye(6)[np.arange(12) % 3], 2 * torch.eye(6)[np.arange(20) % 5]
    queries[0] = torch.eye(6)[1] + torch.eye(6)[5] / 2  # of class 0, near those of class 1
    pair = torch.stack([bank, bank.roll(1, 0)])
    found = measures(evaluation(asked="test"), bank, queries, pair)
    assert found["knn_accuracy"] == found["linear_probe_accuracy"] == found["recall_at_1"] == 11 / 20
    assert found["knn_per_class"] == pytest.approx((3 / 4 + 1 + 1) / 5)
    assert found["recall_at_10"] == 12 / 20  # two classes are not in the bank
    assert found["asked_recall_at_1"] == 19 / 20
    assert found["few_shot_1"] == pytest.approx(1 - (3 / 4 * 1 + 1 / 4 * 3 * 4 / 5) / 15, abs=0.01)
    assert found["few_shot_5"] is None  # of no class are there so many
    assert found["alignment"] == pytest.approx(2)
    assert found["tolerance"] == pytest.approx((4 * 6 + 3) / (5 * 6))
    assert found["isotropy"] == pytest.approx(1 - 2 * (27 + 4 / 1.25**0.5) / (20 * 19))
    of_pairs = retrieval.measures(
        torch.zeros(1, 1, dtype=torch.int64), Judged(np.zeros((1, 2), np.int64), np.ones(1, int))
    )
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    of_sentences = ["spearman_TASK", "spearman_mean"]
    told = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert told == [*found, *OF_ONE_OBJECTIVE, *of_pairs, *of_sentences]


def test_errors_of_numbers_are_measured_where_the_objective_takes_labels_for_them(tmp_path, evaluation):
    write(tmp_path / "set", "train", pa.array(["10", "20", "40", "10", "20", "40"]))  # whose order is no matter
    write(tmp_path / "set", "test", pa.array(["40", "9"]))
    bank, queries = torch.eye(3)[[0, 1, 2] * 2], torch.eye(3)[[2, 0]]
    pair = torch.stack([bank, bank])
    made = evaluation(asked="test")
    assert made.numbers() is None
    assert measures(made, bank, queries, pair)["knn_absolute_error"] is None
    made.spec = parse(SPEC, ["objective=supremix", "eval.neighbours=2"])
    assert [numbers.tolist() for numbers in made.numbers()] == [[10, 20, 40, 10, 20, 40], [40, 9]]
    found = measures(made, bank, queries, pair)
    assert found["knn_absolute_error"] == 0.5
    assert found["linear_absolute_error"] == pytest.approx(0.5, abs=0.1)
    write(tmp_path / "set", "test", pa.array(["10", "many"]))
    made = evaluation(asked="test")
    made.spec = parse(SPEC, ["objective=supremix"])
    with pytest.raises(DataError, match="supremix: needs labels that are numbers, but a class is called 'many'"):
        made.numbers()
