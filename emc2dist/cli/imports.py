"""A package that cannot be imported, in one message: which file was found for it, and what stands before this
environment's packages.

What Python, NumPy and Ray say of it is a page long, and blames the installation; more often the file is another one's:
PYTHONPATH of a cluster's module, or what `pip install --user` left.
"""

import os
import site
import sys
import traceback
from pathlib import Path

from emc2dist.terminal import brief


def explained(error: ImportError) -> str:
    """The message. Of a chain of errors the first tells most: the others were raised about it."""
    first = _first(error)
    file = first.path or traceback.extract_tb(first.__traceback__)[-1].filename
    what = f"a package cannot be imported ({type(first).__name__}: {brief(first)}; in {file})"
    folder = _searched(file)
    if folder in map(os.path.realpath, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        return f"{what}; PYTHONPATH puts {folder} before this environment's packages: unset it (unset PYTHONPATH)"
    if folder == os.path.realpath(site.getusersitepackages()):
        return f"{what}; {folder} holds what `pip install --user` left: PYTHONNOUSERSITE=1 does without it"
    return f"{what}; install emc2dist anew into {sys.prefix}, with what it requires"


def _first(error: ImportError) -> ImportError:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ImportError):
            error = seen
        seen = seen.__cause__ or seen.__context__
    return error


def _searched(file: str) -> str:
    """The folder of sys.path from which a file was imported."""
    parents = set(map(str, Path(os.path.realpath(file)).parents))
    return max((folder for folder in map(os.path.realpath, sys.path) if folder in parents), key=len, default="")
