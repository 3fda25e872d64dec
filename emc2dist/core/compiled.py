"""Compilation by numba ahead of time, for declared types: the code is kept, and the next process only loads it.

It is kept beside the module, or in the user's cache folder where that cannot be written to; `NUMBA_CACHE_DIR` names
another one. Numba knows code by its module's file, so what is compiled must not call what another module may change.
"""

from collections.abc import Callable
from typing import Any

from numba import njit

from emc2dist.terminal import say_once

OPTIONS = {"nogil": True, "error_model": "numpy"}
"""Of all that is compiled: it does not hold the interpreter's lock, and divides as NumPy does."""


def ahead_of_time(*signatures: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that compiles for `signatures` (numba's types), or loads what was compiled before."""

    def compile_or_load(function: Callable[..., None]) -> Callable[..., None]:
        try:
            return njit(list(signatures), cache=True, **OPTIONS)(function)
        except Exception as error:  # no folder to keep it in, a full disk, or what was kept is damaged
            reason = (
                f"compiled code can be neither kept nor found ({error}), so every process takes seconds to compile it"
            )
            say_once("numba", f"{reason}; NUMBA_CACHE_DIR names another folder for it")
            return njit(list(signatures), **OPTIONS)(function)

    return compile_or_load
