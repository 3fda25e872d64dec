"""Files on disk and on a real S3 server: one behaviour for both, and one clear message for whatever goes wrong."""

import builtins
import http.server
import os
import pickle
import re
import shutil
import socket
import socketserver
import ssl
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import ClassVar

import aiohttp
import botocore.exceptions
import botocore.parsers
import fsspec.exceptions
import pytest
from pyarrow.fs import FileSelector, S3FileSystem, copy_files
from raising import exceptions_of
from recording import PROXIES, listening

import emc2dist.files.s3
from emc2dist import files
from emc2dist.config import S3
from emc2dist.errors import StorageError, StorageUnreachable
from emc2dist.files import explained


@pytest.fixture(params=["disk", "s3"])
def folder(request, tmp_path):
    if request.param == "disk":
        return files.at(tmp_path / "bilder für alle ☃")
    return files.at(request.getfixturevalue("s3").uri + "/bilder für alle ☃")


def test_what_is_written_is_read_listed_and_removed(folder):
    assert folder.entries() == []
    assert folder.folders() == []
    assert (folder / "a.txt").entry() is None
    (folder / "a.txt").write(b"one")
    (folder / "b" / "c.txt").write(b"deeper")
    (folder / "a.txt").write(b"another")
    assert [(entry.name, entry.size) for entry in folder.entries()] == [("a.txt", 7)]
    assert folder.folders() == ["b"]
    assert (folder / "a.txt").read() == b"another"
    assert (folder / "a.txt").entry() == folder.entries()[0]
    assert (folder / "b").entry() is None
    assert (folder / "a.txt").name == "a.txt"
    assert str(folder / "a.txt") == f"{folder}/a.txt"
    folder.remove()
    assert folder.entries() == []
    assert folder.folders() == []
    folder.remove()


def mark_folder(uri: str) -> None:
    """Put an empty object there whose name ends with a slash, as consoles and pyarrow make folders."""
    arrow = S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"])
    arrow.create_dir(uri.removeprefix("s3://"))


def test_what_stands_for_a_folder_on_s3_goes_with_it(s3):
    folder = files.at(f"{s3.uri}/set")
    mark_folder(f"{s3.uri}/set/of/arrow")
    assert folder.folders() == ["of"]
    (folder / "of").remove()
    assert folder.folders() == []


def test_append_adds_to_the_end(folder):
    (folder / "x").write(b"")
    for part in (b"one\n", b"two\n"):
        (folder / "x").append(part)
    assert (folder / "x").read() == b"one\ntwo\n"


def test_a_full_disk_takes_all_or_nothing(small_disk, tmp_path):
    folder = files.at(small_disk)
    (folder / "rows").append(b"one\n")
    (folder / "whole").write(b"before")
    (tmp_path / "source").write_bytes(b"x" * 2**21)
    for fill in (
        lambda: (folder / "rows").append(b"x" * 2**21),
        lambda: (folder / "whole").write(b"x" * 2**21),
        lambda: (folder / "new").put(tmp_path / "source"),
    ):
        with pytest.raises(StorageError, match=r"disk/\w+: No space left on device; make room on its disk"):
            fill()
    assert {path.name for path in small_disk.iterdir()} == {"rows", "whole"}
    assert (folder / "rows").read() == b"one\n"
    assert (folder / "whole").read() == b"before"
    assert (tmp_path / "source").stat().st_size == 2**21


def test_put_moves_a_local_file(folder, tmp_path):
    source = tmp_path / "draft"
    source.write_bytes(b"x" * 100_000)
    entry = (folder / "whole.bin").put(source)
    assert not source.exists()
    assert entry == (folder / "whole.bin").entry()
    assert (folder / "whole.bin").read() == b"x" * 100_000


