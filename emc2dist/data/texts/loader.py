"""Tokens of texts, made ahead of time on a thread of this process.

Splitting a text into tokens takes microseconds, in code that leaves the interpreter to others, so no process is needed
as for images (`emc2dist.data.loader`).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.data.encoded import Traffic
from emc2dist.data.texts.pairs import Texts


class TextLoader:
    """Makes views of `texts` with `view`: of n texts and seeds int64 [V, n] int32 [V, n, L].

    Urgent ones have a thread of their own.
    """

    def __init__(self, texts: Texts, view: Callable[[Sequence[str], NDArray[np.int64]], Tensor]) -> None:
        self._texts, self._view = texts, view
        self._threads = {urgent: ThreadPoolExecutor(1, thread_name_prefix="tokens") for urgent in (True, False)}

    @property
    def traffic(self) -> Traffic:
        """What making the views has asked of the texts so far."""
        return self._texts.traffic

    def submit(self, indices: NDArray[np.int64], seeds: NDArray[np.int64], *, urgent: bool = False) -> Future[Tensor]:
        """Begin on the views of n texts; seeds are int64 [V, n]. The future gives int32 [V, n, L]."""
        return self._threads[urgent].submit(self._make, indices, seeds)

    def close(self) -> None:
        """Drop what has not begun, and end the threads."""
        for thread in self._threads.values():
            thread.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _make(self, indices: NDArray[np.int64], seeds: NDArray[np.int64]) -> Tensor:
        return self._view(self._texts.get(indices), seeds)
