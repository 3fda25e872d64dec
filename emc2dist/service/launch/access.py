"""Who may be spoken to: an address that is not this machine's own gets jobs only together with a token.

Whoever can submit a job to a Ray cluster runs code on it, so one without a token is anybody's who reaches its port.
Tokens are looked for where Ray looks: RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, ~/.ray/auth_token. They
are sent to the cluster alone, and never printed: no proxy is told one, no redirect is followed with one.
"""

import os
from pathlib import Path
from urllib.parse import urlsplit

from emc2dist.errors import LaunchError
from emc2dist.files.loopback import is_loopback

WRONG_TOKEN = (
    "refuses the token, or wants one; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file of its token"
)
"""What to say of a cluster that does."""


def headers_for(url: str, token_file: Path | None = None) -> dict[str, str]:
    """What authorises requests to `url`; empty where there is no token and none is needed.

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
    """The token that Ray itself would use, if there is one."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"].strip()
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = named or os.path.expanduser("~/.ray/auth_token")  # Path.home raises where there is none
    return _read(Path(path), missing_is_error=bool(named))


def _read(path: Path, *, missing_is_error: bool = True) -> str | None:
    try:
        return path.read_text().strip() or None
    except (OSError, UnicodeDecodeError) as error:
        if not missing_is_error:
            return None
        reason = getattr(error, "strerror", None) or "it is no text"
        raise LaunchError(f"{path}: the token cannot be read ({reason}); see RAY_AUTH_TOKEN_PATH") from None
