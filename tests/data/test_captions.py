"""Sets of images with captions: from each kind of source, what is refused, and which caption is whose in the end."""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emc2dist.cli import main
from emc2dist.config import Data
from emc2dist.data.captions import open_captions
from emc2dist.data.images import open_images
from emc2dist.data.ingest import ingest
from emc2dist.data.ingest.pixels import png
from emc2dist.data.texts.pairs import load_tokenizer
from emc2dist.errors import DataError, SpecError

COUNT = 12


def colour(number: int) -> bytes:
    """An image of one colour, which tells its number."""
    return png(np.full((4, 4, 3), (number, 3 * number, 0), np.uint8))


def caption(number: int) -> str:
    return f"the colour of number {number}"


def as_parquet(root: Path, captions=None, **columns) -> Path:
    root.mkdir(parents=True)
    captions = [caption(n) for n in range(COUNT)] if captions is None else captions
    images = [{"bytes": colour(n), "path": f"{n}.png"} for n in range(len(captions))]
    pq.write_table(pa.table({"image": images, "caption": captions, **columns}), root / "train.parquet")
    return root


def as_tar(root: Path, tell=lambda n: {"txt": caption(n).encode()}, split="train") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / f"{split}-0.tar", "w") as shard:
        for n in range(COUNT):
            for extension, content in {"png": colour(n), **tell(n)}.items():
                member = tarfile.TarInfo(f"{n:03}.{extension}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    return root


def as_folder(root: Path, rows=None, name="captions.csv", heading=("file_name", "caption")) -> Path:
    (root / "images").mkdir(parents=True)
    for n in range(COUNT):
        (root / "images" / f"{n}.png").write_bytes(colour(n))
    rows = [(f"images/{n}.png", caption(n)) for n in range(COUNT)] if rows is None else rows
    if name.endswith(".jsonl"):
        lines = (json.dumps(dict(zip(heading, row, strict=True))) + "\n" for row in rows)
        (root / name).write_text("".join(lines))
    else:
        with (root / name).open("w", newline="") as file:
            csv.writer(file, delimiter="\t" if name.endswith(".tsv") else ",").writerows([heading, *rows])
    return root


def whose(folder: Path, split="train") -> dict[int, set[str]]:
    """The captions of each image of a set, by the number that its colour tells."""
    pairs = open_captions(Data(kind="captions", path=str(folder)), split)
    images = pairs.queries.get(np.arange(len(pairs.queries)))
    captions = pairs.documents.get(np.arange(len(pairs.documents)))
    found = {}
    for image, document in pairs.relevance:
        found.setdefault(int(images[image][0, 0, 0]), set()).add(captions[document])
    return found


EACH = {n: {caption(n)} for n in range(COUNT)}


def json_of(n: int) -> dict[str, bytes]:
    return {"json": json.dumps({"caption": caption(n), "width": 4}).encode()}


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (as_parquet, "auto"),
        (as_parquet, "caption"),
        (as_tar, "auto"),
        (lambda root: as_tar(root, json_of), "auto"),
        (lambda root: as_tar(root, json_of), "caption"),
        (lambda root: as_tar(root, lambda n: json_of(n) | {"txt": caption(n).encode()}), "auto"),
        (as_folder, "auto"),
        (lambda root: as_folder(root, name="metadata.jsonl", heading=("file_name", "text")), "auto"),
        (lambda root: as_folder(root, name="told.tsv", heading=("image", "said")), "told.tsv:said"),
        (lambda root: as_folder(root, name="told.tsv", heading=("image", "said")), "said"),
        (lambda root: as_folder(root, [(f"{n}.png", caption(n)) for n in range(COUNT)]), "captions.csv"),
    ],
)
def test_every_image_has_its_own_caption_however_they_were_shuffled(make, name, tmp_path):
    report = ingest(str(make(tmp_path / "source")), str(tmp_path / "set"), captions=name, vocabulary=512)
    assert report["captions"] == report["images_with_captions"] == {"train": COUNT}
    assert report["dropped"] == 0
    assert any("captions by" in remark for remark in report["remarks"])
    assert whose(tmp_path / "set") == EACH
    pairs = open_captions(Data(kind="captions", path=str(tmp_path / "set")), "train")
    assert pairs.is_bijection
    assert load_tokenizer(Data(kind="captions", path=str(tmp_path / "set")))


