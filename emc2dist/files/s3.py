"""Objects on S3, through s3fs; and what S3 says, in words that name the URI and what to do.

Neither s3fs nor botocore tries anything again here, but for pyarrow: `S3Place._try` alone does.
"""

import errno
import logging
import os
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

import botocore.session
import fsspec.asyn
from aiobotocore.session import AioSession
from aiohttp import ClientError as TransferError
from botocore.exceptions import (
    ClientError,
    ConfigParseError,
    HTTPClientError,
    InfiniteLoopConfigError,
    InvalidConfigError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
    SSOError,
    SSOTokenLoadError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as NoConnection
from botocore.handlers import add_expect_header
from botocore.parsers import ResponseParserError
from pyarrow import fs as arrow
from s3fs import S3FileSystem
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from emc2dist.config import S3
from emc2dist.errors import StorageError, StorageUnreachable
from emc2dist.files.loopback import is_loopback
from emc2dist.files.place import CHANGED, Entry, Place, whole
from emc2dist.files.retries import LONGEST_PAUSE_S, count_retry

T = TypeVar("T")

SCHEME = "s3://"


class S3Place(Place):
    """An object, or what lies under a prefix. A tag is the ETag."""

    remote = True

    def __init__(self, key: str, s3: S3) -> None:
        self.key, self.s3 = key, s3

    def __str__(self) -> str:
        return SCHEME + self.key

    def __truediv__(self, name: str) -> Place:
        return S3Place(f"{self.key}/{name}", self.s3)

    def beside(self, name: str) -> Place:
        return S3Place(f"{self.key.rpartition('/')[0]}/{name}", self.s3)

    @property
    def name(self) -> str:
        return self.key.rsplit("/", 1)[-1]

    def entry(self) -> Entry | None:
        try:
            found = self._try(lambda fs: _info(fs, self.key))
        except _Missing as error:
            if error.bucket:
                raise
            return None
        return _entry(found) if found["type"] == "file" else None

    def age_s(self) -> float | None:
        return self._try(lambda fs: _age_s(fs, self.key)) if self.entry() else None

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
        handler = self._try(lambda _: _Handler(self.s3))  # type: ignore[abstract]  # whose stubs lack the methods
        return arrow.PyFileSystem(handler), self.key

    def _listing(self) -> list[dict[str, Any]]:
        try:
            found = self._try(lambda fs: fs.ls(self.key, detail=True, refresh=True))
        except _Missing as error:
            if error.bucket:
                raise
            self._try(lambda fs: _see_that_it_is_s3(fs, self.key))  # for a login page lists nothing, too
            return []
        # An empty object named like the folder, with a slash, is how some tools make a folder on S3.
        return [one for one in found if one["name"].startswith(f"{self.key}/") and one["name"] != f"{self.key}/"]

    def _try(self, operation: Callable[[S3FileSystem], T]) -> T:
        """Do it, up to `attempts` times while it may pass, with random pauses that double."""
        retrying = Retrying(
            stop=stop_after_attempt(self.s3.attempts),
            wait=wait_random_exponential(multiplier=0.2, max=LONGEST_PAUSE_S),
            retry=retry_if_exception(_may_pass),
            before_sleep=lambda _: count_retry(),
            reraise=True,
        )
        try:
            _refuse_slips()
            _refuse_bucket_in_endpoint(self.key.partition("/")[0], self.s3)
            return retrying(lambda: operation(_s3fs(self.s3)))
        except Exception as error:  # s3fs, botocore and aiohttp raise anything where an answer is none of S3's
            raise _explain(str(self), self._told_again(error), self.s3) from error

    def _told_again(self, error: Exception) -> Exception:
        """The error, or where it is the bare status of a HEAD, which has no body, what S3 says of the same to a GET."""
        if not (_is_bare(_code(error)) or _goes_round(error)):
            return error
        bucket, _, key = self.key.partition("/")
        try:
            if key:
                _get(_s3fs(self.s3), self.key, Range="bytes=0-0")
            else:
                _s3fs(self.s3).call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
        except Exception as told:  # as above
            code = _code(told)
            return told if code and code not in ("NoSuchKey", "InvalidRange") and not _is_bare(code) else error
        return error


class _Missing(StorageError):
    """There is no such object, or (`bucket`) no such bucket."""

    bucket = False


_CHECKSUMS = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
"""For servers that are not AWS's, of which some refuse the checksums that botocore adds of its own accord."""


@lru_cache
def _s3fs(s3: S3, attempts: int = 1) -> S3FileSystem:
    session = AioSession()
    # A server that knows no Expect answers it with silence, for which aiohttp waits without a limit.
    session.unregister("before-call.s3", add_expect_header)
    fs = S3FileSystem(
        session=session,
        endpoint_url=s3.endpoint,
        client_kwargs={"region_name": region} if (region := _region_of(s3)) else {},
        config_kwargs={
            "connect_timeout": s3.timeout_s,
            "read_timeout": s3.timeout_s,
            "retries": {"total_max_attempts": attempts},
            "connector_args": {"socket_factory": partial(_socket, s3.timeout_s)},
            **({} if ".amazonaws.com" in _endpoint(s3) else _CHECKSUMS),
            # A proxy of the environment is for what lies beyond it.
            **({"proxies": {}} if is_loopback(_endpoint(s3)) else {}),
        },
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    fs.retries = 1
    return fs


def _socket(timeout_s: float, address: tuple[Any, ...]) -> socket.socket:
    """A socket that is closed where what it is to send stays unread; aiohttp's limits are for what it receives."""
    made = socket.socket(*address[:3])
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # on Linux
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(int(1000 * timeout_s), 2**31 - 1))
    return made


class _Handler(arrow.FSSpecHandler):
    """s3fs for pyarrow, whose own client reads the variables and ~/.aws otherwise. It tries again."""

    def __init__(self, s3: S3) -> None:
        super().__init__(_s3fs(s3, s3.attempts))
        self._s3 = s3

    def __reduce__(self) -> tuple[Any, ...]:
        return _Handler, (self._s3,)  # whoever gets it has an environment of its own

    def create_dir(self, path: str, recursive: bool) -> None:
        """Nothing: S3 has no folders, and s3fs would make a bucket."""


def _region_of(s3: S3) -> str | None:
    """A region that is set where botocore, which asks AWS_DEFAULT_REGION and ~/.aws, does not look."""
    return s3.region or (None if os.environ.get("AWS_DEFAULT_REGION") else os.environ.get("AWS_REGION"))


@lru_cache
def _endpoint(s3: S3) -> str:
    """The URL that is asked: that of the spec, or what botocore makes of the environment and ~/.aws."""
    nobody = {"aws_access_key_id": "-", "aws_secret_access_key": "-"}  # else it would look for somebody, and may wait
    session = botocore.session.Session()
    return session.create_client("s3", endpoint_url=s3.endpoint, region_name=_region_of(s3), **nobody).meta.endpoint_url


def _refuse_slips() -> None:
    """Raise StorageError where a variable of AWS's holds quotes or blanks round its value, as of a file `.env`."""
    for name, value in os.environ.items():
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        if name.startswith("AWS_") and (quoted or value != value.strip()):  # no value: it may be a secret
            what = "is in quotes, which are a part of its value" if quoted else "begins or ends with a blank"
            raise StorageError(f"{name}: {what}; set it without")


@lru_cache
def _refuse_bucket_in_endpoint(bucket: str, s3: S3) -> None:
    """Raise StorageError where the endpoint holds the bucket: all keys would lie in a folder of its name."""
    endpoint = _endpoint(s3).rstrip("/")
    without = endpoint.removesuffix(f"/{bucket}").replace(f"://{bucket}.s3.", "://s3.")
    if without != endpoint and not without.endswith(":/"):
        raise StorageError(f"s3://{bucket}: s3.endpoint: {_endpoint(s3)} holds the bucket; write {without}")


def _get(fs: S3FileSystem, path: str, **options: str) -> bytes:
    """GET of an object; s3fs's own `cat_file` knows no IfMatch and asks for the size first."""
    bucket, key, _ = fs.split_path(path)

    async def get() -> bytes:
        response = await fs._call_s3("get_object", Bucket=bucket, Key=key, **options)
        async with response["Body"] as body:
            if not response.get("ETag"):
                raise _NoS3
            return await body.read()

    return fsspec.asyn.sync(fs.loop, get)


def _info(fs: S3FileSystem, path: str) -> dict[str, Any]:
    found = fs.info(path, refresh=True)
    if found["type"] == "file" and not found.get("ETag"):
        raise _NoS3
    return found


def _age_s(fs: S3FileSystem, path: str) -> float:
    """Both times are of the answer: clocks here may differ from S3's."""
    bucket, key, _ = fs.split_path(path)
    answer = fs.call_s3("head_object", Bucket=bucket, Key=key)
    now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    return max(0.0, (now - answer["LastModified"]).total_seconds())  # the date is in whole seconds


def _see_that_it_is_s3(fs: S3FileSystem, path: str) -> None:
    """Raise where a listing of the bucket does not name it."""
    bucket, key, _ = fs.split_path(path)
    if not fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=f"{key}/", MaxKeys=1).get("Name"):
        raise _NoS3


