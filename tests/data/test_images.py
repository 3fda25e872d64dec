"""Opening `data.path`, and the digits."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from emc2dist import files
from emc2dist.config import Data
from emc2dist.data.catalogue import splits_of
from emc2dist.data.digits import DigitsImages
from emc2dist.data.images import known_of_each, numbers_of, open_images
from emc2dist.data.ingest import ingest
from emc2dist.errors import DataError


def folder(path: Path, *names: str) -> str:
    """File number n holds n + 1 rows, so that a length tells which files were opened."""
    for n, name in enumerate(names):
        rows = [{"bytes": b"", "path": ""}] * 2**n
        pq.write_table(pa.table({"image": rows}), path / name)
    return str(path)


@pytest.mark.parametrize(
    ("names", "train", "test"),
    [
        (["train-0.parquet", "train-1.parquet", "test-0.parquet"], 3, 4),
        (["train.parquet", "validation-0.parquet", "validation-1.parquet"], 1, None),
        (["train.parquet", "validation.parquet", "test.parquet"], 1, 4),
        (["train.parquet", "extra.parquet"], 1, None),
        (["a.parquet", "b.parquet"], 3, None),
        (["a.parquet", "test.parquet"], 1, 2),
    ],
)
def test_files_of_a_folder_are_split_by_name(tmp_path, names, train, test):
    config = Data(path=folder(tmp_path, *names), cache_dir=str(tmp_path / "cache"))
    assert len(open_images(config, "train")) == train
    opened = open_images(config, "test")
    assert (opened and len(opened)) == test


def test_a_file_is_training_data_and_limit_is_for_training(tmp_path):
    path, cache = folder(tmp_path, "train.parquet", "test.parquet", "other.parquet"), str(tmp_path / "cache")
    single = Data(path=str(tmp_path / "other.parquet"), limit=3, cache_dir=cache)
    assert len(open_images(single, "train")) == 3
    assert open_images(single, "test") is None
    assert len(open_images(Data(path=path, limit=1, cache_dir=cache), "test")) == 2
    (tmp_path / "other.parquet").rename(tmp_path / "other.pq")
    assert len(open_images(Data(path=str(tmp_path / "other.pq"), cache_dir=cache), "train")) > 3


def test_a_path_that_cannot_be_used_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"nowhere: no such file or folder; set data\.path"):
        open_images(Data(path=str(tmp_path / "nowhere")), "train")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"^nowhere: no such file or folder in {tmp_path}; set data\.path"):
        open_images(Data(path="nowhere"), "train")
    (tmp_path / "none.pq").touch()
    with pytest.raises(DataError, match=r"none\.pq: is no Parquet file"):
        open_images(Data(path=str(tmp_path / "none.pq")), "train")
    (tmp_path / "none.pq").unlink()
    (tmp_path / "data.yaml").write_text("train: images/train")
    with pytest.raises(DataError, match=r"data\.yaml: is no Parquet file; set data\.path .*`emc2dist ingest`"):
        open_images(Data(path=str(tmp_path / "data.yaml")), "train")
    for pattern in ("set-{000000..000001}.parquet", "*.parquet", "set-[01].parquet", "{a,b}.parquet"):
        with pytest.raises(DataError, match=r"no such file or folder; patterns are not expanded; give the folder that"):
            open_images(Data(path=str(tmp_path / pattern)), "train")
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(DataError, match=r"holds no \*\.parquet files.*; set data\.path"):
        open_images(Data(path=str(tmp_path)), "test")
    with pytest.raises(DataError, match=r"no training files, but test \(test\.parquet\)"):
        open_images(Data(path=folder(tmp_path, "test.parquet")), "train")


def stretched(path: Path, seed: int, rows: int = 6) -> Path:
    """Images without any packing, as many bytes as others whatever they show."""
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, 8, 8, 3), dtype=np.uint8)
    encoded = []
    for one in pixels:
        Image.fromarray(one).save(buffer := io.BytesIO(), "BMP")
        encoded.append({"bytes": buffer.getvalue(), "path": ""})
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": encoded}), path, compression="none", use_dictionary=False)
    return path


def test_a_fingerprint_goes_with_the_images_wherever_they_lie(tmp_path):
    def fingerprint(path, **options):
        return open_images(Data(path=str(path), cache_dir=str(tmp_path / "cache"), **options), "train").fingerprint

    one, copy, other = (
        stretched(tmp_path / name / "a.parquet", seed) for name, seed in zip("abc", (1, 1, 2), strict=True)
    )
    copy = copy.rename(tmp_path / "elsewhere.parquet")
    for form in (lambda path: path, lambda path: ingested(path, tmp_path / f"set-{path.parent.name}-{path.stem}")):
        first, again, third = (fingerprint(form(path)) for path in (one, copy, other))
        assert first == again != third
        assert fingerprint(form(one), limit=4) != first  # more or fewer of them
    stretched(tmp_path / "a" / "b.parquet", 3)  # one more file, of which the limit takes nothing
    assert fingerprint(one.parent, limit=6) == fingerprint(one)
    assert len({DigitsImages("train").fingerprint, DigitsImages("train", limit=9).fingerprint, first}) == 3
    assert DigitsImages("train").fingerprint == DigitsImages("train").fingerprint


@pytest.mark.parametrize("name", ["digits", "omniglot", "omniglot-small"])
@pytest.mark.parametrize(("dest", "said"), [("{}", True), ("./{}/", True), ("set/{}", False)])
def test_a_set_called_as_one_of_the_package_is_said_to_be_read_by_another_path(
    name, dest, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    ingest(str(stretched(tmp_path / "a.parquet", 1)), dest.format(name), workers=0, cache_dir="cache")
    assert (f"this set is data.path=./{name}" in capsys.readouterr().err) == said


def ingested(source: Path, dest: Path) -> Path:
    ingest(str(source), str(dest), workers=0, cache_dir=str(dest.parent / "cache"))
    return dest


def test_digits_are_split_disjointly_and_completely():
    train, test = DigitsImages("train"), DigitsImages("test")
    assert (len(train), len(test)) == (1437, 360)
    whole = load_digits()
    expected = np.round(whole.images * 255 / 16).astype(np.uint8)
    made = np.empty_like(expected)
    is_test = np.arange(1797) % 5 == 0
    for images, where in ((train, ~is_test), (test, is_test)):
        pixels = torch.stack(images.get(np.arange(len(images))))
        assert pixels.dtype == torch.uint8
        assert torch.equal(pixels, pixels[:, :1].expand(-1, 3, 8, 8))
        made[where] = pixels[:, 0].numpy()
        assert np.array_equal(images.labels(np.arange(len(images))), whole.target[where])
    assert np.array_equal(made, expected)
    assert expected.max() == 255


def test_digits_limit_order_and_bounds():
    few = open_images(Data(limit=10), "train")
    assert len(few) == 10
    assert len(open_images(Data(limit=10), "test")) == 360
    assert few.classes == list("0123456789")
    assert torch.equal(few.get(np.array([3, 9, 3]))[2], few.get(np.array([3]))[0])
    for ask in (few.get, few.labels):
        with pytest.raises(IndexError, match=r"outside 0\.\.9"):
            ask(np.array([-1]))


def labelled_set(path: Path, labels: list[int] | None) -> Data:
    rows = {"image": [{"bytes": b"", "path": ""}] * 4} | ({} if labels is None else {"label": labels})
    path.mkdir()
    pq.write_table(pa.table(rows), path / "train.parquet")
    return Data(path=str(path), cache_dir=str(path / "cache"))


def test_labels_are_known_where_there_are_any_and_what_negatives_close_must_be(tmp_path):
    some = open_images(labelled_set(tmp_path / "some", [0, -1, 1, 0]), "train")
    columns, remarks = known_of_each(some)
    assert ({name: values.tolist() for name, values in columns.items()}, remarks) == ({"label": [0, -1, 1, 0]}, [])
    assert known_of_each(some, {"label": "objective: supcon"})[1] == [
        "objective: supcon: 1 of 4 images have no label, and share one with nobody"
    ]
    with pytest.raises(
        DataError, match=r"negatives\.close: duplicates, but .* ingest this one, or leave duplicates out"
    ):
        known_of_each(some, {"duplicates": "negatives.close"})
    none = open_images(labelled_set(tmp_path / "none", None), "train")
    assert known_of_each(none) == ({}, [])
    with pytest.raises(
        DataError, match=r"data\.per_class: needs labels, but no training image has one \(.*no `label` column"
    ):
        known_of_each(none, {"label": "data.per_class"})


def test_targets_are_the_numbers_that_classes_are_called():
    digits = open_images(Data(path="digits"), "train")
    columns, _ = known_of_each(digits, {"target": "objective: supremix"})
    assert np.array_equal(columns["target"], digits.labels(np.arange(len(digits))))
    wanted = "objective: supremix"
    assert numbers_of(np.array([2, -1, 0]), ["10", "2", "7"], wanted).tolist() == [7, -1, 10]
    assert numbers_of(np.array([2, -1, 0]), [], wanted).tolist() == [2, -1, 0]
    with pytest.raises(DataError, match=r"objective: supremix: needs labels that are numbers, .* called 'Balinese/01'"):
        known_of_each(open_images(Data(path="omniglot-small"), "train"), {"target": wanted})


def test_drawings_that_are_the_same_are_of_one_group():
    images = open_images(Data(path="omniglot-small"), "train")
    columns, remarks = known_of_each(images, {"label": "a", "duplicates": "negatives.close"})
    pixels = [image.numpy().tobytes() for image in images.get(np.arange(len(images)))]
    groups: dict[bytes, set[int]] = {}
    for content, group in zip(pixels, columns["duplicates"].tolist(), strict=True):
        groups.setdefault(content, set()).add(group)
    assert all(len(found) == 1 for found in groups.values())
    assert all((found == {-1}) == (pixels.count(content) == 1) for content, found in groups.items())
    assert len(remarks) == 1


@pytest.mark.parametrize("below", ["", "table"])
@pytest.mark.parametrize(
    ("log", "kind"),
    [
        ("_delta_log/00000000000000000000.json", "a Delta table"),
        (".hoodie/hoodie.properties", "a Hudi table"),
        ("metadata/v1.metadata.json", "an Iceberg table"),
    ],
)
def test_a_table_whose_log_tells_which_files_count_is_refused(tmp_path, log, kind, below):
    table = tmp_path / "set" / below
    (table / log).parent.mkdir(parents=True)
    folder(table, "part-0.parquet")
    (table / log).write_text("{}")
    with pytest.raises(DataError, match=rf"{table}: {kind}, whose log tells which of its Parquet files count"):
        splits_of(files.at(tmp_path / "set"))


def test_shards_of_two_writings_are_refused(tmp_path):
    folder(tmp_path, *(f"train-{n:05}-of-{total:05}.parquet" for total in (2, 3) for n in range(total)))
    message = r"train-00000-of-00002\.parquet and train-00000-of-00003\.parquet are of two writings of the same images"
    with pytest.raises(DataError, match=message):
        splits_of(files.at(tmp_path))
