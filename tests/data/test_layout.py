"""Split and class of an image by its folders, for the layouts that people unpack; docs/data.md lists them."""

from pathlib import Path

import pytest

from emc2dist.data.ingest.layout import Where, arrange, masks_among
from emc2dist.errors import DataError

LAYOUTS = {
    "CLASS/**/image": (["cat", "dog/big/old"], [("train", "cat"), ("train", "dog")], []),
    "train/CLASS/**/image, val/CLASS/**/image": (
        ["train/cat", "train/dog/old", "val/dog", "val/cat"],
        [("train", "cat"), ("train", "dog"), ("val", "dog"), ("val", "cat")],
        [],
    ),
    "CLASS/train/image, CLASS/test/image": (
        ["cat/train", "cat/test", "dog/train/x", "dog/test"],
        [("train", "cat"), ("test", "cat"), ("train", "dog"), ("test", "dog")],
        [],
    ),
    "train2017/image, val2017/image": (["train2017", "val2017"], [("train2017", None), ("val2017", None)], []),
    "train/CLASS/images/image, val/images/image": (
        ["train/n1/images", "train/n2/images", "val/images", "val/images"],
        [("train", "n1"), ("train", "n2"), ("val", None), ("val", None)],
        ["val: all images lie in images/, which is taken for no class"],
    ),
    "train/images/image, valid/images/image": (
        ["train/images", "valid/images"],
        [("train", None), ("valid", None)],
        [
            "train: all images lie in images/, which is taken for no class",
            "valid: all images lie in images/, which is taken for no class",
        ],
    ),
    "images/train/image, images/val/image": (
        ["images/train", "images/val"],
        [("train", None), ("val", None)],
        ["everything lies in images/, which is taken for no class"],
    ),
    "NAME/images/CLASS/image": (
        ["CUB/images/001", "CUB/images/002"],
        [("train", "001"), ("train", "002")],
        ["everything lies in CUB/images/, which is taken for no class"],
    ),
    "train/images/CLASS/image, test/images/CLASS/image": (
        ["train/images/a", "train/images/b", "test/images/a", "test/images/b"],
        [("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")],
        [
            "train: all images lie in images/, which is taken for no class",
            "test: all images lie in images/, which is taken for no class",
        ],
    ),
    "image": (["", ""], [("train", None), ("train", None)], []),
}


def said_of(remarks):
    return [f"{split}: {text}" if split else text for split, text in remarks]


def folders(paths):
    return [tuple(path.split("/")) if path else () for path in paths]