def test_ranges_are_of_the_file_that_the_tag_names(folder):
    place = folder / "data"
    place.write(bytes(range(200)))
    entry = place.entry()
    assert place.read_range(10, 5, entry.tag) == bytes(range(10, 15))
    with place.open(entry) as opened:
        opened.seek(-3, 2)
        assert opened.read() == bytes(range(197, 200))
        assert opened.read() == b""
        opened.seek(50)
        assert opened.read(2) == bytes([50, 51])
    with pytest.raises(StorageError, match=r"data: truncated: 10 bytes where 20"):
        place.read_range(190, 20, entry.tag)
    place.write(bytes(200))
    assert place.entry().tag != entry.tag
    with pytest.raises(StorageError, match=r"data: changed since"):
        place.read_range(0, 5, entry.tag)
    if not place.remote:
        with pytest.raises(StorageError, match=r"data: changed since"):
            place.local(entry)


def test_fetch_brings_the_files_asked_for(folder, tmp_path):
    for name in ("a", "b", "c"):
        (folder / name).write(name.encode())
    (tmp_path / "copy").mkdir()
    copy = folder.fetch(tmp_path / "copy", ("a", "c", "missing"))
    assert [(copy / name).read_bytes() for name in ("a", "c")] == [b"a", b"c"]


def test_a_place_travels_to_other_processes(folder):
    (folder / "a").write(b"one")
    assert pickle.loads(pickle.dumps(folder / "a")).read() == b"one"


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    place = files.at(tmp_path / "spec.yaml")
    place.write(b"old")
    monkeypatch.setattr("pathlib.Path.write_bytes", lambda self, data: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(StorageError, match=r"spec\.yaml: No space"):
        place.write(b"new")
    assert place.read() == b"old"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space")])
def test_whatever_ends_a_write_leaves_no_draft(tmp_path, monkeypatch, error):
    def half(path, data):
        path.touch()
        raise error

    monkeypatch.setattr("pathlib.Path.write_bytes", half)
    with pytest.raises((KeyboardInterrupt, StorageError)):
        files.at(tmp_path / "spec.yaml").write(b"new")
    assert list(tmp_path.iterdir()) == []


def test_the_longest_name_can_be_written(tmp_path):
    for name in ("a" * 255, "ä" * 127):
        files.at(tmp_path / name).write(b"1")
        assert (tmp_path / name).read_bytes() == b"1"


def test_two_writers_of_one_file_have_drafts_of_their_own(tmp_path):
    place = files.at(tmp_path / "a")
    with place._draft() as one, place._draft() as other:
        assert one != other
        one.write_bytes(b"1")
        other.write_bytes(b"2")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_is_written_through_a_link_goes_where_it_leads(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a").write_bytes(b"old")
    (tmp_path / "link").symlink_to("there/a")
    (tmp_path / "source").write_bytes(b"put")
    place = files.at(tmp_path / "link")
    for write, content in ((lambda: place.write(b"new"), b"new"), (lambda: place.put(tmp_path / "source"), b"put")):
        write()
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "there" / "a").read_bytes() == content
    assert files.writable(tmp_path / "link") == tmp_path / "there" / "a"


def test_nothing_is_written_in_the_place_of_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    opened = (tmp_path / "opened").open("w")
    links = {
        "to-pipe": tmp_path / "pipe",
        "to-opened": f"/proc/{os.getpid()}/fd/{opened.fileno()}",
        "to-new": "/dev/emc2dist-none",
        "to-itself": "to-itself",
        "to-folder": ".",
    }
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
        for write in (lambda place: place.write(b"1"), lambda place: files.writable(str(place))):
            with pytest.raises(StorageError, match=rf"{name}: (is |Too many levels)"):
                write(files.at(tmp_path / name))
        assert (tmp_path / name).is_symlink()
    for name in ("/dev/stdout", "/dev/fd/1", "/dev/null", "/proc/self/fd/1"):
        with pytest.raises(StorageError, match=f"{name}: is no file"):
            files.writable(name)
    assert (tmp_path / "pipe").is_fifo()
    opened.close()


@pytest.mark.parametrize("name", ["new/", "new/.", "s3://bucket/new/"])
def test_a_name_of_a_folder_is_none_of_a_file(name):
    with pytest.raises(StorageError, match=f"{name}: means a folder"):
        files.refuse_folder(name)


def test_what_is_missing_on_disk_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"gone: No such file"):
        files.at(tmp_path / "gone").read()


