"""Paths as a person writes them: on this machine's disk, or `s3://bucket/folder`; nothing else becomes a folder."""

import os
import re
from pathlib import Path
from urllib.parse import unquote

S3_SCHEME = "s3://"
_FILE = "file:///"
_UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # by a spec, one line of UTF-8 for a value
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")


def is_remote(path: str) -> bool:
    """Whether the path lies beyond the network."""
    return path.startswith(S3_SCHEME)


def on_disk(text: str) -> Path:
    """A path on this machine's disk, as a person means it: `~` and `file:///` are understood.

    Raises:
        ValueError: it is empty, holds a NUL, or is a URL of another kind, which would become a folder of that name. The
            message does not repeat the path.
    """
    path = text
    if path.startswith(_FILE):
        path = unquote(path.removeprefix(_FILE.removesuffix("/")), errors="surrogateescape")
    url = _URL.match(path)
    if url:
        where = "a path on disk" if is_remote(path) else "a path on disk, or s3://bucket/folder"
        raise ValueError(f"{url[1]}:// cannot be used here; give {where} (a folder of this name is ./{path})")
    if not path or "\0" in path:
        raise ValueError(f"no path, for it {'holds a NUL' if path else 'is empty'}; correct it")
    return Path(os.path.expanduser(path))  # Path.expanduser raises where there is no such user


def bucket_and_key(uri: str) -> str:
    """`bucket/key` of an `s3://` URI. Raises ValueError where it names no bucket."""
    key = uri.removeprefix(S3_SCHEME).rstrip("/")
    if not key or key.startswith("/"):
        raise ValueError("names no bucket; write s3://bucket/folder")
    return key


def check(text: str, *, remote: bool = True) -> None:
    """Raise ValueError where `text` is no path: on disk, or (`remote`) on S3 as well."""
    if _UNWRITABLE.search(text):
        raise ValueError("holds a control character, or a byte that is not UTF-8; rename it, or give a link to it")
    if remote and is_remote(text):
        bucket_and_key(text)
    else:
        on_disk(text)