def test_several_captions_of_an_image_and_equal_ones_of_several_are_judged_pairs(tmp_path):
    captions = [["a", "b"], ["b"], ["c", "c"]]
    report = ingest(str(as_parquet(tmp_path / "source", captions)), str(tmp_path / "set"), captions="auto")
    assert report["captions"] == {"train": 3}
    assert "2 captions repeat another, 3 differ" in report["remarks"]
    assert whose(tmp_path / "set") == {0: {"a", "b"}, 1: {"b"}, 2: {"c"}}
    assert not open_captions(Data(kind="captions", path=str(tmp_path / "set")), "train").is_bijection


def test_several_rows_of_a_table_tell_of_one_image(tmp_path):
    rows = [(f"images/{n}.png", f"{word} {n}") for n in range(COUNT) for word in ("one", "other")]
    ingest(str(as_folder(tmp_path / "source", rows)), str(tmp_path / "set"), captions="auto")
    assert whose(tmp_path / "set") == {n: {f"one {n}", f"other {n}"} for n in range(COUNT)}


def test_a_caption_of_two_splits_is_of_all_and_is_searched_in_either(tmp_path):
    as_parquet(tmp_path / "source", ["a dog", "a cat"])
    images = [{"bytes": colour(n)} for n in (20, 21)]
    pq.write_table(pa.table({"image": images, "caption": ["a dog", "a bird"]}), tmp_path / "source" / "test.parquet")
    report = ingest(str(tmp_path / "source"), str(tmp_path / "set"), captions="caption")
    assert report["captions"] == {"train": 1, "": 1, "test": 1}
    assert "1 captions stand in several splits and are of all" in report["remarks"]
    assert whose(tmp_path / "set", "test") == {20: {"a dog"}, 21: {"a bird"}}
    assert len(open_captions(Data(kind="captions", path=str(tmp_path / "set")), "test").documents) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: as_parquet(root, ["a", "  ", "c"]), r"row 1: the caption is empty"),
        (lambda root: as_parquet(root, ["a", None, "c"]), r"row 1: the image has no caption"),
        (
            lambda root: as_tar(root, lambda n: {"txt": b"\xff" if n == 3 else b"x"}),
            r"003\.png.*not UTF-8",
        ),
        (lambda root: as_tar(root, lambda n: {} if n == 3 else {"txt": b"x"}), r"003\.png: the image has no caption"),
        (
            lambda root: as_folder(root, [(f"images/{n}.png", caption(n)) for n in range(COUNT + 1)]),
            r"captions\.csv, line 14: no image is called 'images/12\.png'",
        ),
        (
            lambda root: as_folder(root, [(f"images/{n}.png", caption(n)) for n in range(COUNT - 1)]),
            r"images/11\.png: the image has no caption",
        ),
        (lambda root: as_parquet(root, ["x" * (2**20 + 1)] * 2), r"1,048,577 bytes, and 1,048,576 are the most"),
    ],
)
def test_what_cannot_be_used_is_named_and_with_skip_counted(make, message, tmp_path):
    source = str(make(tmp_path / "source"))
    with pytest.raises(DataError, match=message):
        ingest(source, str(tmp_path / "set"), captions="auto")
    assert not (tmp_path / "set").exists()
    if "1,048,577" in message:  # of all
        return
    report = ingest(source, str(tmp_path / "set"), captions="auto", skip_unreadable=True)
    assert report["dropped"] == 1
    assert any("1 rows were dropped" in remark for remark in report["remarks"])
    assert len(whose(tmp_path / "set")) == sum(report["images_with_captions"].values())


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (as_parquet, "said", r"--captions said: no such column, but image, caption"),
        (lambda root: as_parquet(root, text=["x"] * COUNT), "auto", r"caption and text could all be the captions"),
        (lambda root: as_parquet(root, [1, 2]), "caption", r"holds int64, and captions are text"),
        (as_tar, "said", r"said there for the captions"),
        (lambda root: as_folder(root, heading=("name", "caption")), "auto", r"no table beside the images"),
        (lambda root: as_folder(root, heading=("a", "caption")), "captions.csv", r"column of file names is not clear"),
        (lambda root: as_folder(root), "captions.csv:said", r"said there for the captions, among caption"),
    ],
)
def test_captions_that_are_not_called_so_are_refused_with_what_there_is(make, name, message, tmp_path):
    with pytest.raises(DataError, match=message):
        ingest(str(make(tmp_path / "source")), str(tmp_path / "set"), captions=name)


