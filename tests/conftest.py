"""Fixtures shared by all tests. Ray reads its environment when it is imported, so that is set first of all."""

import os
from pathlib import Path

os.environ.update(
    PYTHONPATH=str(Path(__file__).parent),  # Ray's workers import actors of the tests by name
    RAY_USAGE_STATS_ENABLED="0",
    RAY_worker_niceness="0",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.1",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
)

import shutil
import tempfile

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tensors and encoders here are small: one thread is fastest, and repeats bit for bit on any machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_cluster():
    """A real Ray of one node with 8 CPUs to give away, of this session alone."""
    import ray

    folder = tempfile.mkdtemp(prefix="emc2-")  # short: sockets lie in it, and their paths must stay under 108 bytes
    ray.init(
        address="local",  # never the cluster of somebody else on this machine
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="warning",
        object_store_memory=300 * 2**20,
        _temp_dir=folder,
    )
    yield ray
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