def test_a_bucket_or_an_object_that_is_not_there(s3):
    for ask in (
        lambda place: place.read(),
        lambda place: place.read_range(0, 1, "tag"),
        lambda place: place.entries(),
        lambda place: place.write(b""),
    ):
        with pytest.raises(StorageError, match=r"s3://no-such-bucket-here/x: no such bucket: no-such-bucket-here"):
            ask(files.at("s3://no-such-bucket-here/x"))
    with pytest.raises(StorageError, match=rf"{s3.uri}/gone: no such object"):
        files.at(f"{s3.uri}/gone").read()
    with pytest.raises(StorageError, match="names no bucket"):
        files.at("s3://")


def test_wrong_credentials_say_so_and_are_not_repeated(s3, monkeypatch):
    files.at(f"{s3.uri}/x").write(b"1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-of-mine")
    place = files.at(f"{s3.uri}/x", S3(timeout_s=11))
    for ask in (place.read, place.entry, place.entries, lambda: place.write(b"2"), lambda: (place / "y").entries()):
        with pytest.raises(StorageError, match=r"AWS credentials") as caught:
            ask()
        assert "wrong-secret-of-mine" not in str(caught.value)
        assert s3.server.access_key not in str(caught.value)
        assert not isinstance(caught.value, StorageUnreachable)


def test_a_profile_that_is_not_there_is_named_and_so_is_a_configuration_that_is_none(s3, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_PROFILE", "nope")
    with pytest.raises(StorageError, match=r"AWS_PROFILE: nope is no profile of ~/\.aws/config .* or unset it$"):
        files.at(f"{s3.uri}/x", S3(timeout_s=13)).read()
    monkeypatch.delenv("AWS_PROFILE")
    for name, variable in (("config", "AWS_CONFIG_FILE"), ("credentials", "AWS_SHARED_CREDENTIALS_FILE")):
        (tmp_path / name).write_text("secret-of-mine\n")
        with monkeypatch.context() as patch:
            patch.setenv(variable, str(tmp_path / name))
            for unset in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                patch.delenv(unset)
            with pytest.raises(
                StorageError, match=rf"cannot be used: .*{tmp_path / name}; put that file right$"
            ) as caught:
                files.at(f"{s3.uri}/x", S3(timeout_s=14)).read()
            assert "secret-of-mine" not in str(caught.value)


def test_no_credentials_say_where_they_come_from(s3, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match=r"no AWS credentials found; set AWS_ACCESS_KEY_ID"):
        files.at(f"{s3.uri}/x", S3(timeout_s=12)).read()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "half")
    with pytest.raises(StorageError, match=r"no AWS credentials found"):
        files.at(f"{s3.uri}/x", S3(timeout_s=13)).entries()


