"""Sweep by the spec beside this file, here or by `ray job submit`: `python jobs/sweep.py [key=value ...]`."""

import sys
from pathlib import Path

from emc2dist.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", str(Path(__file__).with_suffix(".yaml")), *sys.argv[1:]]))
