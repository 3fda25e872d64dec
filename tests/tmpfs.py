"""A disk that really fills up: a file system in memory, which only root can mount."""

import subprocess
from pathlib import Path


def mount(folder: Path, mib: int) -> bool:
    """Whether `folder` is now a disk of so many MiB."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", folder]
    return subprocess.run(command, capture_output=True, timeout=30).returncode == 0


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", folder], check=True, timeout=30)
