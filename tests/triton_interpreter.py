"""Triton's kernels without a GPU: by its interpreter, which a process has to ask for before it imports Triton."""

import importlib.util
import os
import subprocess
import sys

import pytest

NEEDED = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs triton, which torch's wheels for CUDA bring"
)


def interpreted(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code, in which Triton's kernels are interpreted."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
