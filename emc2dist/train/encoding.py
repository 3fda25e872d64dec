"""From images to features and back: all images of a step at once, or a chunk of them after the other.

With `encode_chunk` a step encodes twice (GradCache: Gao, Zhang, Han & Callan 2021, arXiv:2101.06983). First without a
graph; what is contrasted is the whole batch, whatever fits. Then, once the loss's gradient by each feature is known,
chunk by chunk again with a graph, through which that gradient goes on to the parameters. That is the gradient of the
whole, for one more forward pass and the memory of one chunk, where an image's feature depends on no other image.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emc2dist.config.sections import Precision
from emc2dist.towers.encoder import running_statistics
from emc2dist.train import collectives, compilation


@dataclass(frozen=True)
class _Due:
    """Images that have features, and still to be encoded with a graph."""

    encode: Callable[[Tensor], Tensor]
    images: Tensor
    features: Tensor

    def again(self, chunk: slice) -> tuple[Tensor, Tensor]:
        """A chunk's features, encoded with a graph, and the loss's gradient by them."""
        gradient = self.features.grad
        if gradient is None:  # nothing was contrasted with them
            gradient = torch.zeros_like(self.features)
        return self.encode(self.images[chunk]), gradient[chunk]


class Encoding:
    """A model, maybe data-parallel, that encodes at most `chunk` images at a time; None: as many as there are.

    `compiled` says that its encoder is (`emc2dist.train.compilation`). Then each of the methods raises RunError where
    torch cannot compile it. `recorded` encodes a batch that is trained on in the model's stead
    (`emc2dist.train.graphs`).
    """

    def __init__(
        self,
        model: nn.Module,
        precision: Precision,
        chunk: int | None,
        *,
        compiled: bool = False,
        recorded: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._recorded = recorded
        self._model, self._encoder = model, collectives.unwrapped(model)
        self._precision, self._chunk, self._compiled = precision, chunk, compiled
        self._due: list[_Due] = []

    def of_batch(self, images: Tensor) -> Tensor:
        """Features [n, D] of images uint8 [n, 3, H, W] on the device, once a step; all ranks bring as many."""
        return self._features(self._encode, images)

    def of_others(self, images: Tensor) -> Tensor:
        """Features [m, D] of images that are not of the batch, of which every rank may have another number."""
        return self._features(self._encode_alone, images)

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient to the parameters'; with several ranks, their mean where they are reduced."""
        with self._explained():  # torch may leave the backward's code to the first one
            self._backward(loss)

    def _backward(self, loss: Tensor) -> None:
        loss.backward()
        due, self._due = self._due, []
        last = []
        with collectives.without_sync(self._model):
            for one in due:
                chunks = self._chunks(one.images)
                if one.encode == self._encode:
                    last.append((one, chunks.pop()))
                for chunk in chunks:
                    torch.autograd.backward(*one.again(chunk))
        if last:
            # A chunk of each side of the batch, together: the backward that reduces has to reach all towers.
            features, gradients = zip(*(one.again(chunk) for one, chunk in last), strict=True)
            torch.autograd.backward(features, gradients)

    def _features(self, encode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        if self._chunk is None:
            return encode(images)
        with torch.no_grad():
            features = torch.cat([self._encode_alone(images[chunk]) for chunk in self._chunks(images)])
        if torch.is_grad_enabled():
            self._due.append(_Due(encode, images, features.requires_grad_()))
        return features

    def _chunks(self, images: Tensor) -> list[slice]:
        size = self._chunk or len(images)
        return [slice(first, first + size) for first in range(0, len(images), size)]

    def _encode(self, images: Tensor) -> Tensor:
        if self._recorded is not None and torch.is_grad_enabled():
            return self._recorded(images)
        with self._autocast(images.device), self._explained():
            return self._model(images)

    def _encode_alone(self, images: Tensor) -> Tensor:
        # Past DDP's wrapper: the parameters already took part in this step's forward, and a rank may have nothing to
        # encode again. A handful of negatives has no batch statistics of its own, hence the running ones.
        with running_statistics(self._encoder), self._autocast(images.device), self._explained():
            return compilation.of_any_number(self._encoder, images) if self._compiled else self._encoder(images)

    def _explained(self) -> AbstractContextManager[object]:
        return compilation.explained() if self._compiled else nullcontext()

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        if self._precision == "bf16":
            return torch.autocast(device.type, torch.bfloat16)
        return nullcontext()
