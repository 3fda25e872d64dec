"""Files and folders on this machine or on S3, by one set of names.

    folder = files.at("s3://bucket/sets/cifar10", spec.s3)       # or files.at("data/cifar10")
    for entry in folder.entries(): ...                            # name, size, tag
    (folder / "manifest.json").write(data)                        # whole or not at all
    (folder / entry.name).read_range(start, size, entry.tag)      # refused if the file is no longer the one of that tag

A tag changes when the content does: the ETag on S3, the time of change on disk. S3 is spoken to through s3fs, with one
rule for retries: what may pass (no connection, a 5xx, "slow down", an answer cut short) is tried `s3.attempts` times
with random, doubling pauses; what will not pass is not tried again. Every error is a `StorageError` that names the URI
and says what to do. Credentials come from the ordinary AWS chain alone, and no message repeats them.
"""

import io
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

import fsspec.asyn
from aiohttp import ClientError as TransferError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as NoConnection
from pyarrow import fs as arrow
from s3fs import S3FileSystem
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from emc2dist.config import S3
from emc2dist.errors import StorageError, StorageUnreachable

T = TypeVar("T")

_SCHEME = "s3://"


class Entry(NamedTuple):
    """A file of a folder."""

    name: str
    size: int
    """Bytes."""
    tag: str
    """Changes when the content does."""


class Place(ABC):
    """A file or a folder. `str(place)` is what a person would write."""

    remote: bool
    """Whether it lies beyond the network."""

    @abstractmethod
    def __truediv__(self, name: str) -> "Place":
        """What lies at `name` (which may hold slashes) in this folder."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The last part of the path."""

    @abstractmethod
    def entry(self) -> Entry | None:
        """This file, or None where there is no file of this name."""

    @abstractmethod
    def entries(self) -> list[Entry]:
        """The files directly in this folder, by name; none where there is no folder."""

    @abstractmethod
    def folders(self) -> list[str]:
        """The names of the folders directly in this one, sorted."""

    @abstractmethod
    def read(self) -> bytes:
        """The whole file."""

    @abstractmethod
    def read_range(self, start: int, size: int, tag: str) -> bytes:
        """`size` bytes from `start`. Raises StorageError where the tag or the length is no longer the file's."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Write the file: whole or not at all. Its folder is made where it is missing."""

    @abstractmethod
    def append(self, data: bytes) -> None:
        """Add to the end of the file. On S3, which cannot, the whole file is written again."""

    @abstractmethod
    def put(self, source: Path) -> Entry:
        """Move a finished local file here: whole or not at all."""

    @abstractmethod
    def remove(self) -> None:
        """Remove the file, or the folder with all that is in it; nothing where there is none."""

    @abstractmethod
    def arrow(self) -> tuple[arrow.FileSystem, str]:
        """pyarrow's filesystem and the path in it, for libraries that want those (Ray Train)."""

    def local(self, entry: Entry) -> io.FileIO | None:
        """The file that `entry` describes, opened, if it lies on this machine; None beyond the network.

        Raises:
            StorageError: it has changed.
        """
        return None

    def open(self, entry: Entry) -> BinaryIO:
        """The file that `entry` describes, for reading here and there: every read is a `read_range`."""
        return cast(BinaryIO, _Window(self, entry))

    def fetch(self, folder: Path, names: Collection[str]) -> Path:
        """Those files of this folder that are there, in a local folder: in `folder`, or where they already are."""
        for entry in self.entries():
            if entry.name in names:
                (folder / entry.name).write_bytes((self / entry.name).read())
        return folder


def at(path: str | Path, s3: S3 | None = None) -> Place:
    """The place at a local path or an `s3://bucket/key` URI.

    Raises:
        StorageError: the URI names no bucket.
    """
    text = str(path)
    if not text.startswith(_SCHEME):
        return _Local(Path(text).expanduser())
    key = text.removeprefix(_SCHEME).rstrip("/")
    if not key:
        raise StorageError(f"{text}: names no bucket; write s3://bucket/folder")
    return _Remote(key, s3 or S3())


def is_remote(path: str) -> bool:
    """Whether `at(path)` lies beyond the network."""
    return path.startswith(_SCHEME)


class _Window(io.RawIOBase):
    """A file read by ranges, and only while it is the one that its entry describes."""

    def __init__(self, place: Place, entry: Entry) -> None:
        self._place, self._entry, self._position = place, entry, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._entry.size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._entry.size - self._position)
        if size <= 0:
            return 0
        buffer[:size] = self._place.read_range(self._position, size, self._entry.tag)
        self._position += size
        return size


