"""The cache on this machine's disk, under images: bound, order of dropping, sharing between processes, and damage."""

import errno
import fcntl
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from io import FileIO
from pathlib import Path

import numpy as np
import pytest
from data.test_parquet import SCHEMA, colours, pixel, write

from emc2dist.data import checked, kept
from emc2dist.data.cache import DiskCache
from emc2dist.data.encoded import Traffic
from emc2dist.data.parquet import ParquetImages
from emc2dist.errors import DataError, StorageError


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    monkeypatch.setattr("emc2dist.terminal._said", set())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten groups of three rows; row r has colour r."""
    write(tmp_path / "set" / "train.parquet", [pixel(r) for r in range(30)], schema=SCHEMA)
    return tmp_path / "set"


def cached(cache: Path) -> list[str]:
    return sorted(file.name for file in (cache / "images").glob("*/*") if file.parent.name != "locks")


def held(cache: Path) -> int:
    return sum(file.stat().st_size for file in (cache / "images").glob("*/*") if file.parent.name != "locks")


def bounded(folder: Path, cache: Path, extents: float) -> ParquetImages:
    """The set with a cache that holds so many extents: row groups, as this set was not ingested."""
    images = ParquetImages.open(folder, cache_dir=cache)
    assert images is not None
    images._encoded._cache.limit_bytes = int(extents * 3 * (len(pixel(1)) + 24))
    return images


def test_an_extent_is_fetched_once_for_all_who_share_the_cache(folder, tmp_path):
    images = ParquetImages.open(folder, cache_dir=tmp_path / "cache")
    images.get(np.array([0, 1, 4]))
    assert images.traffic == Traffic(hits=0, misses=2, fetched_bytes=6 * (len(pixel(1)) + 24))
    images.get(np.array([2, 3]))
    assert images.traffic == Traffic(hits=2, misses=2, fetched_bytes=6 * (len(pixel(1)) + 24))
    copy = pickle.loads(pickle.dumps(images))
    assert colours(copy.get(np.array([5, 0]))) == [5, 0]
    assert copy.traffic == Traffic(hits=2)


def test_the_cache_keeps_to_its_bound_and_drops_what_was_unused_longest(folder, tmp_path):
    images = bounded(folder, tmp_path / "cache", 8)
    for first in range(0, 24, 3):
        images.get(np.array([first]))
    assert len(cached(tmp_path / "cache")) == 8
    images.get(np.array([0, 3]))  # used again
    images.get(np.array([24]))
    assert held(tmp_path / "cache") <= images._encoded._cache.limit_bytes
    assert cached(tmp_path / "cache") == ["0", "1", "4", "5", "6", "7", "8"]
    before = images.traffic
    images.get(np.array([0, 3]))
    assert images.traffic - before == Traffic(hits=2)


def test_a_cache_smaller_than_an_extent_keeps_none_and_reading_goes_on(folder, tmp_path):
    images = bounded(folder, tmp_path / "cache", 0.5)
    asked = np.random.default_rng(0).permutation(30)
    assert colours(images.get(asked)) == asked.tolist()
    assert cached(tmp_path / "cache") == []


def test_every_order_of_access_stays_right_while_extents_come_and_go(folder, tmp_path):
    images = bounded(folder, tmp_path / "cache", 3)
    rng = np.random.default_rng(1)
    for _ in range(30):
        asked = rng.integers(0, 30, 12)
        assert colours(images.get(asked)) == asked.tolist()
        assert held(tmp_path / "cache") <= images._encoded._cache.limit_bytes


def test_a_changed_file_is_another_set(folder, tmp_path):
    images = ParquetImages.open(folder, cache_dir=tmp_path / "cache")
    assert colours(images.get(np.array([0]))) == [0]
    write(folder / "train.parquet", [pixel(100 + r) for r in range(30)])
    assert colours(ParquetImages.open(folder, cache_dir=tmp_path / "cache").get(np.array([0]))) == [100]
    with pytest.raises(StorageError, match=r"train\.parquet: changed since"):
        images.get(np.array([29]))


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)


def in_its_place(file: Path, make) -> None:
    file.unlink()
    make(file)


TABLE = 3 * 24
DAMAGES = {
    "emptied": lambda file: file.write_bytes(b""),
    "cut within the table": lambda file: file.write_bytes(file.read_bytes()[: TABLE - 1]),
    "cut within the images": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "zeros behind the table": lambda file: file.write_bytes(
        file.read_bytes()[:TABLE] + bytes(file.stat().st_size - TABLE)
    ),
    "a bit of a place": lambda file: flip(file, 1),
    "a bit of a length": lambda file: flip(file, 24 + 14),
    "a bit of a checksum": lambda file: flip(file, 24 + 17),
    "a bit of a pixel": lambda file: flip(file, -20),
    "rows changed about": lambda file: file.write_bytes(
        file.read_bytes()[24:48] + file.read_bytes()[:24] + file.read_bytes()[48:]
    ),
    "another extent's": lambda file: file.write_bytes((file.parent / "0").read_bytes()),
    "an older layout's": lambda file: file.write_bytes(
        np.array([32, 102, 172, 242]).tobytes() + pixel(90) + pixel(91) + pixel(92)
    ),
    "a folder": lambda file: in_its_place(file, Path.mkdir),
    "a folder with something in it": lambda file: in_its_place(file, lambda file: (file / "a").mkdir(parents=True)),
    "a pipe": lambda file: in_its_place(file, os.mkfifo),
    "a link to itself": lambda file: in_its_place(file, lambda file: file.symlink_to(file)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_an_extent_that_is_not_as_it_was_written_is_made_anew(damage, folder, tmp_path, capsys):
    images = ParquetImages.open(folder, cache_dir=tmp_path / "cache")
    images.get(np.arange(30))
    for file in (tmp_path / "cache" / "images").glob("[!l]*/[1-9]"):
        damage(file)
    before = images.traffic
    for _ in range(2):
        assert images.encoded(np.arange(30)) == [pixel(r) for r in range(30)]
    made = images.traffic - before
    in_the_way = any(file.is_dir() for file in (tmp_path / "cache" / "images").glob("*/[1-9]"))
    assert made.misses == (18 if in_the_way else 9)  # what is not emc2dist's is not removed
    said = capsys.readouterr().err
    assert said.count("a damaged file of the cache") + said.count("; set data.cache_dir") in (1, 2)
    assert not list((tmp_path / "cache" / "images").glob("**/*.draft"))


def test_every_bit_of_an_extent_is_guarded(tmp_path):
    images = [b"a", None, b"bcd"]
    with (tmp_path / "0").open("w+b", buffering=0) as file:
        checked.write(file, checked.seed("k/0"), 3, [[memoryview(b"a"), None], [memoryview(b"bcd")]])
    content = (tmp_path / "0").read_bytes()
    assert len(content) == 3 * 24 + 4

    def read(content, name="k/0"):
        (tmp_path / "0").write_bytes(content)
        with FileIO(tmp_path / "0") as file:
            for row in range(3):
                with suppress(checked.Damaged):
                    yield row, checked.read(file, checked.seed(name), row)

    assert list(read(content)) == list(enumerate(images))
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        found = list(read(flipped))
        assert found == [one for one in enumerate(images) if one in found]  # nothing but what was written
        assert len(found) == 2
    for length in range(len(content)):
        assert all(image == images[row] for row, image in read(content[:length]))
    assert not list(read(content, "k/1"))
    assert not list(read(bytes(len(content))))


def test_a_cache_whose_disk_never_gives_back_what_was_written_is_given_up(folder, tmp_path, monkeypatch):
    images = ParquetImages.open(folder, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(checked, "write", lambda file, *_: file.write(bytes(1000)))
    with pytest.raises(
        StorageError, match=r"images/\w+/0: not what was written there, 3 times over; set data\.cache_dir"
    ):
        images.get(np.array([0]))


def test_a_decoder_is_asked_once(folder, tmp_path):
    write(folder / "train.parquet", [pixel(0), b"no image"])
    images = ParquetImages.open(folder, cache_dir=tmp_path / "cache")
    with pytest.raises(DataError, match=r"train\.parquet, row 1: the image cannot be decoded"):
        images.get(np.array([0, 1]))
    assert images.traffic.misses == 1  # a sound extent is not suspected


def test_threads_that_want_the_same_extent_fetch_it_once(folder, tmp_path):
    images = ParquetImages.open(folder, cache_dir=tmp_path / "cache")
    start = threading.Barrier(6)

    def read():
        start.wait(30)
        assert colours(images.get(np.arange(30))) == list(range(30))

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert images.traffic.misses == 10


def test_processes_share_the_folder(folder, tmp_path):
    images = bounded(folder, tmp_path / "cache", 4)
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(2) as pool:
        made = pool.starmap_async(_read, [(images, seed) for seed in range(4)]).get(120)
    for seed, found in enumerate(made):
        assert found == np.random.default_rng(seed).integers(0, 30, 100).tolist()


def _read(images, seed):
    return colours(images.get(np.random.default_rng(seed).integers(0, 30, 100)))


ERRORS = [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOLCK]
CALLS = {
    "os.mkdir": "what is fetched or decoded cannot be kept",
    "emc2dist.data.kept.new_draft": "what is fetched or decoded cannot be kept",
    "os.replace": "what is fetched or decoded cannot be kept",
    "os.utime": "when a file was last used cannot be noted",
    "fcntl.flock": "a lock, so that no two processes fetch the same, cannot be had",
    "emc2dist.data.kept.open_regular": "what is kept cannot be read",
    "os.scandir": "",
    "emc2dist.data.cache._for_locking": "",
}


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", CALLS)
def test_whatever_a_cache_may_not_do_is_done_without_and_said_once(call, number, folder, tmp_path, monkeypatch, capsys):
    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number))

    images = bounded(folder, tmp_path / "cache", 8)
    with monkeypatch.context() as patched:
        patched.setattr(call, refuse)
        for _ in range(2):
            assert colours(images.get(np.arange(30))) == list(range(30))
    said = [line for line in capsys.readouterr().err.splitlines() if "no room" not in line]
    assert len(said) == bool(CALLS[call])
    for line in said:
        assert line.startswith(f"{tmp_path / 'cache' / 'images'}: {CALLS[call]}")
        assert line.endswith(f"({os.strerror(number)}); {kept.advice(OSError())}")
    assert not list((tmp_path / "cache").glob("**/*.draft"))


@pytest.mark.parametrize("full", ["the cache", "the disk for temporary files too", "everything"])
def test_a_full_disk_is_done_without(full, folder, tmp_path, monkeypatch, capsys):
    taken = {"the cache": ["draft"], "the disk for temporary files too": ["draft", "temporary"]}

    def write_all(file, content):
        kind = "draft" if str(file.name).endswith(".draft") else "memory" if file.name in in_memory else "temporary"
        if kind in taken.get(full, [kind]):
            file.write(content[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        kept.write_all(file, content)

    in_memory, make = [], os.memfd_create
    monkeypatch.setattr(os, "memfd_create", lambda name: in_memory.append(make(name)) or in_memory[-1])
    monkeypatch.setattr(checked, "write_all", write_all)
    images = ParquetImages.open(folder, cache_dir=tmp_path / "cache")
    if full == "everything":
        with pytest.raises(StorageError, match=r"images: No space left on device; set data\.cache_dir"):
            images.get(np.arange(3))
    else:
        assert colours(images.get(np.arange(30))) == list(range(30))
        assert bool(in_memory) == (full != "the cache")
    assert capsys.readouterr().err.count("cannot be kept, so it is fetched or decoded again each time") == 1
    assert cached(tmp_path / "cache") == []


def test_too_many_open_files_are_called_that(folder, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    images = ParquetImages.open(folder, cache_dir=tmp_path / "cache")
    for call in ("emc2dist.data.kept.new_draft", "tempfile.TemporaryFile", "os.memfd_create"):
        monkeypatch.setattr(call, refuse)
    with pytest.raises(StorageError, match=r"Too many open files; let this process open more files \(ulimit -n\)"):
        images.get(np.arange(3))


def test_a_lock_that_is_never_let_go_is_not_waited_for_for_ever(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("emc2dist.data.cache._LONGEST_LOCK_S", 0.05)
    images = ParquetImages.open(folder, cache_dir=tmp_path / "cache")
    (tmp_path / "cache" / "images" / "locks").mkdir(parents=True)
    with ExitStack() as held:
        for number in range(256):
            lock = held.enter_context((tmp_path / "cache" / "images" / "locks" / str(number)).open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        assert colours(images.get(np.array([0]))) == [0]


def test_nothing_but_what_a_cache_wrote_is_ever_dropped(folder, tmp_path):
    home, key = tmp_path / "home", "0123456789abcdef01234567"
    theirs = ["notes.txt", "images/4", "images/2024/1", f"images/{key}/holiday.jpg", f"images/{key}/1.txt", "locks/1"]
    theirs += ["images/locks/1", "images/locks/deed.pdf", "elsewhere/1", "elsewhere/2.0.draft", f"images/{key}/3/4"]
    for name in theirs:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(name)
        os.utime(home / name, (1e9, 1e9))
    (home / "images" / key[::-1]).symlink_to(home / "elsewhere")
    (home / "images" / key / "2").symlink_to(home / "notes.txt")
    abandoned = home / "images" / key / "7.00.draft"
    abandoned.write_text("of a process that was killed")
    os.utime(abandoned, (1e9, 1e9))
    images = bounded(folder, home, 2)
    for _ in range(2):
        assert colours(images.get(np.arange(30))) == list(range(30))
    assert [(home / name).read_text() for name in theirs] == theirs
    assert (home / "images" / key / "2").is_symlink()
    assert not abandoned.exists()


def test_a_cache_that_others_empty_and_drop_from_under_a_run_keeps_serving_it(folder, tmp_path):
    images, done = bounded(folder, tmp_path / "cache", 4), threading.Event()

    def empty():
        while not done.is_set():
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)

    def read(seed):
        rng = np.random.default_rng(seed)
        return all(colours(images.get(asked)) == asked.tolist() for asked in rng.integers(0, 30, (25, 12)))

    vandal = threading.Thread(target=empty)
    vandal.start()
    try:
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(read, range(3))) == [True] * 3
    finally:
        done.set()
        vandal.join(60)


OTHER = 65534
AS_ROOT = pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None, reason="another user's files need root, and setpriv"
)


def without_rights_over_others(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python as this user, who may then do no more than any other with files that are not his own."""
    command = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", sys.executable, "-c", code, *map(str, arguments)]
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=120, check=False
    )


