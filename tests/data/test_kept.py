"""What is kept of a set for its next opening: believed only as it was written, and done without where it cannot be."""

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from data.test_cache import flip, in_its_place
from data.test_parquet import SCHEMA, pixel, write

from emc2dist.data import kept
from emc2dist.data.parquet import ParquetImages
from emc2dist.errors import StorageError

CONTENT = bytes(range(256)) * 5


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    monkeypatch.setattr("emc2dist.terminal._said", set())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of 15 rows each; row r has colour r and label r % 2."""
    for n in range(2):
        rows = range(15 * n, 15 * n + 15)
        write(tmp_path / "set" / f"train-{n}.parquet", [pixel(r) for r in rows], [r % 2 for r in rows], schema=SCHEMA)
    return tmp_path / "set"


def opened(folder: Path, cache: Path) -> ParquetImages:
    images = ParquetImages.open(folder, cache_dir=cache)
    assert images is not None
    return images


DAMAGES = {
    "emptied": lambda file: file.write_bytes(b""),
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "the first bit": lambda file: flip(file, 0),
    "the last bit": lambda file: flip(file, -1),
    "another's text": lambda file: file.write_text('{"counts": [[1]], "classes": [], "labelled": true}'),
    "a folder": lambda file: in_its_place(file, Path.mkdir),
    "a pipe": lambda file: in_its_place(file, os.mkfifo),
    "a link to itself": lambda file: in_its_place(file, lambda file: file.symlink_to(file)),
    "a link to nowhere": lambda file: in_its_place(file, lambda file: file.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_kept_comes_back_only_as_it_was_written(damage, tmp_path):
    file = tmp_path / "catalogues" / "abc.labels"
    assert kept.recall(file) is None
    kept.keep(file, CONTENT)
    assert kept.recall(file) == CONTENT
    damage(file)
    assert kept.recall(file) is None


def test_what_belongs_to_another_name_or_version_is_passed_over(tmp_path, monkeypatch):
    kept.keep(tmp_path / "catalogues" / "a", CONTENT)
    (tmp_path / "catalogues" / "a").rename(tmp_path / "catalogues" / "b")
    assert kept.recall(tmp_path / "catalogues" / "b") is None
    kept.keep(tmp_path / "catalogues" / "a", CONTENT)
    monkeypatch.setattr(kept, "__version__", "9")
    assert kept.recall(tmp_path / "catalogues" / "a") is None


@pytest.mark.parametrize("what", ["footers", "labels"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_set_opens_rightly_whatever_became_of_what_was_kept(damage, what, folder, tmp_path):
    opened(folder, tmp_path / "cache").labels(np.arange(30))
    (file,) = (tmp_path / "cache" / "catalogues").glob(f"*.{what}")
    damage(file)
    for _ in range(2):
        images = opened(folder, tmp_path / "cache")
        assert (len(images), images.classes) == (30, ["cat", "dog"])
        assert images.labels(np.arange(30)).tolist() == [r % 2 for r in range(30)]
    if not file.is_dir():
        assert kept.recall(file) is not None  # made anew


def test_damage_is_said_once(folder, tmp_path, capsys):
    opened(folder, tmp_path / "cache").labels(np.arange(30))
    for file in (tmp_path / "cache" / "catalogues").iterdir():
        DAMAGES["cut short"](file)
    opened(folder, tmp_path / "cache").labels(np.arange(30))
    said = capsys.readouterr().err
    assert said.count("a damaged file of the cache, or one of another version; it is made anew") == 1
    assert str(tmp_path / "cache" / "catalogues") in said


@pytest.mark.parametrize(
    "number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENAMETOOLONG]
)
@pytest.mark.parametrize("call", ["os.mkdir", "os.replace", "emc2dist.data.kept.write_all"])
def test_where_nothing_can_be_kept_a_set_opens_and_it_is_said_once(call, number, folder, tmp_path, monkeypatch, capsys):
    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(call, refuse)
    for _ in range(2):
        assert opened(folder, tmp_path / "cache").labels(np.arange(30)).tolist() == [r % 2 for r in range(30)]
    said = capsys.readouterr().err
    assert said.count("cannot be kept for the next opening") == 1
    assert f"({os.strerror(number)}); set data.cache_dir (ingest: --cache-dir) to a folder" in said
    assert not [file for file in tmp_path.glob("cache/**/*") if file.is_file()]  # no draft is left


def test_a_file_in_the_way_and_a_missing_home_are_done_without(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    assert len(opened(folder, tmp_path / "file")) == 30
    assert f"{tmp_path / 'file' / 'catalogues'}: what is found out" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # of a user without a home folder
    assert len(opened(folder, Path("~/.cache/emc2dist"))) == 30
    assert "(no home folder is known)" in capsys.readouterr().err
    assert not Path("~").exists()
    with pytest.raises(StorageError, match=r"s3:// cannot be used here"):
        ParquetImages.open(folder, cache_dir="s3://bucket/cache")


def test_those_who_open_a_new_set_at_once_all_open_it(folder, tmp_path, monkeypatch):
    together, rename = threading.Barrier(4), Path.replace

    def replace(self, target):  # all have written before any of them gives its draft its name
        together.wait(30)
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    rows, threads = [], []
    for _ in range(4):
        threads.append(threading.Thread(target=lambda: rows.append(len(opened(folder, tmp_path / "cache")))))
        threads[-1].start()
    for thread in threads:
        thread.join(60)
    assert rows == [30] * 4
    assert len(list((tmp_path / "cache" / "catalogues").iterdir())) == 1


def test_what_is_kept_of_a_set_is_of_that_folder_whatever_it_is_called_from(tmp_path, monkeypatch):
    rows = {"a": [*range(30)], "b": [1, 0, *range(2, 30)]}
    for n, name in enumerate(rows):
        write(tmp_path / name / "set.parquet", [pixel(r) for r in rows[name]], [n] * 30, schema=SCHEMA)
        os.utime(tmp_path / name / "set.parquet", (1e9, 1e9))
    assert len({(tmp_path / name / "set.parquet").stat().st_size for name in "ab"}) == 1
    for n, name in enumerate(rows):
        monkeypatch.chdir(tmp_path / name)
        images = opened(Path("set.parquet"), tmp_path / "cache")
        assert images.labels(np.arange(30)).tolist() == [n] * 30
        assert images.encoded(np.array([0])) == [pixel(n)]
