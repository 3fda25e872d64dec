"""What a worker may raise: what ends the run, by which words, and what is started again."""

import builtins
import errno
import json
import re

import psutil
import pyarrow
import pytest
import requests
import torch
from command import emc2dist, in_process
from PIL import UnidentifiedImageError
from raising import exceptions_of
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    OutOfMemoryError,
    RayTaskError,
    WorkerCrashedError,
)
from train.harness import SMALL, small_spec

from emc2dist.errors import (
    DataError,
    NonFiniteError,
    RunError,
    StorageError,
    StorageUnreachable,
    StoreError,
    StoreTimeout,
)
from emc2dist.run import cluster
from emc2dist.run.failures import cause_of_death, fatal, fatal_text
from emc2dist.run.worker import _reported
from emc2dist.terminal import brief

SPEC = small_spec()


@pytest.mark.parametrize("said", ["Distributed package doesn't have NCCL built in", "No CUDA GPUs are available"])
def test_a_torch_that_cannot_use_its_gpu_is_told_what_helps(said):
    failure = fatal_text(f"Traceback\nRuntimeError: {said}", SPEC)
    assert re.fullmatch(
        rf"a worker has a GPU .* \(RuntimeError: {said}\); install a CUDA build .* device=cpu", str(failure)
    )


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be",
        "CUDA error: invalid device ordinal\n",
        "CUDA error: the provided PTX was compiled with an unsupported toolchain.\n",
        "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver",
        "CUDA driver version is insufficient for CUDA runtime version",
        "Found no NVIDIA driver on your system.",
    ],
)
def test_a_gpu_that_torch_has_no_code_for_is_no_lost_worker(said):
    failure = fatal(torch.AcceleratorError(said), SPEC)
    assert type(failure) is RunError
    assert f"({said.splitlines()[0]}); install a CUDA build of torch that fits" in str(failure)
    assert "CUDA_VISIBLE_DEVICES" in str(failure)
    assert "\n" not in str(failure)


def test_what_a_kernel_asserts_is_a_fault_of_the_program_and_what_a_gpu_may_recover_from_is_none():
    asserted = fatal(torch.AcceleratorError("CUDA error: device-side assert triggered"), SPEC)
    assert "that is a fault of the program" in str(asserted)
    for passing in ("uncorrectable ECC error encountered", "all CUDA-capable devices are busy or unavailable"):
        assert fatal(torch.AcceleratorError(f"CUDA error: {passing}"), SPEC) is None


def test_an_actor_that_could_not_be_made_says_of_what(ray_cluster):
    @ray_cluster.remote(num_cpus=0)
    class Controller:
        def __init__(self):
            raise PermissionError("Access Denied")

        def run(self):
            pass

    with pytest.raises(ActorDiedError) as died:
        ray_cluster.get(Controller.remote().run.remote())
    assert cause_of_death(died.value) == " (PermissionError: Access Denied)"
    assert cause_of_death(ActorDiedError()) == ""


@pytest.mark.parametrize(
    "error",
    [
        StorageUnreachable("S3 is away"),
        StoreTimeout("a shard is away"),
        ActorDiedError(),
        ActorUnavailableError("away", b"x" * 16),
        GetTimeoutError("late"),
        WorkerCrashedError(),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        TimeoutError(errno.ETIMEDOUT, "timed out"),
        OSError(errno.EHOSTUNREACH, "No route to host"),
        requests.ConnectionError("away"),
        torch.distributed.DistBackendError("NCCL error: remote process exited"),
        torch.distributed.DistNetworkError("the client socket has timed out"),
        RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:11111"),
        RayTaskError("exchange", "traceback", StoreTimeout("a shard is away")),
    ],
)
def test_what_goes_with_a_peer_is_started_again(error):
    assert fatal(error, SPEC) is None


@pytest.mark.parametrize(
    "name", ["ENOSPC", "EACCES", "EROFS", "ESTALE", "EMFILE", "EIO", "ENOENT", "ENOTDIR", "EDQUOT"]
)
def test_an_error_of_a_file_is_that_error(name):
    number = getattr(errno, name)
    found = fatal(OSError(number, "why", "/cache/file"), SPEC)
    assert type(found) is StorageError
    assert str(found).startswith("/cache/file: why; ")
    wrapped = fatal(RayTaskError("exchange", "traceback", OSError(number, "why", "/cache/file")), SPEC)
    assert str(wrapped) == str(found)


@pytest.mark.parametrize("error", [UnidentifiedImageError("no image"), OSError("image file is truncated")])
def test_what_pillow_raises_is_an_error_of_a_file(error):
    assert str(error) in str(fatal(error, SPEC))
    assert type(fatal(error, SPEC)) is StorageError


def test_an_interface_that_is_not_there_is_named_by_its_variable():
    with pytest.raises(RuntimeError) as refused:
        torch.distributed.distributed_c10d.ProcessGroupGloo.create_device(interface="ib9")
    assert str(fatal(refused.value, SPEC)).startswith("GLOO_SOCKET_IFNAME: ib9 is no network interface of a worker's")


def test_what_is_ours_stays_as_it_is():
    for error in (DataError("row 3"), NonFiniteError("step 7"), StorageError("x: changed"), RunError("damaged")):
        assert fatal(error, SPEC) is error


def test_errors_of_the_program_come_out_with_their_place():
    errors = exceptions_of(builtins, pyarrow.lib)
    kinds = (ImportError, TypeError, LookupError, AttributeError, NameError, ValueError, AssertionError, SyntaxError)
    ends = [error for error in errors if isinstance(error, kinds) and not isinstance(error, OSError)]
    assert {type(error).__name__ for error in ends} >= {"ModuleNotFoundError", "UnicodeDecodeError", "ArrowInvalid"}
    for error in [*ends, NotImplementedError("yet")]:
        try:
            raise error
        except Exception as raised:
            found = fatal(raised, SPEC)
        assert type(found) is RunError
        assert re.match(rf"a worker failed at .*test_failures\.py:\d+: {type(error).__name__}: ", str(found))


