"""Exceptions of libraries, made without knowing how each is to be made: for what must stand whatever is raised."""

import inspect
from types import ModuleType


def exceptions_of(*modules: ModuleType) -> list[Exception]:
    """One of each exception class that the modules name, but for those that are no errors."""
    kinds = {kind for module in modules for _, kind in inspect.getmembers(module, inspect.isclass)}
    errors = [
        kind
        for kind in kinds
        if issubclass(kind, Exception) and not issubclass(kind, Warning | StopIteration | ExceptionGroup)
    ]
    return [made(kind) for kind in sorted(errors, key=lambda kind: (kind.__module__, kind.__qualname__))]


def made(kind: type[Exception]) -> Exception:
    """An exception whose __init__, which may want anything, has not run."""
    error = kind.__new__(kind, "made up")
    error.args = ("made up", "made up")
    return error
