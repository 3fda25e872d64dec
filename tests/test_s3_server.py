"""The S3 server of the tests is a real one: what it refuses and how it fails, as both clients of emc2dist see it."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.fs
import pytest
import s3_server
import s3fs

PART = 5 * 2**20  # the smallest that S3 takes
WRONG_ETAG = '"00000000000000000000000000000000"'


def fsspec_client():
    """With the credentials of the environment as it is now; the first refusal is the answer."""
    client = s3fs.S3FileSystem(
        skip_instance_cache=True,
        use_listings_cache=False,
        config_kwargs={"connect_timeout": 2, "read_timeout": 10, "retries": {"max_attempts": 0}},
    )
    client.retries = 1
    return client


def arrow_client():
    return pyarrow.fs.S3FileSystem(
        endpoint_override=os.environ["AWS_ENDPOINT_URL"],  # which pyarrow reads itself in FileSystem.from_uri only
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=1),
        connect_timeout=2,
        request_timeout=10,
    )


def arrow_read(client, path):
    with client.open_input_file(path) as file:
        return file.read()


def arrow_write(client, path, data):
    with client.open_output_stream(path) as file:
        file.write(data)


def code(refused):
    """The code of S3 beneath an error of s3fs; a HEAD has no body to say more than the status."""
    return refused.value.__cause__.response["Error"]["Code"]


@pytest.fixture
def bucket(s3):
    return s3.uri.removeprefix("s3://")


def test_what_one_client_writes_the_other_reads(bucket):
    fsspec, arrow = fsspec_client(), arrow_client()
    data = os.urandom(PART + 1000)
    fsspec.pipe(f"{bucket}/fsspec/a", data)
    arrow_write(arrow, f"{bucket}/arrow/b", data)
    assert arrow_read(*pyarrow.fs.FileSystem.from_uri(f"s3://{bucket}/fsspec/a")) == data
    assert fsspec.cat(f"{bucket}/arrow/b") == data
    assert fsspec.cat_file(f"{bucket}/fsspec/a", start=1000, end=1100) == data[1000:1100]
    with arrow.open_input_file(f"{bucket}/arrow/b") as file:
        assert file.read_at(100, 1000) == data[1000:1100]
    assert fsspec.find(bucket) == [f"{bucket}/arrow/b", f"{bucket}/fsspec/a"]
    assert arrow.get_file_info(f"{bucket}/fsspec/a").size == len(data)


def test_the_listing_gives_the_etag_of_the_content(bucket):
    fsspec = fsspec_client()
    fsspec.pipe(f"{bucket}/a", b"one")
    (listed,) = fsspec.ls(bucket, detail=True)
    assert listed["ETag"] == f'"{hashlib.md5(b"one").hexdigest()}"'
    with arrow_client().open_input_file(f"{bucket}/a") as file:
        assert file.metadata()["ETag"] == listed["ETag"].encode()


@pytest.mark.parametrize("size", [1000, 2 * PART + 2**20], ids=["small", "multipart"])
def test_a_get_with_if_match_is_of_that_etag_or_refused(bucket, size):
    fsspec = fsspec_client()
    data = os.urandom(size)
    fsspec.pipe(f"{bucket}/a", data, chunksize=PART)
    (listed,) = fsspec.ls(bucket, detail=True)
    assert listed["ETag"].endswith('-3"') == (size > PART)

    def get(etag):
        return fsspec.call_s3("get_object", Bucket=bucket, Key="a", IfMatch=etag, Range="bytes=10-19")

    assert get(listed["ETag"])["ContentLength"] == 10
    with pytest.raises(OSError, match="preconditions") as refused:
        get(WRONG_ETAG)
    assert code(refused) == "PreconditionFailed"

    # Which is how s3fs notices that an object changed under an open file.
    with fsspec.open(f"{bucket}/a", block_size=10, cache_type="none") as file:
        assert file.read(10) == data[:10]
        fsspec.pipe(f"{bucket}/a", data[::-1], chunksize=PART)
        with pytest.raises(OSError, match="preconditions"):
            file.read(10)


def test_a_wrong_secret_is_refused(bucket, monkeypatch):
    fsspec_client().pipe(f"{bucket}/a", b"one")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    fsspec, arrow = fsspec_client(), arrow_client()
    calls = {
        "SignatureDoesNotMatch": [lambda: fsspec.ls(bucket), lambda: fsspec.pipe(f"{bucket}/b", b"")],
        "403": [lambda: fsspec.cat(f"{bucket}/a")],  # s3fs asks HEAD first
    }
    for expected, refusals in calls.items():
        for call in refusals:
            with pytest.raises(PermissionError) as refused:
                call()
            assert code(refused) == expected
    with pytest.raises(OSError, match="SIGNATURE_DOES_NOT_MATCH"):
        arrow.get_file_info(pyarrow.fs.FileSelector(bucket))
    with pytest.raises(OSError, match="SIGNATURE_DOES_NOT_MATCH"):
        arrow_write(arrow, f"{bucket}/b", b"")
    with pytest.raises(OSError, match="ACCESS_DENIED"):
        arrow_read(arrow, f"{bucket}/a")


@pytest.mark.usefixtures("s3")
def test_a_missing_bucket_is_not_found():
    fsspec, arrow = fsspec_client(), arrow_client()
    for call in (lambda: fsspec.ls("nowhere"), lambda: fsspec.cat("nowhere/a"), lambda: fsspec.pipe("nowhere/a", b"")):
        with pytest.raises(FileNotFoundError) as refused:
            call()
        assert code(refused) == "NoSuchBucket"
    with pytest.raises(OSError, match="NO_SUCH_BUCKET"):
        arrow.get_file_info(pyarrow.fs.FileSelector("nowhere"))
    with pytest.raises(FileNotFoundError):
        arrow_read(arrow, "nowhere/a")


def test_a_missing_key_is_not_found(bucket):
    with pytest.raises(FileNotFoundError):
        fsspec_client().cat(f"{bucket}/a")
    with pytest.raises(FileNotFoundError):
        arrow_read(arrow_client(), f"{bucket}/a")
    assert arrow_client().get_file_info(f"{bucket}/a").type == pyarrow.fs.FileType.NotFound


def test_without_its_object_server_it_is_unavailable_and_then_as_before(s3, bucket):
    fsspec, arrow = fsspec_client(), arrow_client()
    fsspec.pipe(f"{bucket}/a", b"one")
    s3.server.kill_object_server()
    for _ in range(12):  # as often as would make Swift avoid the server for a minute, had it not been told otherwise
        with pytest.raises(OSError, match="Service Unavailable") as refused:
            fsspec.cat(f"{bucket}/a")
        assert code(refused) == "503"
    with pytest.raises(OSError, match="reduce your request rate") as refused:
        fsspec.pipe(f"{bucket}/b", b"two")
    assert code(refused) == "ServiceUnavailable"
    with pytest.raises(OSError, match="503"):
        arrow_read(arrow, f"{bucket}/a")
    with pytest.raises(OSError, match="SERVICE_UNAVAILABLE"):
        arrow_write(arrow, f"{bucket}/b", b"two")
    assert fsspec.ls(bucket) == [f"{bucket}/a"]  # the container server answers that

    s3.server.start_object_server()
    assert fsspec.cat(f"{bucket}/a") == arrow_read(arrow, f"{bucket}/a") == b"one"


def ended(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE  # for ever, in a container without an init
    except psutil.NoSuchProcess:
        return True


@pytest.mark.usefixtures("s3")
def test_a_killed_session_leaves_no_server_behind(tmp_path):
    program = f"""
import sys
from pathlib import Path
from s3_server import S3Server
server = S3Server(Path({str(tmp_path / "s3")!r}))
print(server.endpoint, flush=True)
sys.stdin.read()
"""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=pipe, stdout=pipe, cwd=Path(__file__).parent
    ) as session:
        assert session.stdout.readline().startswith(b"http://127.0.0.1:")
        servers = psutil.Process(session.pid).children()
        session.kill()
    assert len(servers) == 4
    deadline = time.monotonic() + 10
    while not all(map(ended, servers)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.usefixtures("s3")
def test_a_server_that_does_not_start_says_why_and_leaves_nothing(tmp_path, monkeypatch):
    started = set(psutil.Process().children())
    monkeypatch.setattr(s3_server, "FILTERS", (*s3_server.FILTERS, "typo"))
    with pytest.raises(RuntimeError, match=r"(?s)proxy server ended with status 1; its log ends with:.*typo"):
        s3_server.S3Server(tmp_path / "s3")
    assert set(psutil.Process().children()) == started