def _entry(found: dict[str, Any]) -> Entry:
    return Entry(found["name"].rsplit("/", 1)[-1], int(found["size"] or 0), found["ETag"].strip('"'))


class _NoS3(Exception):
    """An answer that no S3 gives."""


def _code(error: BaseException) -> str:
    """S3's code for what went wrong, as in NoSuchKey; empty where S3 did not say."""
    if _goes_round(error):
        return "PermanentRedirect"
    return str(_response(error).get("Error", {}).get("Code", ""))


_LATER = {
    *("SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "OperationAborted", "RequestLimitExceeded"),
    *("Throttling", "ThrottlingException", "TooManyRequests", "429", "500", "502", "503", "504"),
}


def _goes_round(error: BaseException) -> bool:
    """Whether it is a redirect without a region, which botocore asks for by a HEAD, which is redirected, and so on."""
    wrapped = error.__context__ if isinstance(error, HTTPClientError) else error
    return isinstance(wrapped, RecursionError)


def _is_bare(code: str) -> bool:
    """Whether it is a mere status, which may have many causes."""
    return code.isdigit() and code[0] in "34" and code not in ("404", "412", "416", "429")


def _is_of_trust(error: BaseException) -> bool:
    """Whether the server's certificate is not trusted."""
    return isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error)