def test_without_a_default_profile_those_that_there_are_are_named(s3, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / "credentials").write_text("[work]\naws_access_key_id = k\naws_secret_access_key = secret-of-mine\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    with pytest.raises(StorageError, match=r"~/.aws holds no profile default, but work: set AWS_PROFILE to") as caught:
        files.at(f"{s3.uri}/x", S3(timeout_s=18)).read()
    assert "secret-of-mine" not in str(caught.value)


@pytest.mark.parametrize("form", ['"{}"', "'{}'", " {}", "{} "])
@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION"])
def test_quotes_and_blanks_round_a_variable_of_aws_are_told_by_its_name(s3, monkeypatch, name, form):
    files.at(f"{s3.uri}/x").write(b"1")
    monkeypatch.setenv(name, form.format("secret-of-mine"))
    for ask in (files.at(f"{s3.uri}/x").read, files.at(f"{s3.uri}/x").arrow):
        with pytest.raises(StorageError, match=rf"^{name}: .*; set it without$") as caught:
            ask()
        assert "secret-of-mine" not in str(caught.value)


class Answers(http.server.BaseHTTPRequestHandler):
    """An S3 that answers with the status and code of its buckets, and to HEAD with the bare status, as S3 does."""

    said: ClassVar[dict[str, tuple[int, str]]] = {
        "keys": (403, "InvalidAccessKeyId"),
        "secret": (403, "SignatureDoesNotMatch"),
        "expired": (400, "ExpiredToken"),
        "refresh": (400, "TokenRefreshRequired"),
        "skew": (403, "RequestTimeTooSkewed"),
        "denied": (403, "AccessDenied"),
        "moved": (301, "PermanentRedirect"),
        "nowhere": (301, "PermanentRedirect"),
        "region": (400, "AuthorizationHeaderMalformed"),
        "archived": (403, "InvalidObjectState"),
        "key": (403, "KMS.DisabledException"),
        "cannot": (501, "NotImplemented"),
        "method": (405, "MethodNotAllowed"),
        "large": (400, "EntityTooLarge"),
        "full": (507, "InsufficientStorage"),
        "new": (418, "OfTomorrow"),
        "portal": (200, ""),
    }

    def answer(self):
        status, code = self.said[self.path.split("/")[1].split("?")[0]]
        region = "<Region>mars-1</Region>" if "nowhere" not in self.path else ""
        body = f"<Error><Code>{code}</Code><Message>so</Message>{region}</Error>" if code else "<html/>"
        self.send_response_only(status)
        moment = datetime.now(UTC) - timedelta(minutes=40 if code == "RequestTimeTooSkewed" else 0)
        self.send_header("Date", format_datetime(moment))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body.encode())

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = answer

    def log_message(self, *words):
        pass


@pytest.fixture(scope="module")
def answers():
    """How it is reached."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield S3(endpoint=f"http://127.0.0.1:{server.server_port}", region="us-east-1", attempts=1)
        server.shutdown()


@pytest.fixture
def keys(monkeypatch):
    """Credentials of nobody, and a proxy that nothing on this machine is to be asked through."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "x")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in PROXIES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.mark.parametrize("ask", ["entry", "entries", "read", "write"])
@pytest.mark.parametrize(
    ("bucket", "words"),
    [
        ("keys", "S3 does not know the access key"),
        ("secret", "the secret of the AWS credentials does not fit"),
        ("expired", "the session token of the AWS credentials has expired"),
        ("refresh", "the session token of the AWS credentials has expired"),
        ("skew", "this machine's clock is wrong, by S3's 40 minutes ahead"),
        ("denied", "access denied: the AWS credentials are wrong, or may not do this to bucket denied"),
        ("moved", "the bucket is in another region, mars-1; set s3.region"),
        ("nowhere", "the bucket is in another region; set s3.region"),
        ("region", "the bucket is in another region, mars-1; set s3.region"),
        ("archived", "the object is archived (Glacier)"),
        ("key", "the KMS key that encrypts it cannot be used"),
        ("cannot", "the server cannot do what is asked of it"),
        ("method", "the server cannot do what is asked of it"),
        ("large", "larger than the server takes"),
        ("full", "there is no room left where bucket full lies"),
        ("new", "OfTomorrow: so"),
        ("portal", "what answers is no S3"),
    ],
)
def test_what_s3_refuses_is_said_by_its_cause_also_where_head_has_no_words_for_it(answers, keys, bucket, words, ask):
    if (bucket, ask) == ("portal", "write"):
        pytest.skip("to a PUT, a login page's answer is that of an S3")
    place = files.at(f"s3://{bucket}/set", answers)
    with pytest.raises(StorageError) as refused:
        place.write(b"1") if ask == "write" else getattr(place, ask)()
    assert str(refused.value).startswith(f"s3://{bucket}/set: {words}")
    assert type(refused.value) is StorageError


@pytest.mark.parametrize(
    ("ask", "permission"),
    [("entries", "s3:ListBucket"), ("entry", "s3:GetObject"), ("read", "s3:GetObject"), ("write", "s3:PutObject")],
)
def test_what_is_denied_names_the_permission_that_it_takes(answers, keys, ask, permission):
    place = files.at("s3://denied/set", answers)
    with pytest.raises(StorageError, match=rf"may not do this to bucket denied: to \w+ (it )?takes {permission}"):
        place.write(b"1") if ask == "write" else getattr(place, ask)()


