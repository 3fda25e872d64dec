"""Vectors out of a run over images: every image's, in parts that go on, and what is nearest among them."""

import io
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import refused, told
from PIL import Image
from safetensors.numpy import load_file
from train.harness import small_spec, trained_folder

from emc2dist import files
from emc2dist.cli import main
from emc2dist.data.images import open_images
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.run.vectors import images as vectors
from emc2dist.train.evaluation import plain_views

CLASSES = ["cat", "dog"]


def drawing(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def write(file, seeds, labels):
    image = [{"bytes": drawing(seed), "path": f"{file.stem}/{seed}.png"} for seed in seeds]
    table = pa.table({"image": image, "label": labels})
    pq.write_table(table.replace_schema_metadata({"classes": ",".join(CLASSES)}), file, row_group_size=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with two checkpoints, over a set of 10 images and 4 others."""
    folder = tmp_path_factory.mktemp("vectors")
    (folder / "set").mkdir()
    write(folder / "set" / "train.parquet", range(10), [0, 1] * 5)
    write(folder / "set" / "test.parquet", [10, 11, 12, 13], [0, 1, None, -1])
    spec = small_spec(
        f"run_dir={folder}", f"data.path={folder / 'set'}", f"data.cache_dir={folder / 'cache'}", "data.limit=null",
        "batch_size=4", "epochs=2", "eval.every=0",
    )  # fmt: skip
    return trained_folder(spec).place.path


@pytest.fixture
def source(run):
    return run.parent / "set"


def column(table, name):
    return np.array(table[name].to_pylist(), np.float32)


def expected(run, source, split):
    """Representations and features of a split, image by image."""
    newest = LoadedCheckpoint.at(run)
    images = open_images(newest.spec.data.model_copy(update={"path": str(source), "limit": None}), split)
    feature = np.concatenate([newest.features(images, np.array([index])) for index in range(len(images))])
    (views,) = plain_views(images, np.arange(len(images)), newest.spec.views.size)
    return newest.encoder.representation(views).detach().numpy(), feature


def test_each_image_of_each_split_has_a_row_with_both_vectors(run, source, tmp_path, capsys):
    found = told(capsys, "embed", run, source, tmp_path / "v.parquet")
    table = pq.read_table(tmp_path / "v.parquet")
    assert (found["images"], found["feature"]) == (14, 16)
    assert table["split"].to_pylist() == ["train"] * 10 + ["test"] * 4
    assert table["index"].to_pylist() == [*range(10), *range(4)]
    assert table["path"].to_pylist() == [f"train/{n}.png" for n in range(10)] + [f"test/{n}.png" for n in range(10, 14)]
    assert table["label"].to_pylist() == [0, 1] * 5 + [0, 1, None, None]
    assert table["class"].to_pylist() == ["cat", "dog"] * 5 + ["cat", "dog", None, None]
    for name, rows in (("train", table[:10]), ("test", table[10:])):
        representation, feature = expected(run, source, name)
        np.testing.assert_allclose(column(rows, "representation"), representation, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(column(rows, "feature"), feature, atol=1e-6)
    metadata = table.schema.metadata
    assert metadata[b"checkpoint"].decode() == str(max(run.glob("checkpoint-*")))
    assert metadata[b"data"].decode() == str(source)
    assert not (tmp_path / "v.parquet.parts").exists()


def test_one_split_by_a_checkpoint_of_its_own(run, source, tmp_path, capsys):
    older = min(run.glob("checkpoint-*"))
    told(capsys, "embed", older, source, tmp_path / "v.parquet", "--split", "test")
    told(capsys, "embed", run, source, tmp_path / "w.parquet", "--split", "test")
    first, last = (pq.read_table(tmp_path / name) for name in ("v.parquet", "w.parquet"))
    assert first["split"].to_pylist() == ["test"] * 4
    np.testing.assert_allclose(column(first, "feature"), expected(older, source, "test")[1], atol=1e-6)
    assert np.abs(column(first, "feature") - column(last, "feature")).max() > 1e-4
    said = refused(capsys, "embed", run, source, tmp_path / "x.parquet", "--split", "nothing")
    assert "has no split nothing, but train, test" in said


class Cut(Exception):
    """What ends an embedding in these tests."""


def test_what_was_cut_off_goes_on_and_gives_the_same_file(run, source, tmp_path, capsys, monkeypatch):
    told(capsys, "embed", run, source, tmp_path / "whole.parquet")
    monkeypatch.setattr(vectors, "_PART", 3)
    make, made = vectors._table, []

    def stopping_after(most):
        def table(newest, split, index):
            if len(made) == most:
                raise Cut
            made.append((split.name, int(index[0])))
            return make(newest, split, index)

        return table

    out = tmp_path / "v.parquet"
    monkeypatch.setattr(vectors, "_table", stopping_after(2))
    with pytest.raises(Cut):
        main(["embed", str(run), str(source), str(out)])
    assert not out.exists()
    monkeypatch.setattr(vectors, "_table", stopping_after(99))
    found = told(capsys, "embed", run, source, out)
    assert made == [("train", 0), ("train", 3), ("train", 6), ("train", 9), ("test", 0), ("test", 3)]
    assert found["remarks"] == [f"{out}.parts: goes on after 2 parts of up to 3 images"]
    both = [pq.read_table(file) for file in (tmp_path / "whole.parquet", out)]
    assert both[0].drop_columns(["representation", "feature"]) == both[1].drop_columns(["representation", "feature"])
    np.testing.assert_allclose(
        column(both[0], "representation"), column(both[1], "representation"), rtol=1e-4, atol=1e-6
    )
    assert not (tmp_path / "v.parquet.parts").exists()


def test_they_go_to_s3_as_to_a_disk_and_are_found_there(run, source, s3, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(vectors, "_PART", 3)
    out = f"{s3.uri}/vectors.parquet"
    told(capsys, "embed", run, source, tmp_path / "v.parquet")
    told(capsys, "embed", run, source, out)
    assert files.at(out).read() == (tmp_path / "v.parquet").read_bytes()
    assert files.at(f"{out}.parts").entries() == []
    assert told(capsys, "neighbours", out, "train/4.png")["query"]["index"] == 4


def test_parts_of_another_checkpoint_are_begun_anew_and_what_is_not_ours_is_kept(
    run, source, tmp_path, capsys, monkeypatch
):
    out, parts = tmp_path / "v.parquet", tmp_path / "v.parquet.parts"
    monkeypatch.setattr(vectors._Parts, "join", lambda *_: None)  # so they stay
    told(capsys, "embed", min(run.glob("checkpoint-*")), source, out)
    assert (parts / "part-000000.parquet").exists()
    monkeypatch.undo()
    found = told(capsys, "embed", run, source, out)
    assert f"{parts}: is of another checkpoint or other images, and begins anew" in found["remarks"]
    np.testing.assert_allclose(column(pq.read_table(out)[:10], "feature"), expected(run, source, "train")[1], atol=1e-6)
    parts.mkdir()
    (parts / "mine.txt").write_text("mine")
    assert "it holds others; move it" in refused(capsys, "embed", run, source, out)
    assert (parts / "mine.txt").read_text() == "mine"


def test_the_nearest_rows_are_those_of_a_plain_loop(run, source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(vectors, "_PART", 3)  # several row groups
    out = tmp_path / "v.parquet"
    told(capsys, "embed", run, source, out)
    table = pq.read_table(out)
    (tmp_path / "new.png").write_bytes(drawing(4))
    for by in ("representation", "feature"):
        rows = column(table, by)
        cosines = rows @ rows[4] / np.linalg.norm(rows, axis=1) / np.linalg.norm(rows[4])
        order = np.argsort(-cosines, kind="stable")
        others = [row for row in order if row != 4][:5]
        for words in (["4", "--split", "train"], ["train/4.png"]):
            found = told(capsys, "neighbours", out, *words, "--count", "5", "--by", by)
            assert [row["path"] for row in found["neighbours"]] == [table["path"][row].as_py() for row in others]
            np.testing.assert_allclose([row["cosine"] for row in found["neighbours"]], cosines[others], atol=1e-5)
            assert found["query"]["path"] == "train/4.png"
        new = told(capsys, "neighbours", out, tmp_path / "new.png", "--count", "5", "--by", by)
        assert new["neighbours"][0]["path"] == "train/4.png"
        assert new["neighbours"][0]["cosine"] == pytest.approx(1)
        assert [row["path"] for row in new["neighbours"][1:]] == [table["path"][row].as_py() for row in others[:4]]


def test_neighbours_are_drawn_and_told_in_a_table(run, source, tmp_path, capsys):
    out = tmp_path / "v.parquet"
    told(capsys, "embed", run, source, out)
    words = ["neighbours", str(out), "train/4.png", "--count", "7", "--out", str(tmp_path / "n.png")]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert text.count("train/") + text.count("test/") == 8  # the query's, too
    wide, high = Image.open(tmp_path / "n.png").size
    assert wide / high == pytest.approx(6 * 1.5 / (2 * 1.85), rel=0.02)


def test_what_cannot_be_asked_is_named(run, source, tmp_path, capsys):
    out = tmp_path / "v.parquet"
    told(capsys, "embed", run, source, out)
    for words, said in (
        ([out, "3"], "3: is 2 rows (split test, train); say which: --split NAME"),
        ([out, "cat.png"], "cat.png: is neither a path nor an index of"),
        ([source / "test.parquet", "3"], "holds no vectors that `emc2dist embed` wrote"),
        ([tmp_path / "none.parquet", "3"], "none.parquet: no such file; make it by `emc2dist embed RUN SOURCE"),
        ([out, __file__], "is no image that can be read"),
    ):
        assert said in refused(capsys, "neighbours", *words)
    for words, said in (
        ([run, source, out, "--side", "query"], "--side: is not of a run over images"),
        ([run, tmp_path / "nothing", out], "nothing: no such file or folder"),
        ([run, source, f"{tmp_path}/"], "means a folder; name a file in it"),
        ([run / "checkpoint-000000099", source, out], "checkpoint-000000099"),
        ([run, source, tmp_path / "v.npy"], "v.npy: Parquet is what is written, and to a file; call it *.parquet"),
        ([run, source, "-"], "-: Parquet is what is written"),
    ):
        assert said in refused(capsys, "embed", *words)


def test_neither_what_is_read_nor_what_is_a_runs_own_is_written_over(run, source, tmp_path, capsys):
    shutil.copytree(source, tmp_path / "set")
    (tmp_path / "link.parquet").symlink_to(tmp_path / "set" / "train.parquet")
    before = (tmp_path / "set" / "train.parquet").read_bytes()
    for out in (tmp_path / "set" / "v.parquet", tmp_path / "link.parquet"):
        assert "is, or lies in, what is read" in refused(capsys, "embed", run, tmp_path / "set", out)
    assert (tmp_path / "set" / "train.parquet").read_bytes() == before
    assert not (tmp_path / "set" / "v.parquet").exists()
    shutil.copytree(run, tmp_path / "run")
    newest = max((tmp_path / "run").glob("checkpoint-*"))
    for command, out in (
        (["embed", tmp_path / "run", source], tmp_path / "run" / "model" / "v.parquet"),
        (["embed", tmp_path / "run", source], newest / "v.parquet"),
        (["export", tmp_path / "run"], newest / "trainer.safetensors"),
    ):
        assert "keeps what is its own; name another file" in refused(capsys, *command, out)
    told(capsys, "embed", tmp_path / "run", source, tmp_path / "run" / "vectors.parquet")  # beside them there is room


def test_an_older_checkpoint_is_evaluated_and_exported(run, tmp_path, capsys):
    older, newest = sorted(run.glob("checkpoint-*"))
    shares = [told(capsys, "evaluate", place)["feature"]["uniformity"] for place in (older, newest, run)]
    assert shares[0] != shares[1] == shares[2]
    told(capsys, "export", older, tmp_path / "older.safetensors")
    told(capsys, "export", run, tmp_path / "newest.safetensors")
    tensors = [load_file(tmp_path / f"{name}.safetensors") for name in ("older", "newest")]
    assert any(not np.array_equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    assert f"it is a checkpoint of {run}: give that, whose newest is taken" in refused(capsys, "report", older)
