"""Paths as a person writes them: on this machine's disk, or `s3://bucket/folder`; nothing else becomes a folder.

What a shell, Windows, a template or an editor leaves in a path by mistake would become a folder too, so it is refused.
Who means it writes `./$NAME`, or a `file:///` URI with the sign percent-encoded.
"""

import os
import re
from pathlib import Path
from urllib.parse import unquote

from emc2dist.config.characters import UNSEEN

S3_SCHEME = "s3://"
_FILE = "file:///"
_UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # by a spec, one line of UTF-8 for a value
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/+")
_S3S = ("s3", "s3a", "s3n")  # as Hadoop and others call it
_ENCODED = re.compile("%[0-9A-Fa-f]{2}")
_UNSEEN = rf"[\s{UNSEEN}]"

_WRITE = "which nothing here fills in; write out what it stands for"
_STAND_INS = {  # a $ or a { within a name may be one of its characters
    re.compile(r"\$[({][^/})]*[})]*|(?<![^/])\$[A-Za-z_]\w*|\$[A-Z_]{2,}|`[^/]*"): f"is a shell's, {_WRITE}",
    re.compile(r"%[A-Za-z_][\w()]*%|%\(\w+\)s"): f"is a variable, {_WRITE}",
    re.compile(r"\{[{%][^/}]*\}*|(?<![^/])<[^/<>]+>(?![^/])"): f"is a template's, {_WRITE}",
}
_ELSEWHERE = {  # at the start, where `./` says that a folder is meant
    re.compile(r"(?i)arn:[^:/]*:[^/]*"): "is an ARN; write s3://bucket/folder",
    re.compile(
        r"(?i)(?:[\w-]+\.)+(?:com|org|net|edu|gov|io|co|ai|dev|cloud|cn|eu|de|uk|us)(?::\d+)?(?=/|$)"
        r"|(?:localhost|\d+(?:\.\d+){3}):\d+(?=/|$)"
    ): "is a host of the network; for S3 write s3://bucket/folder, and s3.endpoint=URL for a server other than AWS",
    re.compile(r"[\w.-]+@[\w.-]+:"): "is another machine; give a path that this one has",
}
_SLIPS = {
    re.compile(r"^[A-Za-z]:[\\/]|\\"): "is of a path of Windows; give the path that this machine has, with /",
    re.compile("^[\"'\u2018-\u201f\u00ab\u00bb]"): "is a quotation mark; leave it out, or put ' at both ends",
    re.compile(f"^{_UNSEEN}|{_UNSEEN}$"): "is blank, or cannot be seen, and stands at an end; leave it out",
}


def is_remote(path: str) -> bool:
    """Whether the path lies beyond the network."""
    return path.startswith(S3_SCHEME)


def on_disk(text: str) -> Path:
    """A path on this machine's disk, as a person means it: `~` and `file:///` are understood.

    Raises:
        ValueError: it is empty, holds a NUL, or begins as what would become a folder of that name and is not meant: a
            URL of another kind, a host, an ARN, a variable, another user's home that is not here. The caller names the
            path.
    """
    path = text
    if path.startswith(_FILE):
        path = unquote(path.removeprefix(_FILE.removesuffix("/")), errors="surrogateescape")
    for pattern, reason in (_STAND_INS | _SLIPS | _ELSEWHERE).items():
        if found := pattern.match(path):
            literal = f" (a folder of this name is ./{path})" if pattern not in _SLIPS and "\\" not in path else ""
            raise ValueError(f"{found[0]!r} {reason}{literal}")
    url = _URL.match(path)
    if url:
        there = path[url.end() :] if url[1].lower() in _S3S else "bucket/folder"
        where = "a path on disk" if is_remote(path) else f"a path on disk, or s3://{there}"
        raise ValueError(f"{url[0]} cannot be used here; give {where} (a folder of this name is ./{path})")
    if not path or "\0" in path:
        raise ValueError(f"no path, for it {'holds a NUL' if path else 'is empty'}; correct it")
    expanded = os.path.expanduser(path)  # Path.expanduser raises where there is no such user
    if re.match("~[^/]", expanded):
        raise ValueError(f"there is no user {expanded[1:].split('/')[0]} here (a folder of this name is ./{path})")
    return Path(expanded)


def absolute(text: str) -> str:
    """The same path on disk, from wherever it is used, as a text that `check` takes. Raises as `on_disk` does."""
    path = on_disk(text).resolve()
    try:
        check(str(path))
    except ValueError:
        return path.as_uri()
    return str(path)


def looked_for_in(text: str) -> str:
    """` in FOLDER`, the working directory, where a path that is not there is relative; nothing where it is not."""
    if text.startswith((S3_SCHEME, _FILE, "/", "~")):
        return ""
    try:
        return f" in {os.getcwd()}"
    except OSError:
        return " in a working directory that is gone"


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
        advice = ""
    else:
        on_disk(text)
        advice = " (or, if a folder is called so, percent-encode it in a file:/// URI)"
    written = _ENCODED.sub("_", text) if text.startswith(_FILE) else text
    slip = _first(_STAND_INS | _SLIPS, written.removeprefix("./"), past=text.startswith("./"))
    if slip:
        raise ValueError(slip + advice)


def refuse_stand_ins(text: str) -> None:
    """Raise ValueError where a name holds what a shell or a template should have filled in, or is no line of text."""
    if _UNWRITABLE.search(text):
        raise ValueError("holds a control character, or a byte that is not UTF-8; leave it out")
    slip = stand_in(text)
    if slip:
        raise ValueError(slip)


def stand_in(text: str) -> str | None:
    """What of a text a shell or a template should have filled in, and that nothing here does; None where nothing is."""
    return _first(_STAND_INS, text)


def _first(patterns: dict[re.Pattern[str], str], text: str, *, past: bool = False) -> str | None:
    """What of a text is none of it and why, for the first pattern that finds any (`past`: but not at the start)."""
    for pattern, reason in patterns.items():
        found = next((match for match in pattern.finditer(text) if match.start() or not past), None)
        if found:
            return f"{found[0]!r} {reason}"
    return None
