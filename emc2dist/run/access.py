"""Tokens, and who may be spoken to: an address that is not this machine's own gets jobs only together with a token.

Whoever can submit a job to a Ray cluster runs code on it, so one without a token is anybody's who reaches its port.
Tokens are looked for where Ray looks: RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, ~/.ray/auth_token. They
are sent to the cluster alone, and never printed: no proxy is told one, no redirect is followed with one.
"""

import os
import re
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from emc2dist.errors import LaunchError
from emc2dist.files.loopback import is_loopback

WRONG_TOKEN = (
    "refuses the token, or wants one; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file of its token"
)
"""What to say of a cluster that does."""
_DEFAULT = "~/.ray/auth_token"
_LONGEST = 8000
"""Bytes of a token: servers refuse longer headers."""


def headers_for(url: str, token_file: Path | None = None) -> dict[str, str]:
    """Headers that authorise requests to `url`; empty where there is no token and none is needed.

    Raises:
        LaunchError: there is no token, and the address is not loopback.
    """
    token = _read(token_file) if token_file else find_token()
    if token:
        return {"Authorization": f"Bearer {token}"}
    refuse_without_token(url)
    return {}


def refuse_without_token(address: str) -> None:
    """Raise LaunchError unless the address (a URL, or HOST:PORT) is loopback or a token is at hand."""
    if is_loopback(address) or find_token():
        return
    raise LaunchError(
        f"{address}: is not on this machine and there is no token for it. A Ray cluster without one runs the code of "
        "anybody who reaches it. Make one with `ray get-auth-token --generate`, start the cluster with it and with "
        "RAY_AUTH_MODE=token, and set RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=FILE here (docs/cluster.md)"
    )


def by_proxy(url: str) -> bool:
    """Whether a proxy that the environment names may be asked for `url`.

    Over https it passes on what it cannot read; over http it would read the token, and loopback is not its to reach.
    """
    return urlsplit(url).scheme == "https" and not is_loopback(url)


def find_token() -> str | None:
    """The token that Ray itself would use, if there is one.

    Raises:
        LaunchError: what is set, or lies in the file, is no token; it is not shown.
    """
    given, named = os.environ.get("RAY_AUTH_TOKEN"), os.environ.get("RAY_AUTH_TOKEN_PATH")
    if given is not None:
        return _checked(os.fsencode(given), "RAY_AUTH_TOKEN")
    if named is not None and not named.strip():
        raise LaunchError("RAY_AUTH_TOKEN_PATH: is empty; set it to the file of the token, or unset it")
    if named is not None:
        return _read(Path(named), "RAY_AUTH_TOKEN_PATH: ")
    path = os.path.expanduser(_DEFAULT)  # Path.home raises where there is none
    return _read(Path(path)) if os.path.lexists(path) else None


def make_token() -> None:
    """Make the token of the home folder, whole and for this user alone, unless one is made there meanwhile.

    Raises:
        OSError, RuntimeError: there is no home folder, or none that takes it.
    """
    path = Path(_DEFAULT).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")  # of mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        with suppress(FileExistsError):
            os.link(draft, path)  # which, other than a rename, replaces nothing
    finally:
        os.unlink(draft)


def _read(path: Path, named_by: str = "") -> str:
    try:
        with path.open("rb") as file:
            return _checked(file.read(_LONGEST + 1), f"{named_by}{path}")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no path"
        raise LaunchError(f"{named_by}{path}: the token cannot be read ({reason}); see RAY_AUTH_TOKEN_PATH") from None


def _checked(token: bytes, source: str) -> str:
    """A token as it may stand in a header, where what else it holds would be refused, and shown, by others."""
    text = token.strip(b" \t\r\n")
    if not text:
        raise LaunchError(f"{source}: the token is empty; put one there, or remove it to do without")
    if len(token) > _LONGEST or not re.fullmatch(rb"[!-~]+", text):
        raise LaunchError(
            f"{source}: holds no token (it is not shown): one is a line of printable ASCII without spaces; make one "
            "with `ray get-auth-token --generate`"
        )
    return text.decode()
