"""Every objective by explicit loops, as its paper writes it, over all samples of `z` [V, N, D].

`closed(z, v, i, w, j)` says whether view w of sample j is closed to view v of sample i.
"""

import math

import torch

LABEL = torch.tensor([0, 1, 0, -1, 1, -1, 2, 2] * 3)
TWINS = torch.tensor([-1, -1, 7, -1, -1, 7, -1, -1] * 3)
COLUMNS = {"label": LABEL, "target": LABEL, "duplicates": TWINS}
"""What is known of the samples of every test, where an objective or a closing asks for it."""


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


def supcon(z, temperature, closed=nothing, decoupled=False):
    views, samples, _ = z.shape
    total = 0
    for v in range(views):
        for i in range(samples):
            others = [(w, j) for j in range(samples) for w in range(views) if (w, j) != (v, i)]
            positives = [(w, j) for w, j in others if j == i or LABEL[i] == LABEL[j] >= 0]
            own = [z[v, i] @ z[w, i] / temperature for w in range(views) if w != v]
            negatives = _negatives(z, v, i, temperature, closed)
            among = negatives if decoupled else torch.cat([torch.stack(own), negatives])
            total = total - sum(z[v, i] @ z[w, j] / temperature for w, j in positives) / len(positives)
            total = total + _repulsion(among)
    return total / (views * samples)


def supremix(z, temperature, closed=nothing, window=5, beta=(2, 8), label=LABEL):
    """With the mean share of the anchor in its mixed negatives."""
    views, samples, _ = z.shape
    share, everyone = beta[0] / sum(beta), [(w, j) for j in range(samples) for w in range(views)]
    t = [int(one) for one in label[:samples]]

    def far(i, j):
        return abs(t[i] - t[j]) if min(t[i], t[j]) >= 0 else 0

    total = 0
    for v in range(views):
        for i in range(samples):
            kept, near, among = z.detach(), [], []
            for w, j in everyone:
                score = z[v, i] @ z[w, j] / temperature
                if (w, j) != (v, i) and (j == i or t[i] == t[j] >= 0):
                    near.append(score)
                if (w, j) != (v, i) and (j == i or not closed(z, v, i, w, j)):
                    among.append(score + math.log(far(i, j) + 1))
                if far(i, j):
                    mixture = share * kept[v, i] + (1 - share) * kept[w, j]
                    label = share * t[i] + (1 - share) * t[j]
                    among.append(z[v, i] @ mixture / temperature + math.log(abs(t[i] - label) + 1))
            for w, j in everyone:
                for u, k in everyone:
                    if 0 <= t[j] < t[i] < t[k] and t[i] - t[j] < window and t[k] - t[i] < window:
                        x = (t[k] - t[i]) / (t[k] - t[j])
                        mixture = x * kept[w, j] + (1 - x) * kept[u, k]
                        near.append(z[v, i] @ mixture / temperature)
                        among.append(near[-1])
            total = total - torch.stack(near).mean() + torch.stack(among).logsumexp(0)
    return total / (views * samples)


ORACLES = {"dcl": dcl, "dclw": dclw, "infonce": infonce, "supcon": supcon, "supremix": supremix}
