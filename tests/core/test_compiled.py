"""Code compiled ahead of time: kept for the next process, and made anew where it cannot be kept."""

import json
import os
import subprocess
import sys

import numpy as np
from numba import njit, types

from emc2dist.core import compiled

LOOK = """
import json
from emc2dist.core.walk import _walk
from emc2dist.towers.augment import augment
print(json.dumps([[sum(f.stats.cache_hits.values()), len(f.signatures)] for f in (_walk, augment)]))
"""


def test_the_next_process_loads_what_one_compiled(tmp_path):
    def process():
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", LOOK], env=environment, check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    assert process() == [[0, 2], [0, 1]]  # float32 and float64; pixels
    assert process() == [[2, 2], [1, 1]]


def test_where_compiled_code_cannot_be_kept_it_is_compiled_and_that_is_said(monkeypatch, capfd):
    def fails(*arguments, cache=False, **options):
        if cache:
            raise RuntimeError("no locator available")
        return njit(*arguments, **options)

    monkeypatch.setattr("emc2dist.terminal._said", set())
    monkeypatch.setattr(compiled, "njit", fails)

    @compiled.ahead_of_time(types.void(types.int64[::1]))
    def count(numbers):
        for i in range(len(numbers)):
            numbers[i] = i

    assert "can be neither kept nor found (no locator available), so every process" in capfd.readouterr().err
    numbers = np.zeros(3, np.int64)
    count(numbers)
    assert numbers.tolist() == [0, 1, 2]
