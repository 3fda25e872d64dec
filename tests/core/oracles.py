"""Every objective by explicit loops, as its paper writes it, over all samples of `z` [V, N, D].

`closed(z, v, i, w, j)` says whether view w of sample j is closed to view v of sample i.
"""

import math

import torch


def _positives(z):
    """[V][N]: the mean cosine of each anchor with its sample's other views."""
    views, samples, _ = z.shape
    return [
        [sum(z[v, i] @ z[w, i] for w in range(views) if w != v) / (views - 1) for i in range(samples)]
        for v in range(views)
    ]


def nothing(z, v, i, w, j):
    return False


def closed_by(ceiling=None, *columns):
    """As of `emc2dist.core.closing`."""

    def closed(z, v, i, w, j):
        near = max(0, _positives(z)[v][i])
        too_near = ceiling is not None and z[v, i] @ z[w, j] > ceiling * near
        return too_near or any(column[i] == column[j] >= 0 for column in columns)

    return closed


def _negatives(z, v, i, temperature, closed):
    """Scores [n] of the views of other samples that are open."""
    views, samples, _ = z.shape
    others = [(w, j) for j in range(samples) if j != i for w in range(views)]
    scores = [z[v, i] @ z[w, j] / temperature for w, j in others if not closed(z, v, i, w, j)]
    return torch.stack(scores) if scores else z.new_zeros(0)


def _repulsion(negatives):
    """log Z; where all candidates are closed nothing is repelled."""
    return negatives.logsumexp(0) if len(negatives) else 0


def dcl(z, temperature, closed=nothing):
    views, samples, _ = z.shape
    near = _positives(z)
    total = 0
    for v in range(views):
        for i in range(samples):
            repulsion = _repulsion(_negatives(z, v, i, temperature, closed))
            total = total - near[v][i] / temperature + repulsion
    return total / (views * samples)


def dclw(z, temperature, closed=nothing, sigma=0.5):
    views, samples, _ = z.shape
    near = _positives(z)
    total = 0
    for v in range(views):
        mean = sum((near[v][i].detach() / sigma).exp() for i in range(samples)) / samples
        for i in range(samples):
            weight = 2 - (near[v][i].detach() / sigma).exp() / mean
            repulsion = _repulsion(_negatives(z, v, i, temperature, closed))
            total = total - weight * near[v][i] / temperature + repulsion
    return total / (views * samples)


def infonce(z, temperature, closed=nothing):
    views, samples, _ = z.shape
    near = _positives(z)
    total = 0
    for v in range(views):
        for i in range(samples):
            positive = (near[v][i] / temperature).reshape(1)
            negatives = _negatives(z, v, i, temperature, closed)
            total = total - positive[0] + torch.cat([positive, negatives]).logsumexp(0)
    return total / (views * samples)


def nnclr(z, temperature, closed=nothing, cached=()):
    """`cached`: (sample, feature) of a support set; where there is none a view's neighbour is the view itself."""
    views, samples, _ = z.shape
    total = 0
    for v in range(views):
        for i in range(samples):
            other = z[(v + 1) % views, i].detach()
            rows = [(other @ feature, j, feature) for j, feature in cached if j != i]
            _, near, neighbour = max(rows, key=lambda row: row[0]) if rows else (None, i, other)
            pair = z.clone()
            pair[(v + 1) % views, i] = neighbour  # as if it were the sample's next view
            two = torch.stack([pair[(v + 1) % views], z[v]])
            scores = [
                neighbour @ z[v, j] / temperature
                for j in range(samples)
                if j not in (i, near) and not closed(two, 0, i, 1, j)
            ]
            positive = neighbour @ z[v, i] / temperature
            total = total - positive + torch.stack([positive, *scores]).logsumexp(0)
    return total / (views * samples)


def rgcl(z, temperature, closed=nothing, rho=0.4):
    """`temperature`: of all anchors, or [V, N]."""
    views, samples, _ = z.shape
    near, total = _positives(z), 0
    for v in range(views):
        for i in range(samples):
            tau = temperature if isinstance(temperature, float) else temperature[v, i]
            mean = _repulsion(_negatives(z, v, i, tau, closed)) - math.log(views * (samples - 1))
            total = total + tau * (mean + rho) - near[v][i]
    return total / (views * samples)


ORACLES = {"dcl": dcl, "dclw": dclw, "infonce": infonce, "nnclr": nnclr, "rgcl": rgcl}