def _is_of_the_bundle(error: BaseException) -> bool:
    """Whether the file of trusted certificates is not there, may not be read, or holds none."""
    causes = FileNotFoundError | PermissionError | IsADirectoryError | ssl.SSLError
    return isinstance(error, HTTPClientError) and isinstance(error.__context__, causes)


_STRANGE = _NoS3 | ResponseParserError | KeyError  # KeyError: of what each S3 tells
"""Answers that are none of S3's."""


def _meets_no_tls(error: BaseException) -> bool:
    """Whether https:// was asked of what speaks http://, the letters of whose answer OpenSSL takes for a version."""
    return isinstance(error, SSLError) and "WRONG_VERSION_NUMBER" in str(error)


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    if any(lasts(error) for lasts in (_goes_round, _is_of_trust, _is_of_the_bundle, _meets_no_tls)):
        return False
    network = HTTPClientError | NoConnection | TransferError | ConnectionError | TimeoutError
    return _code(error) in _LATER or isinstance(error, network)


_CHECK_KEYS = "check key, secret and token, in the environment or in ~/.aws"
_CAUSES = {
    "InvalidAccessKeyId": f"S3 does not know the access key of the AWS credentials; {_CHECK_KEYS}, and s3.endpoint",
    "SignatureDoesNotMatch": f"the secret of the AWS credentials does not fit the access key; {_CHECK_KEYS}",
    "ExpiredToken ExpiredTokenException TokenRefreshRequired InvalidToken": (
        "the session token of the AWS credentials has expired, or is none; log in again, then run it again"
    ),
    "RequestTimeTooSkewed RequestExpired": "this machine's clock is wrong{clock}; set it, by NTP for instance",
    "AccessDenied AllAccessDisabled AccountProblem Forbidden 403": (
        "access denied: the AWS credentials are wrong, or may not do this to bucket {bucket}{permission}"
    ),
    "PermanentRedirect TemporaryRedirect Redirect AuthorizationHeaderMalformed IncorrectEndpoint 301 307": (
        "the bucket is in another region{region}; set s3.region to that of {bucket}, and s3.endpoint if there is one"
    ),
    "IllegalLocationConstraintException": "the bucket is in another region{region}; set s3.region",
    "InvalidObjectState": "the object is archived (Glacier); restore it first, or copy it to another storage class",
    "NotImplemented MethodNotAllowed 405 501": (
        "the server cannot do what is asked of it; does s3.endpoint name an S3, and does that know bucket {bucket}?"
    ),
    "EntityTooLarge 413": "larger than the server takes; write smaller files",
    "InvalidBucketName": "{bucket} is no name of a bucket; write s3://bucket/folder",
    "QuotaExceeded": "the quota of bucket {bucket} is used up; make room, then run it again",
    "507 InsufficientStorage XMinioStorageFull": (
        "there is no room left where bucket {bucket} lies; make room, then run it again"
    ),
}
"""By S3's codes: what is wrong, and what would help."""
_PERMISSIONS = {
    "ListObjectsV2": ": to list it takes s3:ListBucket",
    "GetObject": ": to read takes s3:GetObject; a folder, and to be told that nothing lies there, s3:ListBucket",
    "PutObject": ": to write takes s3:PutObject",
    "CreateMultipartUpload": ": to write takes s3:PutObject",
    "DeleteObject": ": to remove takes s3:DeleteObject",
}
"""By S3's operations; a HEAD that is refused is asked again by another of them."""
_CAUSE_OF = {code: cause for codes, cause in _CAUSES.items() for code in codes.split()}