def test_s3_beyond_this_machine_is_reached_through_the_proxy_by_whatever_asks(keys, monkeypatch):
    with listening(403) as (proxy, asked):
        for name in PROXIES:
            monkeypatch.setenv(name, proxy)
        place = files.at(
            "s3://bucket/set", S3(endpoint="http://s3.invalid", region="us-east-1", attempts=1, timeout_s=5)
        )
        with pytest.raises(StorageError, match="access denied"):
            place.entry()
        by_s3fs = len(asked)
        filesystem, path = place.arrow()
        with pytest.raises(PermissionError):
            filesystem.get_file_info(path)
    assert 0 < by_s3fs < len(asked)
    assert {target.split("/")[2] for _, target, _ in asked} == {"s3.invalid"}


@pytest.mark.parametrize("endpoint", ["foo", "http://", "ftp://127.0.0.1", "http://127.0.0.1:99999", "http://["])
def test_an_endpoint_that_is_none_is_named_with_the_place(keys, endpoint, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    limits = {"attempts": 1, "timeout_s": 2}  # and a region of its own, for a client is kept for each configuration
    with pytest.raises(StorageError, match="s3://bucket/set: "):
        files.at("s3://bucket/set", S3(**limits, region=f"of-{len(endpoint)}")).entries()
    if endpoint == "http://[":
        with pytest.raises(StorageError, match="s3://bucket/set: "):
            files.at("s3://bucket/set", S3(**limits, region="of-none")).arrow()


def test_an_endpoint_without_a_scheme_is_told_it(keys, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")
    with pytest.raises(StorageError, match=r"s3\.endpoint .* 127\.0\.0\.1:9000 is no URL; write http://127"):
        files.at("s3://bucket/x", S3(timeout_s=15)).read()


@pytest.mark.parametrize(("name", "words"), [("link", "is a link to gone/runs, which is"), ("file", "is no folder")])
def test_what_is_in_the_way_of_a_path_is_named(tmp_path, name, words):
    (tmp_path / "link").symlink_to("gone/runs")
    (tmp_path / "file").touch()
    lock = tmp_path / name / "run" / "lock"
    with pytest.raises(StorageError, match=f"/{name}/run/lock: .*/{name} {words}"), explained(lock):
        lock.touch()


def test_a_path_whose_parts_cannot_even_be_looked_at_is_named(tmp_path):
    far = tmp_path / ("x" * 300) / "lock"
    with pytest.raises(StorageError, match="lock: File name too long; check that it is there"), explained(far):
        far.touch()


@pytest.mark.parametrize("bundle", ["gone.pem", "key.pem", None])
def test_a_certificate_that_is_not_trusted_is_told_at_once(keys, bundle, monkeypatch, tmp_path):
    if not shutil.which("openssl"):
        pytest.skip("openssl, which makes a certificate, is not here")
    own = ["-subj", "/CN=127.0.0.1", "-keyout", tmp_path / "key.pem", "-out", tmp_path / "own.pem"]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *own], check=True, capture_output=True)
    if bundle:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / bundle))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "own.pem", tmp_path / "key.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = files.at("s3://bucket/x", S3(endpoint=f"https://127.0.0.1:{server.server_port}"))
        words = (
            rf"AWS_CA_BUNDLE .*/{bundle} cannot be used" if bundle else "certificate of https://127.* is not trusted"
        )
        with pytest.raises(StorageError, match=words) as told:
            place.read()
        server.shutdown()
    assert type(told.value) is StorageError


@pytest.mark.parametrize("bucket", ["Bad_Bucket!", "x", "a b", "-", "ü"])
def test_a_bucket_that_can_be_none_is_named(answers, keys, bucket):
    with pytest.raises(StorageError, match=f"s3://{bucket}/set: "):
        files.at(f"s3://{bucket}/set", S3(attempts=1, timeout_s=1, endpoint="http://127.0.0.1:9")).read()


