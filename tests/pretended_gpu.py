"""A pretended GPU, for a machine that has none: real numbers under another device's name.

    with pretended_gpu() as waits:
        features = images.to(GPU)

A tensor on it wraps one on the CPU, so what depends on data goes as it would on a GPU. Wherever a real one would make
the host wait, `waits` gets a line: what waited, and the file and line that had it wait. Operations that mix devices
where CUDA would refuse to raise, and a copy to the host that nobody has waited for holds garbage. Another thread may
wait for an event, which does not count: it gives the GPU no work.

The device is torch's `meta`, because autograd then goes backward in the thread that asked for it.
"""

import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("meta")
_GARBAGE = 0x55
_WAITING = {  # operators whose outcome, or its shape, the host has to know
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal", "isin",
    "bincount", "is_nonzero", "_linalg_svd", "linalg_svdvals", "argwhere",
}  # fmt: skip
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


@contextmanager
def pretended_gpu() -> Iterator[list[str]]:
    """Inside, `GPU` can be used; the list grows by every wait of the host."""
    gpu = _Gpu()
    pinning = mock.patch.object(torch.Tensor, "pin_memory", lambda tensor: gpu.pin(tensor))
    events = mock.patch.object(torch.cuda, "Event", partial(_Event, gpu))
    with pinning, events, _Operators(gpu), _Factories():
        yield gpu.waits


class _Gpu:
    """The one that there is, and what is on its way from it."""

    def __init__(self) -> None:
        self.waits: list[str] = []
        self._thread = threading.current_thread()
        self.pinned: list[Tensor] = []
        self.copies: list[tuple[Tensor, Tensor]] = []

    def wait(self, what: str) -> None:
        if threading.current_thread() is self._thread:
            self.waits.append(f"{what}, {_place()}")

    def pin(self, tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        self.pinned.append(copy)
        return copy

    def is_pinned(self, tensor: Tensor) -> bool:
        return any(tensor is pinned for pinned in self.pinned)

    def run(self, function, arguments, options):
        """One operator of torch, as a GPU would run it."""
        name = function._schema.name.removeprefix("aten::")
        tensors = [x for x in tree_leaves((arguments, options)) if isinstance(x, Tensor)]
        here, there = ([x for x in tensors if isinstance(x, _Tensor) is side] for side in (True, False))
        target = options.get("device")
        if not here and (target is None or torch.device(target) != GPU):
            return function(*arguments, **options)
        if name == "_to_copy" and target is not None and torch.device(target).type == "cpu":
            return self._to_host(function(*tree_map(_real, arguments), **options), options)
        if name == "_to_copy" and there:
            return self._to_gpu(function(*arguments, **{**options, "device": "cpu"}), there[0], options)
        self._check(name, function, here, there)
        if name in _WAITING:
            self.wait(name)
        if name in _INDEXING and any(x is not None and x.dtype == torch.bool for x in arguments[1]):
            self.wait(f"{name} by a mask")
        if name == "repeat_interleave" and options.get("output_size") is None:
            self.wait(name)
        options_here = {**tree_map(_real, options), **({"device": "cpu"} if target is not None else {})}
        outcome = tree_map(_pretended, function(*tree_map(_real, arguments), **options_here))
        return return_and_correct_aliasing(function, arguments, options, outcome) if here else outcome

    def _to_host(self, copy: Tensor, options) -> Tensor:
        if not options.get("non_blocking"):
            if copy.numel():
                self.wait("copy to the host")
            return copy
        self.copies.append((copy, copy.clone()))
        copy.untyped_storage().fill_(_GARBAGE)
        return copy

    def _to_gpu(self, copy: Tensor, source: Tensor, options) -> Tensor:
        if source.numel() and not (self.is_pinned(source) and options.get("non_blocking")):
            self.wait("copy to the GPU of memory that is not pinned")
        return _pretended(copy.clone())

    def _check(self, name, function, here, there) -> None:
        if not here or not there:
            return
        numbers = all(x.ndim == 0 for x in there)  # CUDA takes numbers along; and indices, which it waits for
        if name == "copy_" or (name in _INDEXING and not numbers):
            self.wait(f"{name} from the CPU")
        elif not numbers:
            raise RuntimeError(f"CUDA would refuse {function}: tensors on both devices, {_place()}")


class _Event:
    """Of `torch.cuda.Event`, what is used: once it was waited for, what was copied before it is here."""

    def __init__(self, gpu: _Gpu) -> None:
        self._gpu = gpu
        self._copies: list[tuple[Tensor, Tensor]] = []

    def record(self) -> None:
        self._copies, self._gpu.copies = self._gpu.copies, []

    def synchronize(self) -> None:
        self._gpu.wait("event")
        for copy, content in self._copies:
            copy.copy_(content)


class _Tensor(torch.Tensor):
    """A tensor on the pretended GPU; `content` holds its numbers."""

    content: Tensor

    @staticmethod
    def __new__(cls, content):
        layout = {"strides": content.stride(), "storage_offset": content.storage_offset()}
        self = torch.Tensor._make_wrapper_subclass(cls, content.size(), dtype=content.dtype, device=GPU, **layout)
        self.content = content
        return self

    def __repr__(self):
        return f"on the pretended GPU: {self.content}"

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        raise RuntimeError(f"{function} on the pretended GPU, outside `pretended_gpu()`")


class _Operators(TorchDispatchMode):
    def __init__(self, gpu: _Gpu) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        return self._gpu.run(function, arguments, options or {})


class _Factories(TorchFunctionMode):
    """`torch.tensor` and `torch.as_tensor` with a device: copies from the host, which no operator shows."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = dict(options or {})
        if function not in (torch.tensor, torch.as_tensor):
            return function(*arguments, **options)
        if isinstance(arguments[0], _Tensor):
            return arguments[0].to(options.get("dtype") or arguments[0].dtype)
        device = options.pop("device", None)
        made = function(*arguments, **options)
        return made if device is None else made.to(device)


def _real(value):
    return value.content if isinstance(value, _Tensor) else value


def _pretended(value):
    return _Tensor(value) if isinstance(value, Tensor) and not isinstance(value, _Tensor) else value


def _place() -> str:
    """File and line of the package that is being run."""
    for frame in reversed(traceback.extract_stack()):
        if "/emc2dist/" in frame.filename and "/tests/" not in frame.filename:
            return f"{frame.filename.rsplit('/emc2dist/', 1)[1]}:{frame.lineno}: {frame.line}"
    return "elsewhere"
