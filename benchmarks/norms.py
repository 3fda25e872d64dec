"""How fast is group norm of bf16 on a GPU? Ours in either layout, torch's, and batch norm; forward and backward.

    python -m benchmarks.norms

Milliseconds by the device's clock, medians, of layers of a ResNet-50 at 224 pixels, 128 images with two views.
"""

import torch
from torch import nn

from benchmarks.sweep import by_events
from emc2dist.towers.norms import GroupNorm

LAYERS = ((64, 112), (256, 56), (512, 28), (1024, 14), (2048, 7))
"""Channels, and the side of their images."""
IMAGES = 256


def milliseconds(layer: nn.Module, given: torch.Tensor) -> float:
    """Of a forward and a backward pass."""
    given = given.detach().requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        pull = torch.ones_like(layer(given))

    def work() -> None:
        given.grad = None
        with torch.autocast("cuda", torch.bfloat16):
            made = layer(given)
        made.backward(pull)

    return by_events(work, repeats=10)


def main() -> None:
    """Print the table."""
    device = torch.device("cuda")
    print("| channels, side | GB | ours | ours, channels last | torch's | batch norm, channels last |")
    print("|---|---|---|---|---|---|")
    for channels, side in LAYERS:
        given = torch.randn(IMAGES, channels, side, side, device=device, dtype=torch.bfloat16)
        last = given.to(memory_format=torch.channels_last)
        ours, theirs = GroupNorm(32, channels).to(device), nn.GroupNorm(32, channels).to(device)
        batch = nn.BatchNorm2d(channels).to(device)
        cases = [(ours, given), (ours, last), (theirs, given), (batch, last)]
        cells = " | ".join(f"{milliseconds(*case):.3f}" for case in cases)
        print(f"| {channels}, {side} | {2 * given.numel() / 1e9:.2f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