def test_whatever_a_library_raises_comes_out_as_ours():
    place = files.at("s3://bucket/set", S3(attempts=1))
    for error in exceptions_of(botocore.exceptions, botocore.parsers, aiohttp, fsspec.exceptions, builtins):
        if isinstance(error, botocore.exceptions.ClientError):  # these have codes, as above
            continue

        def operation(fs, error=error):
            raise error

        with pytest.raises(StorageError, match="s3://bucket/set: "):
            place._try(operation)


def test_a_server_that_is_not_there_is_tried_so_often_and_no_more(s3, monkeypatch):
    tried = []
    real = emc2dist.files.s3._s3fs
    monkeypatch.setattr(emc2dist.files.s3, "_s3fs", lambda config: tried.append(1) or real(config))
    place = files.at(f"{s3.uri}/x", S3(endpoint="http://127.0.0.1:9", attempts=3, timeout_s=2))
    before = files.retries()
    with pytest.raises(StorageUnreachable, match=r"no usable answer after 3 attempts \(EndpointConnectionError\)"):
        place.read()
    assert len(tried) == 3
    assert files.retries() - before == 2


@contextmanager
def _answering(reply: bytes) -> Iterator[int]:
    """The port of a server that answers each connection with these bytes, and without any by a reset."""

    class Answer(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(1000)
            self.request.sendall(reply)
            if not reply:
                self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.request.close()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize(
    ("scheme", "reply", "error", "words"),
    [
        ("https", b"HTTP/1.0 400 Bad Request\r\n\r\n", StorageError, "speaks no TLS; write s3.endpoint with http://"),
        ("http", b"", StorageUnreachable, r"check s3.endpoint \(or does it speak https://\?\)"),
        ("http", b"HTTP/1.0 400 Bad Request\r\n\r\nan HTTPS server", StorageError, r"or does it speak https://\?"),
    ],
    ids=["plain", "reset", "page"],
)
def test_an_endpoint_of_the_other_scheme_is_named(keys, scheme, reply, error, words):
    with _answering(reply) as port:
        config = S3(endpoint=f"{scheme}://127.0.0.1:{port}", attempts=2, timeout_s=5)
        with pytest.raises(error, match=words):
            files.at("s3://bucket/x", config).read()


@pytest.mark.parametrize(
    ("endpoint", "without"),
    [
        ("http://127.0.0.1:9/data", "http://127.0.0.1:9"),
        ("http://127.0.0.1:9/store/data/", "http://127.0.0.1:9/store"),
        ("https://data.s3.eu-west-1.amazonaws.com", "https://s3.eu-west-1.amazonaws.com"),
    ],
)
def test_an_endpoint_that_holds_the_bucket_is_refused(keys, endpoint, without):
    with pytest.raises(StorageError, match=rf"s3\.endpoint: {endpoint} holds the bucket; write {without}$"):
        files.at("s3://data/set", S3(endpoint=endpoint)).write(b"1")
    with pytest.raises(StorageUnreachable):  # of other buckets it is a path as any other
        files.at("s3://other/set", S3(endpoint="http://127.0.0.1:9/data", attempts=1, timeout_s=2)).write(b"1")


def test_a_server_that_knows_neither_expect_nor_checksums_is_written_to(keys, tmp_path):
    class OfHttp10(Answers):
        def do_PUT(self):
            written.append(self.rfile.read(int(self.headers["Content-Length"])))
            checksums.extend(name for name in self.headers if "checksum" in name.lower())
            self.send_response_only(200)
            self.send_header("ETag", '"x"')
            self.end_headers()

    written, checksums = [], []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), OfHttp10) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = S3(endpoint=f"http://127.0.0.1:{server.server_port}", attempts=1, timeout_s=5)
        files.at("s3://bucket/x", config).write(b"abc")
        server.shutdown()
    assert written == [b"abc"]
    assert checksums == []  # which R2, B2 and others refuse


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="a limit of Linux's")
def test_a_server_that_reads_nothing_is_given_up(keys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        config = S3(endpoint=f"http://127.0.0.1:{server.getsockname()[1]}", attempts=1, timeout_s=1)
        with pytest.raises(StorageUnreachable, match="no usable answer after 1 attempts"):
            files.at("s3://bucket/x", config).write(bytes(2**25))  # more than the system keeps for it


def test_a_server_that_loses_its_disks_is_waited_for(s3):
    place = files.at(f"{s3.uri}/x", S3(attempts=2, timeout_s=5))
    place.write(b"here again")
    s3.server.kill_object_server()
    with pytest.raises(StorageUnreachable, match=r"no usable answer after 2 attempts \((503|ServiceUnavailable)\)"):
        place.read()
    patient = files.at(f"{s3.uri}/x", S3(attempts=50, timeout_s=5))
    back = threading.Event()
    answers = []
    reader = threading.Thread(target=lambda: answers.append((patient.read(), back.is_set())))
    reader.start()
    back.set()
    s3.server.start_object_server()
    reader.join(60)
    assert answers == [(b"here again", True)]


def test_large_objects_have_tags_that_hold(s3, tmp_path):
    source = tmp_path / "large"
    source.write_bytes(bytes(range(256)) * 2**18)  # 64 MiB: uploaded in parts
    place = files.at(f"{s3.uri}/large")
    entry = place.put(source)
    assert entry.size == 2**26
    assert place.read_range(2**25 + 7, 3, entry.tag) == bytes([7, 8, 9])


def test_pyarrow_reaches_the_same_places(folder, tmp_path):
    (folder / "x").write(b"seen")
    filesystem, path = pickle.loads(pickle.dumps(folder.arrow()))  # as another node gets it
    with filesystem.open_input_stream(f"{path}/x") as stream:
        assert stream.read() == b"seen"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "y").write_bytes(b"sent")
    (tmp_path / "own" / "empty").write_bytes(b"")
    filesystem.create_dir(f"{path}/own", recursive=True)
    copy_files(str(tmp_path / "own"), f"{path}/own", destination_filesystem=filesystem)
    assert (folder / "own" / "y").read() == b"sent"
    found = filesystem.get_file_info(FileSelector(f"{path}/own"))
    assert sorted((one.base_name, one.size) for one in found) == [("empty", 0), ("y", 4)]
    filesystem.delete_dir(f"{path}/own")
    assert folder.folders() == []


