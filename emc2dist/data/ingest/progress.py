"""How far a long job is: a bar in a terminal, plain lines in a log, with rate and time left; on stderr."""

import sys
import time

from tqdm import tqdm

_LINE_SECONDS = 10.0


class Progress:
    """Counts up to `total`, of which `done` is done already."""

    def __init__(self, total: int, done: int = 0, *, terminal: bool | None = None) -> None:
        terminal = sys.stderr.isatty() if terminal is None else terminal
        self._bar = tqdm(total=total, initial=done, unit="image", dynamic_ncols=True) if terminal else None
        self._total, self._first, self._done = total, done, done
        self._began = self._said = time.monotonic()

    def add(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._said >= _LINE_SECONDS:
            self._said = time.monotonic()
            say(self._line())

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def _line(self) -> str:
        rate = (self._done - self._first) / (time.monotonic() - self._began)
        left = tqdm.format_interval((self._total - self._done) / rate) if rate else "unknown time"
        return f"{self._done:,} of {self._total:,} images, {rate:,.0f} images/s, {left} to go"


def say(text: str) -> None:
    """A message to the person who waits."""
    tqdm.write(text, file=sys.stderr)
