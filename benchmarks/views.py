"""What may a carried view stand for? A study of `isir` by itself, over digits in 20 views (docs/algorithm.md).

    python benchmarks/views.py                       # B = 16, temperature 0.07; some seconds
    python benchmarks/views.py --batch-size 64 --steps 1500

Fresh views of anchors and candidates at every visit, V = 2. For each way to see what a chain carries: the bias of the
mean gradient (without what noise explains) over the length of the exact one, by a shift of each image's feature.

    none        nothing is carried: in-batch softmax
    redrawn     a fresh view of the carried sample, counted V times
    alone       the view that it was drawn with, counted V times            (`carried: reencode`)
    once        the same, counted once: a pool of views, not of samples
    pools       V pools, of one view of each sample and the carried one
    completed   the same, and V - 1 fresh views of its sample beside it      (`carried: complete`)
    mixture     completed, weighed by the batch's density and the last anchor's target (its feature, its log Z)
"""

import argparse
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]
from sklearn.datasets import load_digits

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
WAYS = ("none", "redrawn", "alone", "once", "pools", "completed", "mixture")
V, BLOCKS = 2, 20


def features(samples: int, views: int, seed: int = 0) -> Array:
    """[views, samples, 64] unit-norm: centred pixels of digits, turned by up to 6 degrees, shifted by 0.4 pixels."""
    draw = np.random.default_rng(seed)
    images = load_digits().images[draw.permutation(1797)[:samples]]
    turned = [
        [
            ndimage.shift(
                ndimage.rotate(x, draw.uniform(-6, 6), reshape=False, order=1), draw.uniform(-0.4, 0.4, 2), order=1
            )
            for x in images
        ]
        for _ in range(views)
    ]
    pixels = np.stack(turned).reshape(views, samples, 64)
    pixels -= pixels.mean((0, 1))
    return pixels / np.linalg.norm(pixels, axis=-1, keepdims=True)


def exact(z: Array, temperature: float) -> Array:
    """[N, D]: the gradient of the loss over all views of all samples."""
    views, samples, width = z.shape
    gradient, every = np.zeros((samples, width)), z.sum(0)
    for own in z:
        scores = np.einsum("mcd,ad->mca", z, own) / temperature
        scores[:, np.arange(samples), np.arange(samples)] = -np.inf
        weights = np.exp(scores - scores.max((0, 1)))
        weights /= weights.sum((0, 1))
        gradient += np.einsum("mca,mcd->ad", weights, z) + np.einsum("mca,ad->cd", weights, own)
        gradient -= 2 * (every - own) / (views - 1)
    return gradient / (temperature * views * samples)


@dataclass
class Chains:
    """What is remembered of each sample's V anchors."""

    state: Ints
    """[N, V]; -1: none."""
    view: Ints
    """[N, V]"""
    anchor: Array
    """[N, V, D], of the last visit."""
    log_z: Array
    """[N, V], of the last visit's pool, mean over its places."""

    @classmethod
    def of(cls, samples: int, width: int) -> "Chains":
        """None visited."""
        none = np.full((samples, V), -1)
        return cls(none, none.copy(), np.zeros((samples, V, width)), np.zeros((samples, V)))


