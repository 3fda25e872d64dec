"""Which split a name tells."""

import pytest

from emc2dist.data.splits import by_split, missing, split_of
from emc2dist.errors import DataError


@pytest.mark.parametrize(
    ("split", "names"),
    [
        (
            "train",
            [
                "train-00000-of-00005.parquet",
                "TRAIN",
                "my.Train.tar",
                "train2017",
                "trainset_1",
                "x_training_2",
                "trainA",
            ],
        ),
        ("test", ["SET-test.parquet", "test", "testing.tar", "eval-0", "coco test images", "test_images", "mnistTest"]),
        ("validation", ["imagenet-val-0000.tar", "val2017", "valid", "validation", "dev.parquet", "ILSVRC2012_val_1"]),
        ("unlabeled", ["unlabeled-3.parquet", "unlabelled"]),
        (
            None,
            [
                "part-0.parquet",
                "latest",
                "contest-1",
                "constraint",
                "trainer",
                "trainval",
                "value-0",
                "data",
                "",
                "TESTER",
            ],
        ),
    ],
)
def test_a_word_by_itself_tells_the_split(split, names):
    assert [split_of(name) for name in names] == [split] * len(names)


def test_a_name_that_tells_two_splits_is_refused():
    assert split_of("train-of-training") == "train"
    with pytest.raises(DataError, match="train-test-0: its name tells two splits, train and test"):
        split_of("train-test-0")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["0000.tar", "0001.tar", "0003.tar"], ["3 of 4 files from 0000.tar to 0003.tar"]),
        (["a/x-1.tar", "a/x-3.tar", "a/x-4.tar", "b/x-2.tar"], ["3 of 4 files from a/x-1.tar to a/x-4.tar"]),
        (["x-3-of-9.tar"], ["1 of 9 files x-*-of-9"]),
        (["t-0-of-2.tar", "t-1-of-2.tar", "v-0.tar", "v-1.tar", "9.tar", "10.tar"], []),
        (["day-20240101.tar", "day-20240301.tar"], []),  # most are not there: other numbers than those of a series
    ],
)
def test_shards_that_are_missing_are_said(files, said):
    assert missing(files) == [f"{told} are there: is the set whole?" for told in said]


def test_files_that_tell_no_split_train_where_none_is_called_train():
    assert by_split(["b", "a"]) == ({"train": ["a", "b"]}, [])
    assert by_split(["b", "x-val", "x-test"]) == ({"train": ["b"], "test": ["x-test"], "validation": ["x-val"]}, [])
    assert by_split(["b", "train"]) == ({"train": ["train"]}, ["b"])
    assert by_split(["test"]) == ({"test": ["test"]}, [])
