"""Every objective by explicit loops, as its paper writes it, over all samples of `z` [V, N, D]."""

import torch


def _positives(z):
    """[V][N]: the mean cosine of each anchor with its sample's other views."""
    views, samples, _ = z.shape
    return [
        [sum(z[v, i] @ z[w, i] for w in range(views) if w != v) / (views - 1) for i in range(samples)]
        for v in range(views)
    ]


def _negatives(z, v, i, temperature):
    views, samples, _ = z.shape
    return torch.stack([z[v, i] @ z[w, j] / temperature for j in range(samples) if j != i for w in range(views)])


def dcl(z, temperature):
    views, samples, _ = z.shape
    near = _positives(z)
    total = 0
    for v in range(views):
        for i in range(samples):
            total = total - near[v][i] / temperature + _negatives(z, v, i, temperature).logsumexp(0)
    return total / (views * samples)


def dclw(z, temperature, sigma=0.5):
    views, samples, _ = z.shape
    near = _positives(z)
    total = 0
    for v in range(views):
        mean = sum((near[v][i].detach() / sigma).exp() for i in range(samples)) / samples
        for i in range(samples):
            weight = 2 - (near[v][i].detach() / sigma).exp() / mean
            total = total - weight * near[v][i] / temperature + _negatives(z, v, i, temperature).logsumexp(0)
    return total / (views * samples)


def infonce(z, temperature):
    views, samples, _ = z.shape
    near = _positives(z)
    total = 0
    for v in range(views):
        for i in range(samples):
            positive = (near[v][i] / temperature).reshape(1)
            total = total - positive[0] + torch.cat([positive, _negatives(z, v, i, temperature)]).logsumexp(0)
    return total / (views * samples)


ORACLES = {"dcl": dcl, "dclw": dclw, "infonce": infonce}
