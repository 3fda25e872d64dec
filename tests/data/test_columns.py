"""Columns of other tools' Parquet files: which holds the images, what the labels mean; docs/data.md says the same."""

import base64
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.test_parquet import IMAGE, colours, pixel

from emc2dist.data.parquet import ParquetImages
from emc2dist.errors import DataError

N = 4
ROWS = [pixel(n) for n in range(N)]


@pytest.fixture
def open_table(tmp_path):
    """Open tables as the files of one split."""

    def opened(*tables: pa.Table) -> ParquetImages:
        for number, table in enumerate(tables):
            (tmp_path / "set").mkdir(exist_ok=True)
            pq.write_table(table, tmp_path / "set" / f"train-{number}.parquet")
        return ParquetImages.open(tmp_path / "set", cache_dir=tmp_path / "cache")

    return opened


def structs(kind: pa.DataType = IMAGE, **more) -> pa.Array:
    return pa.array([{"bytes": row, "path": None, **more} for row in ROWS], kind)


def struct_of(kind: pa.DataType) -> pa.DataType:
    return pa.struct([("bytes", kind), ("path", pa.string())])


READ = {
    "struct<bytes: binary, path: string>": structs(),
    "struct<bytes: large_binary, ...>": structs(struct_of(pa.large_binary())),
    "struct<bytes: binary_view, ...>": structs(struct_of(pa.binary_view())),
    "struct<bytes: binary>": pa.array([{"bytes": row} for row in ROWS], pa.struct([("bytes", pa.binary())])),
    "struct<bytes: binary, more>": structs(
        pa.struct([("bytes", pa.binary()), ("path", pa.string()), ("meta", pa.struct([("w", pa.int64())]))])
    ),
    "struct<bytes: dictionary>": pa.StructArray.from_arrays([pa.array(ROWS).dictionary_encode()], ["bytes"]),
    "binary": pa.array(ROWS, pa.binary()),
    "large_binary": pa.array(ROWS, pa.large_binary()),
}


@pytest.mark.parametrize("column", READ.values(), ids=READ)
def test_whatever_holds_whole_images_is_read(open_table, column):
    images = open_table(pa.table({"image": column}))
    assert colours(images.get(np.arange(N))) == list(range(N))
    assert images.remarks == []


def test_files_may_hold_images_of_different_types(open_table):
    tables = [pa.table({"image": column}) for column in (READ["binary"], READ["large_binary"])]
    assert colours(open_table(*tables).get(np.arange(2 * N))) == [*range(N)] * 2
    with pytest.raises(
        DataError, match=r"train-1\.parquet: the images are those of column image\.bytes, but of image in"
    ):
        open_table(tables[0], pa.table({"image": structs()}))


def test_the_only_column_of_images_is_taken_and_said(open_table):
    images = open_table(
        pa.table({"caption": ["x"] * N, "img": structs(), "fine_label": [1] * N, "coarse_label": [0] * N})
    )
    assert colours(images.get(np.arange(N))) == list(range(N))
    assert images.labels(np.arange(N)).tolist() == [1] * N
    assert images.remarks == [
        "the images are those of column `img`",
        "2 further columns were not read: `caption`, `coarse_label`",
        "the labels are those of column `fine_label`",
    ]
    with pytest.raises(DataError, match=r"left and right could all be the images \(left: binary, right: binary\)"):
        open_table(pa.table({"left": ROWS, "right": ROWS}))


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([list(row) for row in ROWS], pa.list_(pa.uint8())), "list<element: uint8>"),
        (pa.array([{"path": "x.png"}] * N), "struct<path: string>"),
        (pa.array(["/data/x.png"] * N), "string"),
        (pa.array([1] * N), "int64"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_holds_no_images_is_refused_with_its_type(open_table, column, kind):
    with pytest.raises(DataError, match=rf"train-0\.parquet: no column `image` .*, but image: {kind}"):
        open_table(pa.table({"image": column}))


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        (
            ["", "http://a.b/x.jpg"],
            r"`URL` holds addresses \(http://a\.b/x\.jpg\): fetch .* --url_col URL .*ingest what",
        ),
        (["s3://a/x.jpg", None], r"`URL` holds addresses \(s3://a/x\.jpg\)"),
        (["", base64.b64encode(ROWS[0]).decode()], r"`URL` holds images in base64: .*base64\.b64decode"),
        (["", "data:image/png;base64,AAAA"], r"`URL` holds images in base64"),
        (["", "/data/x.jpg"], r"write the images' files into .*, or ingest the folder that they lie in"),
        ([None, None], r"write the images' files into .*, or ingest the folder that they lie in"),
        ([], r"write the images' files into .*, or ingest the folder that they lie in"),
    ],
)
def test_text_in_place_of_images_is_told_how_it_becomes_some(open_table, values, advice):
    with pytest.raises(DataError, match=rf"no column `image` .*, but TEXT: string, URL: string; {advice}"):
        open_table(pa.table({"TEXT": pa.array(["a"] * len(values), pa.string()), "URL": pa.array(values, pa.string())}))


