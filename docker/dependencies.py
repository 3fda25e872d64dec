"""Prints what pyproject.toml depends on: pip can install a project's dependencies only together with the project."""

import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
print(*project["dependencies"], *project["optional-dependencies"]["aws"], sep="\n")