def test_pyarrow_makes_no_bucket(s3):
    filesystem, path = files.at("s3://no-such-bucket-here/x").arrow()
    filesystem.create_dir(path)
    with pytest.raises(StorageError, match="no such bucket"):
        files.at("s3://no-such-bucket-here/x").entries()


def test_pyarrow_tries_again_as_often_as_the_spec_says(keys):
    with listening(503) as (url, asked):
        filesystem, path = files.at("s3://bucket/set", S3(endpoint=url, region="us-east-1", attempts=3)).arrow()
        with pytest.raises(OSError, match="Service Unavailable"):
            filesystem.get_file_info(path)
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("config", "profile"),
    [
        ("[default]\nendpoint_url = {url}", None),
        ("[default]\n[profile mine]\nendpoint_url = {url}", "mine"),
        ("[default]\nservices = own\n[services own]\ns3 =\n  endpoint_url = {url}", None),
    ],
)
def test_an_endpoint_of_aws_own_configuration_is_that_of_all_clients(s3, config, profile, monkeypatch, tmp_path):
    (tmp_path / "config").write_text(config.format(url=s3.server.endpoint))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name)
    for name in PROXIES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where loopback is not told by the endpoint, nothing is reached
    if profile:
        monkeypatch.setenv("AWS_PROFILE", profile)
    place = files.at(f"{s3.uri}/x", S3(timeout_s=20 + len(config)))  # a client is kept for each configuration
    place.write(b"seen")
    filesystem, path = place.arrow()
    with filesystem.open_input_stream(path) as stream:
        assert stream.read() == b"seen"