_NO_URL = "Invalid endpoint: "
"""As botocore says it."""


for _name in ("botocore", "aiobotocore"):
    # What they say of credentials that cannot be renewed comes as an error too, and is explained once.
    logging.getLogger(_name).addHandler(logging.NullHandler())


def _explain(uri: str, error: Exception, s3: S3) -> StorageError:
    """What went wrong with a URI, whatever s3fs, botocore or aiohttp have raised."""
    code = _code(error)
    bucket = uri.removeprefix(SCHEME).split("/")[0]
    if isinstance(error, StorageError):
        return error
    if type(error) is ValueError and str(error).startswith(_NO_URL):
        endpoint = str(error).removeprefix(_NO_URL)
        written = "as in http://127.0.0.1:9000" if "://" in endpoint else f"http://{endpoint}"
        return StorageError(
            f"{uri}: s3.endpoint (or AWS_ENDPOINT_URL, or endpoint_url in ~/.aws/config): {endpoint} is no URL; write "
            f"{written}"
        )
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StorageError(
            f"{uri}: no AWS credentials found; {_other_profiles()}set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "fill ~/.aws, or give the machine a role"
        )
    if isinstance(error, ProfileNotFound):
        name = "AWS_DEFAULT_PROFILE" if "AWS_DEFAULT_PROFILE" in os.environ else "AWS_PROFILE"  # botocore's order
        return StorageError(
            f"{uri}: {name}: {os.environ.get(name)} is no profile of ~/.aws/config or ~/.aws/credentials; name one of "
            "theirs, or unset it"
        )
    if isinstance(error, SSOError | TokenRetrievalError | SSOTokenLoadError):
        profile = os.environ.get("AWS_DEFAULT_PROFILE") or os.environ.get("AWS_PROFILE") or "default"
        return StorageError(
            f"{uri}: the SSO session of profile {profile} has expired, or nobody has logged in ({_said(error)}); run "
            f"aws sso login --profile {profile}"
        )
    if isinstance(error, ConfigParseError):  # which names ~/.aws/config or ~/.aws/credentials
        return StorageError(f"{uri}: the AWS configuration cannot be used: {_said(error)}; put that file right")
    if isinstance(error, InvalidConfigError | InfiniteLoopConfigError):
        return StorageError(f"{uri}: the AWS configuration cannot be used: {_said(error)}; put ~/.aws/config right")
    if _is_of_trust(error):
        return StorageError(
            f"{uri}: the certificate of {_endpoint(s3)} is not trusted ({_said(error)}); the file of those that are is "
            "named by AWS_CA_BUNDLE, or ca_bundle in ~/.aws/config"
        )
    if _is_of_the_bundle(error):
        bundle = botocore.session.Session().get_config_variable("ca_bundle")
        return StorageError(
            f"{uri}: AWS_CA_BUNDLE (or ca_bundle in ~/.aws/config): {bundle} cannot be used "
            f"({_said(error.__context__)}); name a file that holds trusted certificates as PEM text"
        )
    if _meets_no_tls(error):
        return StorageError(f"{uri}: what answers at {_endpoint(s3)} speaks no TLS; write s3.endpoint with http://")
    if code == "NoSuchBucket":
        missing = _Missing(f"{uri}: no such bucket: {bucket}; create it, or check its name, s3.endpoint and s3.region")
        missing.bucket = True
        return missing
    if code in ("NoSuchKey", "404") or isinstance(error, FileNotFoundError):
        return _Missing(f"{uri}: no such object; check the path")
    if code in ("PreconditionFailed", "412"):
        return StorageError(f"{uri}: {CHANGED}")
    if code in _CAUSE_OF:
        facts = {"clock": _skew(error), "region": _region(error), "permission": _permission(error)}
        cause = _CAUSE_OF[code].format(bucket=bucket, **facts)
        return StorageError(f"{uri}: {cause} ({code})")
    if code.startswith("KMS."):
        return StorageError(f"{uri}: the KMS key that encrypts it cannot be used ({code}); {_said(error)}")
    if _may_pass(error):
        return StorageUnreachable(
            f"{uri}: no usable answer after {s3.attempts} attempts ({code or type(error).__name__}); check s3.endpoint"
            f"{_or_https(error, s3)} and the network, or raise s3.attempts and s3.timeout_s"
        )
    if isinstance(error, _STRANGE):
        return StorageError(
            f"{uri}: what answers is no S3; is the endpoint {_endpoint(s3)} right{_or_https(error, s3)}, and does the "
            "network want a login in a browser first?"
        )
    return StorageError(
        f"{uri}: {code or type(error).__name__}: {_said(error)}; check the path, s3.endpoint"
        f"{_or_https(error, s3)} and s3.region"
    )