class _Local(Place):
    remote = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Place:
        return _Local(self.path / name)

    @property
    def name(self) -> str:
        return self.path.name

    def entry(self) -> Entry | None:
        return self._entry(self.path) if self.path.is_file() else None

    def entries(self) -> list[Entry]:
        if not self.path.is_dir():
            return []
        with self._explained():
            return sorted(self._entry(file) for file in self.path.iterdir() if file.is_file())

    def folders(self) -> list[str]:
        if not self.path.is_dir():
            return []
        return sorted(folder.name for folder in self.path.iterdir() if folder.is_dir())

    def read(self) -> bytes:
        with self._explained():
            return self.path.read_bytes()

    def read_range(self, start: int, size: int, tag: str) -> bytes:
        with self._explained(), self._pinned(tag) as file:
            return _whole(self, os.pread(file.fileno(), size, start), size)

    def local(self, entry: Entry) -> io.FileIO | None:
        with self._explained():
            return self._pinned(entry.tag)

    def _pinned(self, tag: str) -> io.FileIO:
        file = io.FileIO(self.path)
        if str(os.fstat(file.fileno()).st_mtime_ns) != tag:
            raise StorageError(f"{self}: {_CHANGED}")
        return file

    def write(self, data: bytes) -> None:
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            draft = self._draft()
            draft.write_bytes(data)
            draft.replace(self.path)

    def append(self, data: bytes) -> None:
        with self._explained(), self.path.open("ab") as file:
            file.write(data)

    def put(self, source: Path) -> Entry:
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                source.replace(self.path)
            except OSError:  # another disk
                shutil.move(source, self._draft())
                self._draft().replace(self.path)
            return self._entry(self.path)

    def remove(self) -> None:
        with self._explained():
            if self.path.is_dir():
                shutil.rmtree(self.path)
            else:
                self.path.unlink(missing_ok=True)

    def arrow(self) -> tuple[arrow.FileSystem, str]:
        return arrow.LocalFileSystem(), str(self.path)

    def fetch(self, folder: Path, names: Collection[str]) -> Path:
        return self.path

    def _draft(self) -> Path:
        return self.path.with_name(f".{self.path.name}.draft")

    @staticmethod
    def _entry(file: Path) -> Entry:
        status = file.stat()
        return Entry(file.name, status.st_size, str(status.st_mtime_ns))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"{self}: {error.strerror or error}; check that it is there and may be used") from error


class _Remote(Place):
    remote = True

    def __init__(self, key: str, s3: S3) -> None:
        self.key, self.s3 = key, s3

    def __str__(self) -> str:
        return _SCHEME + self.key

    def __truediv__(self, name: str) -> Place:
        return _Remote(f"{self.key}/{name}", self.s3)

    @property
    def name(self) -> str:
        return self.key.rsplit("/", 1)[-1]

    def entry(self) -> Entry | None:
        try:
            found = self._try(lambda fs: fs.info(self.key, refresh=True))
        except _Missing as error:
            if error.bucket:
                raise
            return None
        return _entry(found) if found["type"] == "file" else None

    def entries(self) -> list[Entry]:
        return sorted(_entry(found) for found in self._listing() if found["type"] == "file")

    def folders(self) -> list[str]:
        return sorted(found["name"].rsplit("/", 1)[-1] for found in self._listing() if found["type"] == "directory")

    def read(self) -> bytes:
        return self._try(lambda fs: _get(fs, self.key))

    def read_range(self, start: int, size: int, tag: str) -> bytes:
        # S3 itself refuses (412) where the object is another one than the tag's.
        span = {"Range": f"bytes={start}-{start + size - 1}", "IfMatch": f'"{tag}"'}
        return _whole(self, self._try(lambda fs: _get(fs, self.key, **span)), size)

    def write(self, data: bytes) -> None:
        self._try(lambda fs: fs.pipe_file(self.key, data))

    def append(self, data: bytes) -> None:
        self.write((self.read() if self.entry() else b"") + data)

    def put(self, source: Path) -> Entry:
        self._try(lambda fs: fs.put_file(str(source), self.key))
        source.unlink()
        entry = self.entry()
        if entry is None:
            raise StorageError(f"{self}: gone as soon as it was written; does something else write to this folder?")
        return entry

    def remove(self) -> None:
        for name in self.folders():
            (self / name).remove()
        for entry in self.entries():
            (self / entry.name).remove()
        if self.entry():
            self._try(lambda fs: fs.rm_file(self.key))

    def arrow(self) -> tuple[arrow.FileSystem, str]:
        return _arrow_s3(self.s3), self.key

    def _listing(self) -> list[dict[str, Any]]:
        try:
            found = self._try(lambda fs: fs.ls(self.key, detail=True, refresh=True))
        except _Missing as error:
            if error.bucket:
                raise
            return []
        # An empty object named like the folder, with a slash, is how some tools make a folder on S3.
        return [one for one in found if one["name"].startswith(f"{self.key}/") and one["name"] != f"{self.key}/"]

    def _try(self, operation: Callable[[S3FileSystem], T]) -> T:
        """Do it, as often as the rule at the top allows."""
        retrying = Retrying(
            stop=stop_after_attempt(self.s3.attempts),
            wait=wait_random_exponential(multiplier=0.2, max=10),
            retry=retry_if_exception(_may_pass),
            reraise=True,
        )
        try:
            return retrying(lambda: operation(_s3fs(self.s3)))
        except Exception as error:
            raise _explain(str(self), error, self.s3) from error


