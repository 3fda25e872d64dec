"""The encoder of training as code that `torch.compile` makes of it (`compile: true`).

    a batch, or a chunk of it      for its number of images, which is the same in every step
    encoded again, or drawn        once for any number of images, which differs from step to step

Evaluation, and what is not in training, goes by torch's own operators. Nothing falls back to them without a word: the
whole of the encoder is one graph, and what cannot be compiled, or would be compiled anew too often, ends the run.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from emc2dist.errors import RunError
from emc2dist.terminal import brief

BACKEND = "inductor"


def compile_encoder(encoder: nn.Module) -> None:
    """Have calls of the encoder compiled, when the first ones come; names of parameters stay what they are."""
    # Sizes that differ are marked (`of_any_number`); torch's own guess would compile once more to find that out.
    encoder.compile(backend=BACKEND, fullgraph=True, dynamic=False)


def of_any_number(encoder: nn.Module, images: Tensor) -> Tensor:
    """What the compiled encoder makes of images [n >= 1, ...], by code that serves any n."""
    count = len(images)
    if count == 1:  # of which torch would make code of its own
        images = images.repeat(2, *[1] * (images.ndim - 1))
    torch._dynamo.mark_dynamic(images, 0)
    return encoder(images)[:count]


@contextmanager
def explained() -> Iterator[None]:
    """Turn what torch raises where it cannot compile into an error that names the key.

    Raises:
        RunError: as there is no C++ compiler, or no Triton for a GPU; or code would be made without end.
    """
    # Here: they take a second to load.
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    try:
        yield
    except FailOnRecompileLimitHit as error:
        raise RunError(
            f"compile: true, but torch makes code for the encoder again and again ({brief(error)}); leave compile out"
        ) from error
    except (TorchDynamoException, CppCompileError, InvalidCxxCompiler) as error:
        cause = getattr(error, "inner_exception", error)
        raise RunError(
            f"compile: true, but torch cannot compile the encoder here ({type(cause).__name__}: {brief(cause)}); it "
            "needs a C++ compiler (CXX names one), and for a GPU Triton and a C compiler (CC) too: install them, or "
            "leave compile out"
        ) from error
