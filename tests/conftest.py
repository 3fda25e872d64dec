"""Fixtures shared by all tests. Ray reads its environment when it is imported, so that is set first of all."""

import os
from pathlib import Path

os.environ.update(
    PYTHONDONTWRITEBYTECODE="",  # whatever was set: hundreds of processes are started, and import the same
    PYTHONPATH=str(Path(__file__).parent),  # Ray's workers import actors of the tests by name
    RAY_USAGE_STATS_ENABLED="0",
    RAY_worker_niceness="0",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.1",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
)

import secrets
import shutil
import signal
import sys
import tempfile
from types import SimpleNamespace

import pytest
import tmpfs
import torch
from command import end_all_started

sys.dont_write_bytecode = False  # so for this process, which imports and rewrites the tests

# pytest-xdist ignores SIGINT in its processes, and whatever a test starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


FIRST = set()
"""Files of tests of whole runs, of training, or on the session's Ray."""
ON_RAY = []
"""What ends the session's Ray, while it is there."""


def pytest_collection_modifyitems(items):
    """Those files first: they are the longest, and the last file to be begun should be a short one."""
    rooms = {Path(__file__).with_name(room) for room in ("run", "launch", "sweep", "report", "watch", "train")}
    # By their text: a fixture may ask for it only when it is made.
    on_ray = {path for path in {item.path for item in items} if "ray_cluster" in path.read_text()}
    FIRST.update(on_ray, (item.path for item in items if not rooms.isdisjoint(item.path.parents)))
    items.sort(key=lambda item: item.path not in FIRST)


def pytest_runtest_setup(item):
    """End the session's Ray where no test is to come that needs it: its processes are never quite idle."""
    if item.path not in FIRST:
        end_ray()
    elif ON_RAY and "ray_cluster" in item.fixturenames:
        import ray

        # Else Ray would start another one by itself, with less room, and the test would wait for room.
        assert ray.is_initialized(), "a test before this one has ended the session's Ray"


def end_ray():
    while ON_RAY:
        ON_RAY.pop()()


@pytest.fixture(autouse=True)
def nothing_goes_on():
    """A test that fails while it waits leaves its command running."""
    yield
    end_all_started()


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tensors and encoders here are small: one thread is fastest, and repeats bit for bit on any machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_cluster():
    """A real Ray of one node with 8 CPUs to give away, of this session alone."""
    from emc2dist.run import cluster

    import ray  # isort: skip

    folder = tempfile.mkdtemp(prefix="emc2-")  # short: sockets lie in it, and their paths must stay under 108 bytes
    with cluster._lean(dashboard=False):
        ray.init(
            address="local",  # never the cluster of somebody else on this machine
            num_cpus=8,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="warning",
            object_store_memory=300 * 2**20,
            _temp_dir=folder,
        )
    ON_RAY[:] = [lambda: shutil.rmtree(folder, ignore_errors=True), ray.shutdown]
    yield ray
    end_ray()


@pytest.fixture
def small_disk(request, tmp_path):
    """A folder on a disk of its own, of one MiB or as many as the parameter says: what really fills up."""
    if not tmpfs.mount(tmp_path / "disk", getattr(request, "param", 1)):
        pytest.skip("only root can make a small disk")
    yield tmp_path / "disk"
    tmpfs.unmount(tmp_path / "disk")


@pytest.fixture(scope="session")
def crd():
    """Schemas by kind of what KubeRay takes, see `crds`."""
    import crds

    if not crds.CRDS.is_dir():
        pytest.skip("KubeRay's custom resource definitions are not here")
    return crds.schemas()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """A real S3 of this session alone; `s3` is what a test asks for."""
    from s3_server import S3Server

    if not S3Server.available():
        pytest.skip("no S3 server is installed: run `make test`, which sets up .swift")
    server = S3Server(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """A fresh bucket, `.uri`, on `.server`, and an environment that leads there as a person would set it."""
    from s3fs import S3FileSystem

    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)  # whatever account the person who runs the tests has
    own_settings = {"AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_CONFIG_FILE": os.devnull}
    no_proxy = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    for name, value in {**own_settings, **no_proxy, **s3_server.environment}.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # s3fs reuses a file system although the environment has changed
    yield SimpleNamespace(server=s3_server, uri=s3_server.bucket(f"test-{secrets.token_hex(6)}"))
    s3_server.start_object_server()  # which the test may have killed
    S3FileSystem.clear_instance_cache()
