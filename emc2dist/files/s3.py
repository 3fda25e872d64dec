"""Objects on S3, through s3fs; and what S3 says, in words that name the URI and what to do.

Neither s3fs nor botocore tries anything again here: `S3Place._try` alone does.
"""

import os
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

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
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from emc2dist.config import S3
from emc2dist.errors import StorageError, StorageUnreachable
from emc2dist.files.place import CHANGED, Entry, Place, whole

T = TypeVar("T")

SCHEME = "s3://"
LONGEST_PAUSE_S = 10.0
"""Between two attempts."""


class S3Place(Place):
    """An object, or what lies under a prefix. A tag is the ETag."""

    remote = True

    def __init__(self, key: str, s3: S3) -> None:
        self.key, self.s3 = key, s3

    def __str__(self) -> str:
        return SCHEME + self.key

    def __truediv__(self, name: str) -> Place:
        return S3Place(f"{self.key}/{name}", self.s3)

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
        return whole(self, self._try(lambda fs: _get(fs, self.key, **span)), size)

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
        else:  # where there is no empty object that stands for the folder, S3 has nothing against it
            bucket, _, key = self.key.partition("/")
            self._try(lambda fs: fs.call_s3("delete_object", Bucket=bucket, Key=f"{key}/"))

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
        """Do it, up to `attempts` times while it may pass, with random pauses that double."""
        retrying = Retrying(
            stop=stop_after_attempt(self.s3.attempts),
            wait=wait_random_exponential(multiplier=0.2, max=LONGEST_PAUSE_S),
            retry=retry_if_exception(_may_pass),
            before_sleep=_count_retry,
            reraise=True,
        )
        try:
            return retrying(lambda: operation(_s3fs(self.s3)))
        except Exception as error:
            raise _explain(str(self), error, self.s3) from error


_retries = 0
_retries_lock = threading.Lock()


def retries() -> int:
    """How many times this process has tried a request again so far."""
    return _retries


def _count_retry(_: RetryCallState) -> None:
    global _retries
    with _retries_lock:
        _retries += 1


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
            "retries": {"total_max_attempts": 1},
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
    bucket = uri.removeprefix(SCHEME).split("/")[0]
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
        return StorageError(f"{uri}: {CHANGED}")
    if _may_pass(error):
        return StorageUnreachable(
            f"{uri}: no usable answer after {s3.attempts} attempts ({code or type(error).__name__}); check s3.endpoint "
            "and the network, or raise s3.attempts and s3.timeout_s"
        )
    if isinstance(error, BotoCoreError | OSError | ClientError):
        return StorageError(f"{uri}: {code or error}; check the path, s3.endpoint and s3.region")
    raise error