def _other_profiles() -> str:
    """The profiles of ~/.aws, where none was chosen and none is that which is then taken."""
    chosen = os.environ.get("AWS_DEFAULT_PROFILE") or os.environ.get("AWS_PROFILE")
    others = botocore.session.Session().available_profiles
    if chosen or not others or "default" in others:
        return ""
    return f"~/.aws holds no profile default, but {', '.join(others)}: set AWS_PROFILE to one of them, or "


def _or_https(error: BaseException, s3: S3) -> str:
    """A doubt, where http:// was answered as what speaks TLS may answer it: by a reset, or by no answer of S3's."""
    reset = getattr(error.__context__, "errno", None) == errno.ECONNRESET
    doubted = reset or isinstance(error, _STRANGE) or _is_bare(_code(error))
    return " (or does it speak https://?)" if doubted and _endpoint(s3).startswith("http://") else ""


def _refusal(error: BaseException | None) -> ClientError | None:
    """What botocore made of S3's answer, where S3 has answered."""
    while error is not None:
        if isinstance(error, ClientError):
            return error
        error = error.__cause__
    return None


def _response(error: BaseException | None) -> dict[str, Any]:
    refusal = _refusal(error)
    return refusal.response if refusal else {}


def _said(error: BaseException | None) -> str:
    """What S3 or a library says, in one line."""
    text = str(_response(error).get("Error", {}).get("Message") or error) or type(error).__name__
    return shorten(text, 300)


def _headers(error: BaseException) -> dict[str, str]:
    return _response(error).get("ResponseMetadata", {}).get("HTTPHeaders", {})


def _skew(error: BaseException) -> str:
    """How far the clock here is from S3's, where S3 tells the time."""
    try:
        theirs = parsedate_to_datetime(_headers(error)["date"])
    except (KeyError, ValueError, TypeError):
        return ""
    minutes = (datetime.now(UTC) - theirs).total_seconds() / 60
    return f", by S3's {abs(minutes):.0f} minutes {'ahead' if minutes > 0 else 'behind'}" if abs(minutes) >= 1 else ""


def _permission(error: BaseException) -> str:
    """Which permission a request takes, where it is one of the usual."""
    refusal = _refusal(error)
    return _PERMISSIONS.get(refusal.operation_name, "") if refusal else ""


def _region(error: BaseException) -> str:
    """Which region the bucket is in, where S3 tells."""
    known = _headers(error).get("x-amz-bucket-region") or _response(error).get("Error", {}).get("Region")
    return f", {known}" if known else ""
