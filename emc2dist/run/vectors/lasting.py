"""A path that a file of vectors tells, for whoever reads it later and from another folder."""

from pathlib import Path

from emc2dist.config import BUILT_IN, is_remote, paths
from emc2dist.files import Place


def lasting(path: str | Path | Place) -> str:
    """The whole path; that of a set of the package is its name."""
    text = str(path)
    return text if text in BUILT_IN or is_remote(text) else paths.absolute(text)