def test_an_import_that_fails_within_ray_is_no_loss():
    within = {"__name__": "ray.actor"}
    for said, final in (("import emc2dist.nowhere", True), ("import os\nos.run", True), ("None.run", False)):
        with pytest.raises(Exception, match=r"attribute|No module") as raised:
            exec("exec(said, within)", {"__name__": "emc2dist.run", "said": said, "within": within})
        assert (fatal(raised.value, SPEC) is not None) == final, said


def refused_memory():
    """What torch really raises."""
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**50)
    return refused.value


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        refused_memory(),
    ],
)
def test_want_of_memory_names_what_takes_it(error):
    found = fatal(error, small_spec("batch_size=16", "views.size=8"))
    assert type(found) is RunError
    for words in ("out of memory: ", "batch_size (now 16)", "views.size (now 8)", "optimiser.accumulate (now 1)"):
        assert words in str(found)
    assert "encode_chunk (now None)" in str(found)


def test_what_ray_says_of_a_worker_that_could_not():
    killed = "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory."
    assert "data.loaders (now auto), batch_size (now" in str(fatal_text(killed, SPEC))
    missing = fatal_text("ModuleNotFoundError: No module named 'emc2dist'", SPEC)
    assert "every node must have the packages" in str(missing)
    for said in (
        "AttributeError: module 'profile' has no attribute 'run'",
        "AttributeError: partially initialized module 'queue' has no attribute 'Queue' (most likely ...)",
        "SyntaxError: invalid syntax (token.py, line 1)",
    ):
        assert f"a worker did not start: {said}; every node" in str(fatal_text(said, SPEC))
    assert fatal_text("AttributeError: 'NoneType' object has no attribute 'x'", SPEC) is None
    assert fatal_text("The actor died because of an error raised in its creation task", SPEC) is None


OUT_OF_MEMORY = """9 worker(s) were killed due to the node running low on memory. Memory on the node was 9GB / 9GB
Object store memory usage: [- objects spillable: 1
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io"""


def test_what_ray_says_of_memory_for_pages_is_one_line_wherever_it_comes(ray_cluster):
    def named(error):
        (line,) = str(error).splitlines()
        assert (
            "(9 worker(s) were killed due to the node running low on memory. Memory on the node was 9GB / 9GB)" in line
        )
        return [key for key in ("batch_size", "views.size", "optimiser.accumulate", "data.loaders") if key in line]

    traceback = f"Traceback (most recent call last):\nray.exceptions.OutOfMemoryError: {OUT_OF_MEMORY}"
    assert "OutOfMemoryError: 9 worker(s)" in str(fatal_text(traceback, SPEC))
    assert len(named(fatal_text(OUT_OF_MEMORY, SPEC))) == 4
    with pytest.raises(RunError) as told, cluster.connected(SPEC):
        raise OutOfMemoryError(OUT_OF_MEMORY)
    assert len(named(told.value)) == 4
    lost = StoreError(f"shard 0 was lost (OutOfMemoryError: {brief(OUT_OF_MEMORY)})")
    assert "lower data.loaders" in str(fatal_text(str(lost), SPEC))


@pytest.mark.slow
def test_a_run_that_rays_memory_monitor_ends_says_so_in_one_line(tmp_path, monkeypatch):
    """All of it: channel, controller, shards and workers, as any memory in use is too much here."""
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.001")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    (tmp_path / "small.yaml").write_text(f"{SMALL}run_dir: {tmp_path / 'runs'}\nthreads: 1\n")
    done = emc2dist("train", tmp_path / "small.yaml", "watch.port=0")
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if "authentication" not in line]
    assert said[-1].startswith("emc2dist: a node ran out of memory, and Ray ended what ran there (")
    assert "batch_size (now 8)" in said[-1]
    assert len(said) <= 3, said  # with the address of its metrics, and that it could not be watched for a while
    assert not (tmp_path / "runs" / "small" / "prometheus.json").exists()


def test_the_board_is_told_of_what_ends_the_run_alone():
    class Told(list):
        fail = list.append

    channel = Told()
    with pytest.raises(ConnectionError), _reported(channel, SPEC):
        raise ConnectionError("away")
    with pytest.raises(PermissionError), _reported(channel, SPEC):
        raise PermissionError(errno.EACCES, "Permission denied", "/cache")
    assert [str(error).split(";")[0] for error in channel] == ["/cache: Permission denied"]


@pytest.mark.skipif(psutil.virtual_memory().total > 2**35, reason="it may fit into this machine's memory")
def test_a_run_that_does_not_fit_into_memory_is_not_started_again(ray_cluster, tmp_path):
    (tmp_path / "small.yaml").write_text(f"{SMALL}run_dir: {tmp_path / 'runs'}\nthreads: 1\n")
    much = ("views.size=3200", "eval.every=0")  # 40 GiB for what the first convolution gives
    done = in_process("train", tmp_path / "small.yaml", *much, "restarts=3")
    assert done.returncode == 1, done.stderr
    # By torch; or where other tests hold much already, by Ray, which ends the worker before it asks for so much.
    assert re.search(r"out of memory: |a node ran out of memory, and Ray ended what ran", done.stderr.splitlines()[-1])
    assert "started again" not in done.stderr
    assert json.loads((tmp_path / "runs" / "small" / "versions.json").read_text())
