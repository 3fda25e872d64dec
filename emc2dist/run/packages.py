"""Packages that only some runs or reports want."""

import importlib.util


def installed(name: str) -> bool:
    """Whether a package is installed here. A mere folder of its name, as W&B leaves one where it runs, is none."""
    found = importlib.util.find_spec(name)
    return found is not None and found.origin is not None
