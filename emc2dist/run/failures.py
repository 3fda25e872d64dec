"""Failures: those that a new attempt may mend, and those that would only come again.

Who is lost with a peer, a node or a connection raises RayError, RuntimeError (torch.distributed: NCCL and gloo), or an
OSError of a network: those may pass. An OSError of a file, want of memory, and errors of the program or of a package do
not: they end the run, as one of ours, with the message that a person needs.
"""

import errno
import re
import traceback

import emc2dist.run.cluster  # noqa: F401  before ray: sets its defaults

from ray.exceptions import OutOfMemoryError, RayError, RayTaskError  # isort: skip
from ray.train.v2._internal.exceptions import RayTrainError

from emc2dist.config import Spec
from emc2dist.errors import Emc2Error, RunError, StorageError, StorageUnreachable, StoreError
from emc2dist.files import explained
from emc2dist.machine import out_of_memory, unusable_gpu
from emc2dist.terminal import brief

_KILLED = re.compile(r"OutOfMemoryError|running low on memory|memory monitor", re.IGNORECASE)
_IMPORT = re.compile(
    r"\b(ModuleNotFoundError|ImportError|SyntaxError|IndentationError): "
    r"|\bAttributeError: (partially initialized )?module '[\w.]+' has no attribute "
)
_ASSERTED = "device-side assert triggered"
_NO_INTERFACE = re.compile(r"Unable to find address for: (\S+)")  # gloo's words
_NETWORK = {
    getattr(errno, name)
    for name in ("ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN", "EHOSTUNREACH", "EADDRINUSE", "EADDRNOTAVAIL")
} | {errno.EAGAIN, errno.EINTR, errno.ENOTCONN, errno.ENOBUFS}


def fatal(error: BaseException, spec: Spec) -> Emc2Error | None:
    """An error that a worker raised, as the one of ours that ends the run; None where starting again may help."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    if isinstance(error, Emc2Error):
        return None if isinstance(error, StorageUnreachable | StoreError) else error
    if name := _NO_INTERFACE.search(str(error)):
        return RunError(
            f"GLOO_SOCKET_IFNAME: {name.group(1)} is no network interface of a worker's machine; unset it, or name one "
            "that each has (`ip addr` lists them)"
        )
    if isinstance(error, RuntimeError) and unusable_gpu(str(error)):
        return RunError(_without_gpu(brief(error)))
    if _is_memory(error):
        return RunError(_too_large(" ".join(str(error).split())[:300] or type(error).__name__, spec))
    if isinstance(error, OSError):
        return _of_files(error)
    if not isinstance(error, Exception) or _may_pass(error):
        return None
    return RunError(
        f"a worker failed{_place(error)}: {type(error).__name__}: {error}; that is a fault of the program or of a "
        "package, and would come again"
    )


def fatal_text(text: str, spec: Spec) -> RunError | None:
    """The same for what Ray says of a worker, or of what works for it, that could say nothing itself."""
    text = gist(text)
    if _KILLED.search(text):
        return RunError(
            f"a node ran out of memory, and Ray ended what ran there ({text}); lower data.loaders (now "
            f"{spec.data.loaders}), batch_size (now {spec.batch_size}) or views.size (now {spec.views.size}), raise "
            f"optimiser.accumulate (now {spec.optimiser.accumulate}), which divides a batch, or resources.worker_cpus "
            "so that fewer workers share a node, or use larger nodes"
        )
    if _IMPORT.search(text):
        return RunError(
            f"a worker did not start: {text}; every node must have the packages that this machine has, and no file or "
            "folder of the same name as one of Python's or of theirs may stand before them"
        )
    return RunError(_without_gpu(text)) if unusable_gpu(text) else None


def cause_of_death(error: RayError) -> str:
    """Of an actor: what it raised when it was made, in brackets; empty where that is not what ended it."""
    return f" ({gist(str(error))})" if getattr(error, "actor_init_failed", False) else ""


def gist(text: str) -> str:
    """Of a traceback: what was raised, in a line. What Ray says of memory goes on for pages after it."""
    lines = text.strip().splitlines() or [""]
    return brief(next((line for line in lines if _KILLED.search(line)), lines[-1]))


def _without_gpu(said: str) -> str:
    return (
        f"a worker has a GPU by Ray's count, and a torch that cannot use it ({said}); install a CUDA build of torch "
        "that fits the GPU and its driver on every node, choose other GPUs (CUDA_VISIBLE_DEVICES, "
        "resources.accelerator), or give device=cpu"
    )


def _too_large(said: str, spec: Spec) -> str:
    return (
        f"out of memory: {said}; give an encode_chunk (now {spec.encode_chunk}), images encoded at a time, or a lower "
        f"one; or lower batch_size (now {spec.batch_size}) or views.size (now {spec.views.size}), raise "
        f"optimiser.accumulate (now {spec.optimiser.accumulate}), which divides a batch, use more workers, or keep no "
        f"pixels on a GPU (data.on_device=false, now {spec.data.on_device})"
    )


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError) and out_of_memory(str(error))  # torch's are RuntimeErrors


def _of_files(error: OSError) -> StorageError | None:
    """An error of a file or of a disk; None for one of a connection."""
    of_network = error.errno in _NETWORK if error.errno else _is_of_clients(error)
    if isinstance(error, ConnectionError | TimeoutError) or of_network:
        return None
    try:
        with explained(error.filename or f"a file of a worker{_place(error)}"):
            raise error
    except StorageError as ours:
        return ours


def _place(error: BaseException) -> str:
    """The place where it was raised, as far as it has come here with its frames."""
    frames = traceback.extract_tb(error.__traceback__)[-1:]
    return f" at {frames[0].filename}:{frames[0].lineno}" if frames else ""


def _is_of_clients(error: OSError) -> bool:
    """Whether an error without a number is one of a client of HTTP: those of pyarrow and Pillow are not."""
    return not (type(error) is OSError or type(error).__module__.startswith("PIL"))


def _may_pass(error: Exception) -> bool:
    if isinstance(error, RayError | RayTrainError | EOFError):
        return not isinstance(error, OutOfMemoryError)
    if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError | RecursionError):
        return _ASSERTED not in str(error)  # by a kernel, of an index for instance: the same again
    if _IMPORT.match(f"{type(error).__name__}: {error}"):
        return False
    # What we ask of Ray fails in many ways while it is taken down around us.
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    below = len(modules) - next((i for i, name in enumerate(reversed(modules)) if name.startswith("emc2dist")), 0)
    return modules[below : below + 1] != [] and modules[below].startswith("ray.")