def test_images_that_cannot_be_read_or_have_no_caption_shift_no_caption(tmp_path):
    root = as_folder(tmp_path / "source", [(f"images/{n}.png", caption(n)) for n in range(COUNT) if n != 4])
    for n in (2, 7):
        (root / "images" / f"{n}.png").write_bytes(b"no image")
    report = ingest(str(root), str(tmp_path / "set"), captions="auto", skip_unreadable=True)
    assert report["unreadable"] == 2
    assert report["rows"] == {"train": COUNT - 2}
    assert "1 images have no caption, and are none of data.kind: captions" in report["remarks"]
    assert whose(tmp_path / "set") == {n: {caption(n)} for n in range(COUNT) if n not in (2, 4, 7)}
    data = Data(kind="captions", path=str(tmp_path / "set"))
    pairs, every = open_captions(data, "train"), open_images(Data(path=str(tmp_path / "set")), "train")
    assert pairs.queries.blocks.sum() == len(pairs.queries) == COUNT - 3
    assert len(every) == COUNT - 2
    limited = open_captions(data.model_copy(update={"limit": 5}), "train")
    assert len(limited.queries) == len(limited.documents) == 5


def test_a_finished_set_gets_captions_and_once_more_the_same(tmp_path, capsys):
    source = str(as_parquet(tmp_path / "source"))
    ingest(source, str(tmp_path / "set"))
    with pytest.raises(DataError, match=r"no captions/manifest\.json"):
        open_captions(Data(kind="captions", path=str(tmp_path / "set")), "train")
    for _ in range(2):
        ingest(source, str(tmp_path / "set"), captions="caption")
        assert whose(tmp_path / "set") == EACH
    assert "these very captions are there already" in capsys.readouterr().err


def test_a_copy_of_a_set_takes_its_captions_along_or_says_that_it_does_not(tmp_path):
    ingest(str(as_parquet(tmp_path / "source", [["a", "b"], ["b"], ["c"]])), str(tmp_path / "set"), captions="auto")
    bare = ingest(str(tmp_path / "set"), str(tmp_path / "bare"))
    assert any("are not taken along; give --captions auto" in remark for remark in bare["remarks"])
    ingest(str(tmp_path / "set"), str(tmp_path / "copy"), captions="auto", seed=1)
    assert whose(tmp_path / "copy") == {0: {"a", "b"}, 1: {"b"}, 2: {"c"}}


def test_a_table_of_captions_is_not_said_to_be_unread(tmp_path):
    source = str(as_folder(tmp_path / "source"))
    assert any("(captions.csv) were not read" in remark for remark in ingest(source, str(tmp_path / "a"))["remarks"])
    told = ingest(source, str(tmp_path / "b"), captions="auto")["remarks"]
    assert not any("(captions.csv) were not read" in remark for remark in told)


def test_captions_of_other_images_are_refused(tmp_path):
    ingest(str(as_parquet(tmp_path / "source")), str(tmp_path / "set"), captions="caption")
    ingest(str(as_parquet(tmp_path / "others", ["x", "y"])), str(tmp_path / "other"))
    (tmp_path / "set" / "captions").rename(tmp_path / "other" / "captions")
    with pytest.raises(DataError, match="captions of other images"):
        open_captions(Data(kind="captions", path=str(tmp_path / "other")), "train")


def test_a_set_on_s3_is_the_one_on_disk(tmp_path, s3, capsys):
    source = str(as_parquet(tmp_path / "source"))
    ingest(source, str(tmp_path / "set"), captions="caption")
    main(["ingest", source, f"{s3.uri}/set", "--captions", "auto", "--json"])
    assert json.loads(capsys.readouterr().out)["captions"] == {"train": COUNT}
    assert whose(f"{s3.uri}/set") == whose(tmp_path / "set") == EACH


def test_a_vocabulary_without_captions_and_captions_of_pairs_are_refused(tmp_path, capsys):
    source = str(as_parquet(tmp_path / "source"))
    assert main(["ingest", source, str(tmp_path / "set"), "--vocabulary", "600"])
    assert "--vocabulary: is of texts" in capsys.readouterr().err
    assert main(["ingest", source, str(tmp_path / "set"), "--kind", "pairs", "--captions", "auto"])
    assert "--captions: is for sets of images" in capsys.readouterr().err
    with pytest.raises(SpecError, match="--vocabulary 3"):
        ingest(source, str(tmp_path / "set"), captions="auto", vocabulary=3)