def test_an_sso_session_that_is_over_says_how_to_log_in(monkeypatch, tmp_path, capfd):
    sso = "sso_start_url = https://corp.invalid/start\nsso_region = eu-one\n"
    account = "sso_session = corp\nsso_account_id = 1\nsso_role_name = r\nregion = eu-one\n"
    (tmp_path / "config").write_text(f"[profile work]\n{account}[sso-session corp]\n{sso}")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "work")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    place = files.at("s3://bucket/x", S3(endpoint="http://127.0.0.1:9", attempts=1, timeout_s=7))
    with pytest.raises(StorageError, match=r"SSO session of profile work .* run aws sso login --profile work$"):
        place.read()
    assert capfd.readouterr().err == ""


def test_settings_of_aws_are_read_as_botocore_reads_them(monkeypatch):
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    for name, region in (("AWS_REGION", "eu-one"), ("AWS_DEFAULT_REGION", "eu-two")):  # botocore asks but the second
        monkeypatch.setenv(name, region)
        endpoint = emc2dist.files.s3._endpoint.__wrapped__(S3())
        assert endpoint == f"https://s3.{region}.amazonaws.com"


def test_folders_that_tools_make_on_s3_are_no_files(s3):
    place = files.at(f"{s3.uri}/set")
    mark_folder(f"{place}/inner")
    (place / "a").write(b"1")
    assert [entry.name for entry in place.entries()] == ["a"]
    assert place.folders() == ["inner"]


@pytest.mark.parametrize(
    "path", ["gs://bucket/set", "s3a://bucket/set", "hf://datasets/x", "file://host/set", "S3://bucket/set", "gs:/set"]
)
def test_a_url_of_another_kind_never_becomes_a_folder(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for understand in (files.at, files.local):
        with pytest.raises(StorageError, match=rf"{path}: {re.match('.*:/+', path)[0]} cannot be used here"):
            understand(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "words"),
    {
        "s3:/bucket/set": "s3:/ cannot be used here; give a path on disk, or s3://bucket/set ",
        "S3://bucket/set": "S3:// cannot be used here; give a path on disk, or s3://bucket/set ",
        "s3a://bucket/set": "s3a:// cannot be used here; give a path on disk, or s3://bucket/set ",
        "arn:aws:s3:::bucket/runs": "'arn:aws:s3:::bucket' is an ARN; write s3://bucket/folder",
        "arn:aws-cn:s3:::bucket": "is an ARN; write s3://bucket/folder",
        "s3.amazonaws.com/bucket/set": "'s3.amazonaws.com' is a host of the network; for S3 write s3://bucket/folder",
        "bucket.s3.eu-central-1.amazonaws.com/set": "is a host of the network; ",
        "localhost:9000/bucket": "'localhost:9000' is a host of the network; ",
        "10.0.0.1:9000/bucket": "'10.0.0.1:9000' is a host of the network; ",
        "me@login.cluster:set": "'me@login.cluster:' is another machine; ",
    }.items(),
)
def test_a_place_on_the_network_never_becomes_a_folder(path, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for understand in (files.at, files.local):
        with pytest.raises(StorageError, match=words):
            understand(path)
    assert files.local(f"./{path}") == Path(path)
    for name in ("imagenet-1.0/set", "set.v2/train.parquet", "a@b/c", "1.2.3.4/set", "resnet.ai-2/x"):
        assert str(files.local(name)) == name


def test_a_path_is_taken_as_a_person_means_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.local("~/set") == tmp_path / "set"
    with pytest.raises(StorageError, match="~nobody-of-this-name/set: there is no user nobody-of-this-name here"):
        files.local("~nobody-of-this-name/set")
    assert str(files.at("file:///data/set%20%232")) == "/data/set #2"
    for name in ("set #2", "exp: 3", "a'b\"c", "./gs:/set", "\udcff"):
        assert str(files.local(name)) == name.removeprefix("./")
    with pytest.raises(StorageError, match="NUL"):
        files.at("set\0")
    with pytest.raises(StorageError, match="s3:// cannot be used here; give a path on disk"):
        files.local("s3://bucket/set")