@pytest.mark.parametrize(("paths", "places", "remarks"), LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_that_people_unpack(paths, places, remarks):
    found, said = arrange(folders(paths))
    assert found == [Where(*place) for place in places]
    assert said_of(said) == remarks


def test_a_folder_around_splits_is_none_of_them():
    found, said = arrange(folders(["mydata-dev/train/cat", "mydata-dev/train/dog", "mydata-dev/val/cat"]))
    assert [place.split for place in found] == ["train", "train", "val"]
    assert said_of(said) == ["everything lies in mydata-dev/, which is taken for no class"]


def test_images_of_a_class_in_several_folders_are_said():
    up = "; if the inner ones are the classes, move each up one level"
    sun = ["a/abbey", "a/airport", "b/barn", "b/beach", "b/abbey"]
    said = f"train: 2 classes by the outer folders, in which images lie in 5 folders (a/abbey/){up}"
    assert said_of(arrange(folders(sun))[1]) == [said]  # one name in both
    said = f"train: 3 classes by the outer folders, in which images lie in 2 folders (emu/a/){up}"
    assert said_of(arrange(folders(["cat", "dog", "emu/a", "emu/b"]))[1]) == [said]
    said = f"train: 2 classes by the outer folders, in which images lie in 1 folders (cat/kittens/){up}"
    assert said_of(arrange(folders(["cat", "cat/kittens", "dog"]))[1]) == [said]
    assert arrange(folders(["cat/cat", "dog/a"]))[1] == []  # one folder each: no other could be meant


def test_classes_within_domains_are_said_where_there_are_splits():
    paths = [f"{split}/{domain}/{kind}" for split in ("train", "test") for domain in "xy" for kind in ("cat", "dog")]
    said = said_of(arrange(folders(paths))[1])
    assert said[0] == (
        "train: 2 classes by the outer folders, in which images lie in 4 folders (x/cat/); 2 names of inner "
        "folders (cat, dog) are in most of 2 outer ones: if those are the classes, move the images of each class "
        "into one folder"
    )
    assert [one.partition(":")[0] for one in said] == ["train", "test"]


def test_clips_of_a_class_in_the_folders_of_its_splits_are_no_classes():
    clips = ["run/train/v1", "run/train/v2", "run/test/v3", "run/test/v4", "sit/train/v5", "sit/test/v6"]
    assert {place.kind for place in arrange(folders(clips))[0]} == {"run", "sit"}


def test_a_class_of_one_split_alone_stays_one_where_training_has_it():
    found, said = arrange(folders(["train/cat", "train/dog", "test/dog", "test/dog"]))
    assert [place.kind for place in found] == ["cat", "dog", "dog", "dog"]
    assert said == []


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["bus", "car", "train"], r"^train/ looks like a split, bus/ like none; .*--kind classes"),
        (["train", ""], r"^train/ looks like a split, the folder itself/ like none"),
        (["toys/train", "toys/car", "food/pie"], r"^toys/train/ looks like a split, toys/car/ like none"),
        (["cat", "", ""], r"^some images lie in folders of their classes \(cat/\), 2 in none"),
        (["train/cat", "train", "val/cat"], r"^some images lie in folders of their classes"),
        (["train-and-test/cat", "dog"], "tells two splits"),
        (["yes", "no", "brain/yes", "brain/no"], r"^brain/no/ lies in brain/, and is called as a class of its own"),
        (["images", "masks"], r"^images/ is called as what holds images, .*, but masks/ lies beside it; .*--kind flat"),
        (["pets/annotations/trimaps", "pets/images"], r"^pets/images/ is .*, but pets/annotations/ lies beside it"),
        (["VOC/JPEGImages", "VOC/SegmentationClass", "VOC/SegmentationObject"], r"^VOC/JPEGImages/ .* VOC/Segment"),
        (["leftImg8bit/train/ulm", "gtFine/train/ulm"], r"^leftImg8bit/ is .*, but gtFine/ lies beside it"),
        (["train/images", "train/mask", "val/images", "val/mask"], r"^train/images/ .*, but train/mask/ lies beside"),
        (["covid/images", "covid/lung masks", "normal/images"], r"^covid/images/ .* covid/lung masks/ lies beside it"),
        (["scans", "ground truth"], r"^ground truth/ is called .*, but scans/ lies beside it"),
        (
            ["images_001/images", "images_002/images"],
            r"^images_001/ and images_002/ are called as parts .* one folder,",
        ),
        (["images_1", "images_2", "masks"], r"^images_1/ is called .*, but images_2/ lies beside it"),
        (
            ["amazon/images/mug", "amazon/images/bike", "dslr/images/bike", "dslr/images/mug"],
            r"^2 names of inner folders \(bike, mug\) are in most of 2 outer ones \(amazon, dslr\), and either",
        ),
        (
            [f"{one}/{split}/{kind}" for one in ("d1", "d2") for split in ("train", "val") for kind in ("cat", "dog")],
            r"^2 folders \(d1, d2\) .* \(cat, dog\): .* give one of .*\(train/cat/\); .*labels$",
        ),
        (
            ["d1/train/cat", "d1/train/dog", "d2/train/emu", "d1/val/dog", "d1/val/cat", "d2/val/emu"],
            r"^2 folders \(d1, d2\) hold .* \(cat, dog, emu\): either could be the classes",
        ),
        (
            ["d1/train/cat", "d1/train/dog", "d2/train/cat", "d2/train/dog", "d1/val", "d2/val"],
            r"^2 folders \(d1, d2\) hold .* \(cat, dog\): either could be the classes",
        ),
        (
            ["8863/0", "8863/1", "8864/0", "8864/1", "8865/0"],
            r"^2 names .* \(0, 1\) .* of 3 .* with --kind classes; or",
        ),
        (
            ["HAM_images_part_1", "HAM_images_part_2"],
            r"^HAM_images_part_1/ and HAM_images_part_2/ are called as parts ",
        ),
        (["train/batch_a/cat", "train/batch_b/dog"], r"^batch_a/ and batch_b/ are called as parts of one whole"),
        (
            ["bottle/train/good", "bottle/test/bad", "bottle/ground_truth/bad"],
            r"^bottle/ground_truth/ .*, but bottle/test/ lies .* a split; give bottle/ alone, if it is a set of its "
            r"own, with --split test --split train; or move bottle/ground_truth/ elsewhere$",
        ),
        (
            [
                f"{one}/{part}"
                for one in ("bottle", "cable", "grid")
                for part in ("train/good", "test/bad", "ground_truth")
            ],
            r"^bottle/ground_truth/ .*, as in 3 folders in all; give bottle/ alone, .*; or move all 3 elsewhere$",
        ),
        (
            ["a/images", "a/masks", "b/images", "b/masks"],
            r"^a/images/ .* a/masks/ lies beside it, as in 2 folders in all; give",
        ),
        (
            ["train/good", "test/bad", "ground_truth/bad"],
            r"; name the splits that are meant: --split test --split train; or move ground_truth/ elsewhere$",
        ),
        (["val_256", "data_256"], r"^val_256/ .*, data_256/ like none; rename data_256/ to train if it holds what is "),
        (["train", "test", "custom"], r"like none; move one of them, name .* \(--split test --split train\), or take"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(paths, message):
    with pytest.raises(DataError, match=message):
        arrange(folders(paths))


def test_without_labels_no_folder_is_asked_for_a_class():
    paths = ["train/cat", "train", "test/part_1", "test/part_2", "test/part_3/old"]
    with pytest.raises(DataError, match=r"no labels with --no-labels$"):
        arrange(folders(paths))
    found, said = arrange(folders(paths), labels=False)
    assert [tuple(place) for place in found] == [("train", None)] * 2 + [("test", None)] * 3
    assert said == []
    nih = ["images_001/images", "images_002/images"]
    assert [tuple(place) for place in arrange(folders(nih), labels=False)[0]] == [("train", None)] * 2


def test_classes_of_masks_to_wear_are_classes():
    for kinds in (
        ["mask", "no_mask"],
        ["with_mask", "without_mask"],
        ["label", "imagery"],
        ["hot_images", "cold_images"],
        ["spare_part", "car_part"],
        ["n02110341", "n02110342"],
        ["s1", "s2"],
    ):
        found, _ = arrange(folders(kinds))
        assert [place.kind for place in found] == kinds


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["b/x (1).png", "b/x (1)_mask.png", "b/x (1)_mask_1.png"], ("b/x (1).png", "b/x (1)_mask.png")),
        (["ISIC_0.jpg", "ISIC_0_segmentation.png", "ISIC_1.jpg"], ("ISIC_0.jpg", "ISIC_0_segmentation.png")),
        (["a/0.jpg", "b/0_mask.png"], None),
        (["0-with-mask.jpg", "1-with-mask.jpg"], None),
        (["0.jpg", "0_mask.jpg", "1.jpg", "2.jpg"], None),
    ],
)
def test_masks_are_known_by_the_names_of_their_images(names, found):
    assert masks_among(names) == found


def test_the_documentation_lists_these_layouts():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    rows = [
        line.split("|")[1].strip() for line in text.split("### Layouts")[1].split("###")[0].splitlines() if "|" in line
    ]
    assert {row.strip("`") for row in rows if row.startswith("`")} == LAYOUTS.keys()
