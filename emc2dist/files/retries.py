"""How often requests to S3 are tried again, and the longest pause before; known without S3's own libraries."""

import threading

LONGEST_PAUSE_S = 10.0
"""Between two attempts."""

_count = 0
_lock = threading.Lock()


def retries() -> int:
    """How many times this process has tried a request again so far."""
    return _count


def count_retry() -> None:
    """One more."""
    global _count
    with _lock:
        _count += 1
