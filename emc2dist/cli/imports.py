"""A package that cannot be imported, in one message: which file was found for it, and what stands before this
environment's packages.

What Python, NumPy and Ray say of it is a page long, and blames the installation; more often the file is another one's:
a `ray.py` beside the script, PYTHONPATH of a cluster's module, or what `pip install --user` left.
"""

import os
import site
import sys
import sysconfig
import traceback
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

import emc2dist
from emc2dist.terminal import brief


def explained(error: ImportError | AttributeError) -> str | None:
    """The message. Of a chain of errors the first tells most: the others were raised about it.

    None where it is no fault of imports: of an AttributeError that is not of a module in the place of another.
    """
    if isinstance(error, AttributeError):
        file = _in_place_of_another(error.obj.__name__) if isinstance(error.obj, ModuleType) else None
        return _told(error, file) if file else None
    first = _first(error)
    named = (first.name or "").partition(".")[0]  # before others, which may do no harm
    found = filter(None, map(_in_place_of_another, (named, *sys.modules)))
    return _told(first, next(found, None) or first.path or traceback.extract_tb(first.__traceback__)[-1].filename)


def _told(error: Exception, file: str) -> str:
    what = f"a package cannot be imported ({type(error).__name__}: {brief(error)}; in {file})"
    folder, own = _searched(file), str(Path(os.path.realpath(emc2dist.__file__)).parents[1])
    paths = [os.path.realpath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if folder in paths and folder != own:
        return f"{what}; PYTHONPATH puts {folder} before this environment's packages: unset it (unset PYTHONPATH)"
    if folder == os.path.realpath(site.getusersitepackages()):
        return f"{what}; {folder} holds what `pip install --user` left: PYTHONNOUSERSITE=1 does without it"
    name = _package(file, folder)
    if folder in _first_searched() and name != emc2dist.__name__:
        return f"{what}; it is taken for {name}, for {folder} stands before this environment's packages: rename it"
    return f"{what}; install emc2dist anew into {sys.prefix}, with what it requires"


def _in_place_of_another(name: str) -> str | None:
    """The file of a module that Python found before that of the same name in this environment; None where none is."""
    file, first = getattr(sys.modules.get(name), "__file__", None), _first_searched()
    if not file or "." in name or name == emc2dist.__name__ or _searched(file) not in first:
        return None
    other = PathFinder.find_spec(name, [folder for folder in sys.path if os.path.realpath(folder) not in first])
    return file if other and other.origin else None


def _first_searched() -> list[str]:
    """The folders that Python searches before its own library: the script's and those of PYTHONPATH.

    Ray puts some of its own before them, from among the packages.
    """
    folders = [os.path.realpath(folder) for folder in sys.path]
    library = os.path.realpath(sysconfig.get_path("stdlib"))
    split = folders.index(library) if library in folders else 0
    packages = [folder for folder in folders[split:] if folder.endswith("-packages")]
    return [one for one in folders[:split] if not any(Path(one).is_relative_to(folder) for folder in packages)]


def _package(file: str, folder: str) -> str:
    return Path(os.path.relpath(os.path.realpath(file), folder)).parts[0].removesuffix(".py")


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