def visit(z: Array, temperature: float, size: int, way: str, chains: Chains, draw: np.random.Generator) -> Array:
    """[N, D]: the gradient of one step, and the chains gone on."""
    stored, samples, width = z.shape
    index = draw.permutation(samples)[:size]
    views = np.argsort(draw.random((size, stored)), 1)[:, :V].T
    keys = z[views, index]
    anchors, sample, slot = keys.reshape(V * size, width), np.tile(index, V), np.repeat(np.arange(V), size)
    state, kept = chains.state[sample, slot], chains.view[sample, slot]
    visited = (state >= 0) & (way != "none")
    block = np.stack([kept, kept])
    if way == "redrawn":
        block[:] = draw.integers(stored, size=len(sample))
    if way in ("completed", "mixture"):
        others = np.argsort(draw.random((len(sample), stored)), 1)[:, :2]
        block[1] = np.where(others[:, 0] == kept, others[:, 1], others[:, 0])
    carried = z[block, np.maximum(state, 0)]

    scores = np.einsum("ad,vcd->vac", anchors, keys) / temperature
    scores[:, (index == sample[:, None]) | (index == np.where(visited, state, -1)[:, None])] = -np.inf
    last = np.where(visited, np.einsum("ad,vad->va", anchors, carried) / temperature, -np.inf)
    if way == "once":
        last[1] = -np.inf
    scores = np.concatenate([scores, last[:, :, None]], 2)
    if way == "mixture":
        before, log_z = chains.anchor[sample, slot], chains.log_z[sample, slot]
        old = np.concatenate(
            [np.einsum("ad,vcd->vac", before, keys), np.einsum("ad,vad->va", before, carried)[:, :, None]], 2
        )
        density = np.where(visited[:, None], np.exp(old / temperature - log_z[:, None]), 0)
        scores = scores - np.log(V * (size - 1) + density)
    over = 2 if way == "pools" else (0, 2)
    top = scores.max(over, keepdims=True)
    weights = np.exp(scores - top)
    total = weights.sum(over, keepdims=True)
    weights = weights / total / (V if way == "pools" else 1)

    gradient, scale = np.zeros((samples, width)), 1 / (V * size * temperature)
    batch, rest = weights[:, :, :size], weights[:, :, size]
    pulled = keys.sum(0) - keys
    push = np.einsum("vac,vcd->ad", batch, keys) + np.einsum("va,vad->ad", rest, carried)
    np.add.at(gradient, sample, scale * push)
    gradient[index] += scale * np.einsum("vac,ad->cd", batch, anchors) - 2 * scale * pulled.sum(0)
    np.add.at(gradient, np.maximum(state, 0), scale * (rest.sum(0) * visited)[:, None] * anchors)

    column = (weights.sum(0).cumsum(1) > draw.random(len(sample))[:, None]).argmax(1)
    within = weights[:, np.arange(len(sample)), column]
    which = ((within / within.sum(0)).cumsum(0) > draw.random(len(sample))).argmax(0)
    inside, place = column < size, np.minimum(column, size - 1)
    chains.state[sample, slot] = np.where(inside, index[place], state)
    picked = np.where(inside, views[:, place], block)
    chains.view[sample, slot] = picked[which, np.arange(len(sample))]
    if way == "mixture":
        chains.anchor[sample, slot], chains.log_z[sample, slot] = anchors, (top + np.log(total))[0, :, 0]
    return gradient


def bias(z: Array, temperature: float, size: int, way: str, steps: int) -> float:
    """Of the mean gradient of the last 5/6 of the steps, without what the scatter of block means explains."""
    truth, chains, draw = exact(z, temperature), Chains.of(*z.shape[1:]), np.random.default_rng(0)
    length = steps * 5 // 6 // BLOCKS
    means = np.zeros((BLOCKS, *truth.shape))
    for t in range(steps):
        gradient, kept = visit(z, temperature, size, way, chains, draw), t - (steps - BLOCKS * length)
        if kept >= 0:
            means[kept // length] += gradient / length
    noise = ((means - means.mean(0)) ** 2).sum() / (BLOCKS - 1) / BLOCKS
    return float(max(((means.mean(0) - truth) ** 2).sum() - noise, 0) ** 0.5 / (truth**2).sum() ** 0.5)


def main() -> None:
    """Print the bias of each way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=0.07)
    parser.add_argument("--steps", type=int, default=3000)
    args = parser.parse_args()
    z = features(200, 20)
    for way in WAYS:
        print(f"{way:10} {bias(z, args.temperature, args.batch_size, way, args.steps):.2f}", flush=True)


if __name__ == "__main__":
    main()