READ = """
import sys
import numpy as np
from data.test_parquet import colours
from emc2dist.data.parquet import ParquetImages
images = ParquetImages.open(sys.argv[1], cache_dir=sys.argv[2], cache_mib=int(sys.argv[3]))
assert colours(images.get(np.arange(30))) == list(range(30))
assert images.labels(np.arange(30)).tolist() == [0] * 30
print(images.traffic.hits, images.traffic.misses)
"""


@AS_ROOT
def test_a_user_reads_what_another_one_kept_and_does_without_what_he_may_not(folder, tmp_path):
    cache = tmp_path / "cache"
    ParquetImages.open(folder, cache_dir=cache).get(np.arange(15))  # half of it
    for file in [cache, *cache.glob("**/*")]:
        os.chown(file, OTHER, OTHER)
    before = sorted(cache.glob("**/*"))
    done = without_rights_over_others(READ, folder, cache, 100)
    assert (done.returncode, done.stdout) == (0, "5 5\n"), done.stderr
    assert sorted(cache.glob("**/*")) == before
    said = done.stderr.splitlines()
    assert len(said) == 3
    for what in ("cannot be kept for the next opening", "last used cannot be noted", "decoded again each time"):
        assert sum(what in line and "; set data.cache_dir" in line for line in said) == 1