class _Missing(StorageError):
    """There is no such object, or (`bucket`) no such bucket."""

    bucket = False


@lru_cache
def _s3fs(s3: S3) -> S3FileSystem:
    fs = S3FileSystem(
        endpoint_url=s3.endpoint,
        client_kwargs={"region_name": s3.region} if s3.region else {},
        config_kwargs={
            "connect_timeout": s3.timeout_s,
            "read_timeout": s3.timeout_s,
            "retries": {"total_max_attempts": 1},  # `_Remote._try` alone tries again
        },
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    fs.retries = 1
    return fs


@lru_cache
def _arrow_s3(s3: S3) -> arrow.S3FileSystem:
    endpoint = s3.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return arrow.S3FileSystem(
        endpoint_override=endpoint,
        region=s3.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        connect_timeout=s3.timeout_s,
        request_timeout=s3.timeout_s,
        retry_strategy=arrow.AwsStandardS3RetryStrategy(max_attempts=s3.attempts),
    )


def _get(fs: S3FileSystem, path: str, **options: str) -> bytes:
    """GET of an object; s3fs's own `cat_file` knows no IfMatch and asks for the size first."""
    bucket, key, _ = fs.split_path(path)

    async def get() -> bytes:
        response = await fs._call_s3("get_object", Bucket=bucket, Key=key, **options)
        async with response["Body"] as body:
            return await body.read()

    return fsspec.asyn.sync(fs.loop, get)


def _entry(found: dict[str, Any]) -> Entry:
    return Entry(found["name"].rsplit("/", 1)[-1], int(found["size"] or 0), found["ETag"].strip('"'))


_CHANGED = (
    "changed since the set was opened, or since it was ingested; ingest it again, or start the run again "
    "if the change was meant"
)


def _whole(place: Place, data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise StorageError(f"{place}: truncated: {len(data)} bytes where {size} were to be read; write it again")
    return data


def _code(error: BaseException) -> str:
    """S3's code for what went wrong, as in NoSuchKey; empty where S3 did not say."""
    while error is not None:
        if isinstance(error, ClientError):
            return str(error.response.get("Error", {}).get("Code", ""))
        error = error.__cause__  # type: ignore[assignment]
    return ""


_LATER = {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling", "500", "502", "503", "504"}


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    return _code(error) in _LATER or isinstance(
        error, HTTPClientError | NoConnection | TransferError | ConnectionError | TimeoutError
    )


def _explain(uri: str, error: Exception, s3: S3) -> StorageError:
    code = _code(error)
    bucket = uri.removeprefix(_SCHEME).split("/")[0]
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StorageError(
            f"{uri}: no AWS credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, fill ~/.aws, or give "
            "the machine a role"
        )
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"):
        return StorageError(f"{uri}: S3 refuses the AWS credentials ({code}); check key, secret, token and s3.region")
    if code in ("AccessDenied", "403", "Forbidden"):
        return StorageError(
            f"{uri}: access denied ({code}): the AWS credentials are wrong, or may not do this to bucket {bucket}"
        )
    if code == "NoSuchBucket":
        missing = _Missing(f"{uri}: no such bucket: {bucket}; create it, or check its name, s3.endpoint and s3.region")
        missing.bucket = True
        return missing
    if code in ("NoSuchKey", "404") or isinstance(error, FileNotFoundError):
        return _Missing(f"{uri}: no such object; check the path")
    if code in ("PreconditionFailed", "412"):
        return StorageError(f"{uri}: {_CHANGED}")
    if _may_pass(error):
        return StorageUnreachable(
            f"{uri}: no usable answer after {s3.attempts} attempts ({code or type(error).__name__}); check s3.endpoint "
            "and the network, or raise s3.attempts and s3.timeout_s"
        )
    if isinstance(error, BotoCoreError | OSError | ClientError):
        return StorageError(f"{uri}: {code or error}; check the path, s3.endpoint and s3.region")
    raise error