LABELS = {
    "int64": (pa.array([2, 0, 1, -1]), [2, 0, 1, -1], []),
    "uint8": (pa.array([2, 0, 1, 255], pa.uint8()), [2, 0, 1, 255], []),
    "uint64": (pa.array([2, 0, 1, None], pa.uint64()), [2, 0, 1, -1], []),
    "double": (pa.array([2.0, 0.0, float("nan"), None]), [2, 0, -1, -1], []),
    "bool": (pa.array([True, False, None, True]), [1, 0, -1, 1], ["false", "true"]),
    "string": (pa.array(["dog", "cat", "", None]), [1, 0, -1, -1], ["cat", "dog"]),
    "large_string": (pa.array(["dog", "cat", "cat", "dog"], pa.large_string()), [1, 0, 0, 1], ["cat", "dog"]),
    "string_view": (pa.array(["dog", "cat", "cat", "dog"], pa.string_view()), [1, 0, 0, 1], ["cat", "dog"]),
    "dictionary": (pa.array(["dog", "cat", None, "dog"]).dictionary_encode(), [1, 0, -1, 1], ["cat", "dog"]),
}


@pytest.mark.parametrize(("column", "numbers", "classes"), LABELS.values(), ids=LABELS)
def test_labels_of_every_type_mean_what_they_say(open_table, tmp_path, column, numbers, classes):
    for _ in range(2):  # read, and as they were kept
        images = open_table(pa.table({"image": structs(), "label": column}))
        assert images.labels(np.arange(N)).tolist() == numbers
        assert images.classes == classes
        assert images.unlabelled() is None


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            pa.array([0, 1, -7, 0]),
            r"train-0\.parquet, row 2: the label is -7; give the number of a class, from 0, or -1",
        ),
        (pa.array([0.0, 0.5, 1.0, 0.0]), r"train-0\.parquet, row 1: the label is 0\.5; it is no whole number"),
        (pa.array([[0], [0, 1], [], [1]]), r"column `label` has type list<element: int64>"),
        (pa.array([{"a": 1}] * N), r"column `label` has type struct<a: int64>"),
        (pa.nulls(N), "no `label` column"),
        (pa.array([-1] * N), r"all 4 labels are withheld \(-1 or null\)"),
        (pa.array([None] * N, pa.int32()), r"all 4 labels are withheld"),
    ],
)
def test_labels_that_cannot_be_read_do_not_stop_training_and_are_explained(open_table, column, message):
    images = open_table(pa.table({"image": structs(), "label": column}))
    assert len(images.get(np.arange(N))) == N
    with pytest.raises(DataError, match=message):
        raise DataError(images.unlabelled())


def test_files_may_differ_in_the_width_of_labels_and_may_lack_some(open_table):
    labels = [pa.array([1] * N), pa.array([2] * N, pa.int8()), pa.nulls(N)]
    tables = [pa.table({"image": structs(), "label": label}) for label in labels]
    found = open_table(*tables, pa.table({"image": structs()}))
    assert found.labels(np.arange(4 * N)).tolist() == [1] * N + [2] * N + [-1] * 2 * N


def test_classes_that_differ_between_files_are_named(open_table):
    table = pa.table({"image": structs(), "label": [0] * N})
    images = open_table(*(table.replace_schema_metadata({"classes": names}) for names in ("cat,dog", "dog,cat")))
    said = images.unlabelled()
    assert "train-1.parquet: column `label` holds whole numbers of the classes dog, cat, but in " in said
    assert "train-0.parquet column `label` holds whole numbers of the classes cat, dog; files of one split " in said
    images = open_table(
        pa.table({"image": structs(), "label": [0] * N}), pa.table({"image": structs(), "label": ["a"] * N})
    )
    assert "column `label` holds names of classes, but in " in images.unlabelled()


def test_a_label_that_is_no_class_of_the_named_ones_is_no_label(open_table):
    table = pa.table({"image": structs(), "label": [0, 1, 2, 0]}).replace_schema_metadata({"classes": "cat,dog"})
    assert "train-0.parquet, row 2: has label 2, but there are 2 classes, from 0" in open_table(table).unlabelled()
    huge = pa.table({"image": structs(), "label": pa.array([0, 1, 2**63 + 5, 0], pa.uint64())})
    assert "row 2: the label is 9223372036854775813; classes count from 0" in open_table(huge).unlabelled()


def test_a_column_that_is_there_twice_is_named(open_table):
    with pytest.raises(DataError, match=r"train-0\.parquet: has 2 columns `label`; leave one of them"):
        open_table(pa.Table.from_arrays([structs(), pa.array([0] * N), pa.array([1] * N)], ["image", "label", "label"]))


def test_damaged_metadata_are_named(open_table):
    table = pa.table({"image": structs()}).replace_schema_metadata({"huggingface": "{"})
    with pytest.raises(DataError, match=r"train-0\.parquet: the metadata of its schema are damaged"):
        open_table(table)


def test_the_documentation_lists_what_is_read():
    """docs/data.md names every type of these tables, and no other."""
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    rows = [
        line.split("|")[1].strip() for line in text.split("### Columns")[1].split("###")[0].splitlines() if "|" in line
    ]
    assert {row.strip("`") for row in rows if row.startswith("`")} == READ.keys() | LABELS.keys()
