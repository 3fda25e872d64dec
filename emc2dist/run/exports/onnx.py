"""The whole encoder of images as ONNX: pixels in, normalised within, representation and feature out.

    images uint8 [n, 3, size, size], RGB  ->  representation float32 [n, R], feature float32 [n, D], |feature| = 1

Before the file is written it is run by onnxruntime and compared with the encoder. `pip install 'emc2dist[onnx]'`.
"""

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from emc2dist import files
from emc2dist.errors import RunError, SpecError
from emc2dist.files import Place
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.run.packages import installed
from emc2dist.run.scratch import temporary
from emc2dist.terminal import brief, say
from emc2dist.towers.encoder import Tower

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_COMPARED = 3  # images; other than the file is made with, so that their number is seen to be free
_TOLERANCE = 1e-3  # of a feature, whose norm is 1; and of a representation, of its largest value


class _Both(nn.Module):
    """Both outputs of a tower."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = tower

    @override
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        representation = self.tower.representation(images)
        return representation, self.tower.feature(representation)


def refuse_unwritable() -> None:
    """Raise SpecError where a package is missing."""
    missing = [name for name in _PACKAGES if not installed(name)]
    if missing:
        raise SpecError(f"--format onnx: needs {', '.join(missing)}; pip install 'emc2dist[onnx]'")


@torch.no_grad()
def write(newest: LoadedCheckpoint, place: Place) -> dict[str, Any]:
    """Write it to a file; returns the names and sizes of input and outputs, and how far off it was.

    Raises:
        RunError: torch cannot make ONNX of this backbone, or what it made gives other numbers.
    """
    tower, size = newest.tower("image").cpu(), newest.spec.views.size
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with temporary("emc2-onnx-") as scratch, files.explained(scratch):
        draft = Path(scratch) / "encoder.onnx"
        _made(tower, images).save(draft, external_data=False)
        off = _compared(draft, tower, images)
        place.put(draft)
    say(f"run by onnxruntime it is {off:.1e} off the encoder at most")
    outputs = {"representation": newest.tower("image").width, "feature": newest.encoder.features}
    return {"input": f"images uint8 [n, 3, {size}, {size}]", **outputs, "off": off, "remarks": []}


def _made(tower: Tower, images: Tensor) -> Any:
    """torch's program of the tower, of any number of images."""
    told = io.StringIO()  # it tells each of its steps on stdout
    try:
        with contextlib.redirect_stdout(told), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                _Both(tower), (images,), dynamo=True, input_names=["images"],
                output_names=["representation", "feature"], dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            )  # fmt: skip
    except Exception as error:  # of torch's many parts that take part
        raise RunError(
            f"--format onnx: torch makes none of this backbone ({brief(error)}); export safetensors"
        ) from error


def _compared(draft: Path, tower: Tower, images: Tensor) -> float:
    """The largest difference of what a file gives, by the largest value of each output. Raises RunError."""
    import onnxruntime

    others = images.flip(0).repeat(2, 1, 1, 1)[:_COMPARED]
    session = onnxruntime.InferenceSession(str(draft), providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": others.numpy()})
    wanted = _Both(tower)(others)
    off = max(
        float((torch.from_numpy(one) - other).abs().max() / other.abs().max())
        for one, other in zip(found, wanted, strict=True)
    )
    if not off < _TOLERANCE:
        raise RunError(f"--format onnx: what torch made gives numbers that are {off:.1e} off; export safetensors")
    return off