@AS_ROOT
def test_users_add_to_a_folder_that_is_shared_on_purpose(folder, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o1777)  # as /tmp is
    images = ParquetImages.open(folder, cache_dir=cache)
    images.get(np.arange(15))
    assert (cache / "images").stat().st_mode & 0o7777 == 0o1777
    for file in cache.glob("**/*"):
        os.chown(file, OTHER, OTHER)
    DAMAGES["cut within the images"](next(cache.glob("images/*/0")))
    done = without_rights_over_others(READ, folder, cache, 100)
    assert (done.returncode, done.stdout) == (0, "5 6\n"), done.stderr
    assert {file.name for file in cache.glob("images/[!l]*/*") if file.stat().st_uid == 0} == set("56789")
    assert len([file for file in cache.glob("catalogues/*") if file.stat().st_uid == 0]) == 1  # the labels
    other = write(tmp_path / "other" / "train.parquet", [pixel(r) for r in range(30)])
    assert without_rights_over_others(READ, other.parent, cache, 100).stdout == "0 10\n"
    assert without_rights_over_others(READ, other.parent, cache, 100).stdout == "10 0\n"


def test_what_is_made_while_another_process_is_about_to_open_its_folder_is_open_too(tmp_path):
    tmp_path.chmod(0o1777)
    (tmp_path / "images").mkdir(mode=0o755)  # by the other process, which opens it in a moment
    DiskCache(tmp_path / "images", 100).put("0123456789abcdef01234567/0", lambda file: file.write(b"content")).close()
    assert next((tmp_path / "images").glob("0*")).stat().st_mode & 0o7777 == 0o1777


@AS_ROOT
def test_a_cache_full_of_files_that_may_not_be_dropped_keeps_no_more(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o1777)
    theirs = cache / "images" / "0123456789abcdef01234567"
    theirs.mkdir(parents=True)
    with (theirs / "0").open("wb") as file:
        file.truncate(2**21)
    for file in (cache / "images", theirs, theirs / "0"):
        os.chown(file, OTHER, OTHER)
        file.chmod(0o1777)
    write(tmp_path / "set" / "train.parquet", [pixel(r) for r in range(30)])
    done = without_rights_over_others(READ, tmp_path / "set", cache, 1)
    assert (done.returncode, done.stdout) == (0, "0 10\n"), done.stderr
    assert "files of others cannot be dropped for room (Operation not permitted)" in done.stderr
    assert "no room to keep" in done.stderr
    assert (theirs / "0").exists()


def test_what_is_dropped_stays_readable_for_who_has_it_open(tmp_path):
    cache = DiskCache(tmp_path / "images", 100)
    with cache.put("a/0", lambda file: file.write(b"content")) as file:
        cache.drop("a/0", file)
        assert cache.open("a/0") is None
        assert os.pread(file.fileno(), 7, 0) == b"content"
