"""Every objective by explicit loops, as its paper writes it, over all samples of `z` [V, N, D].

`closed(z, v, i, w, j)` says whether view w of sample j is closed to view v of sample i.
"""

import math

import torch

LABEL = torch.tensor([0, 1, 0, -1, 1, -1, 2, 2] * 3)
TWINS = torch.tensor([-1, -1, 7, -1, -1, 7, -1, -1] * 3)
ODD = torch.tensor([0] * 8 + [1] * 8 + [0] * 8)
WORDS = torch.randint(-2, 2, (4, 24, 8), generator=torch.Generator().manual_seed(1)).to(torch.int8)
LENGTH = torch.tensor([3, 9, 1, 4, -1, 30, 2, 5] * 3)
COLUMNS = {
    **{f"words_{n}": WORDS[n].contiguous().view(torch.int64)[:, 0] for n in range(4)},
    "length": LENGTH,
    "label": LABEL,
    "target": LABEL,
    "duplicates": TWINS,
    "odd": ODD,
}
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


def _negatives(z, v, i, temperature, closed, slots=None):
    """Scores [n] of the views of other samples that are open; `slots`: of these views alone."""
    views, samples, _ = z.shape
    others = [(w, j) for j in range(samples) if j != i for w in (range(views) if slots is None else slots)]
    scores = [z[v, i] @ z[w, j] / temperature for w, j in others if not closed(z, v, i, w, j)]
    return torch.stack(scores) if scores else z.new_zeros(0)


def _repulsion(negatives):
    """log Z; where all candidates are closed nothing is repelled."""
    return negatives.logsumexp(0) if len(negatives) else 0


def cacr(z, temperature, closed=nothing, t_positive=1.0, t_negative=2.0):
    views, samples, _ = z.shape
    total = 0
    for v in range(views):
        for i in range(samples):
            near = torch.stack([2 - 2 * z[v, i] @ z[w, i] for w in range(views) if w != v])
            total = total + ((t_positive * near).softmax(0) * near).sum()
            far = 2 - 2 * _negatives(z, v, i, 1, closed, slots=[v])
            total = total - ((-t_negative * far).softmax(0) * far).sum()
    return total / (views * samples)


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


def debcse(z, temperature, closed=nothing, strength=1.0):
    views, samples, _ = z.shape
    near, total = _positives(z), 0

    def weight(i, j):
        if min(LENGTH[i], LENGTH[j]) < 0:
            return 1.0
        equal = sum(int(one == other) for n in range(4) for one, other in zip(WORDS[n][i], WORDS[n][j], strict=True))
        shared = max(0, (equal / 32 - 1 / 256) / (1 - 1 / 256))
        lengths = sorted((int(LENGTH[i]), int(LENGTH[j])))
        return math.exp(-strength * (shared + lengths[0] / lengths[1]) / 2)

    of_pairs = [weight(i, i) for i in range(samples)]
    for v in range(views):
        for i in range(samples):
            positive = near[v][i] / temperature
            z_i = positive.exp()
            for j in range(samples):
                for w in range(views):
                    if j != i and not closed(z, v, i, w, j):
                        z_i = z_i + weight(i, j) * (z[v, i] @ z[w, j] / temperature).exp()
            total = total + of_pairs[i] * samples / sum(of_pairs) * (z_i.log() - positive)
    return total / (views * samples)


def groco(z, temperature, closed=nothing, hardest=10, steepness=1.0):
    views, samples, _ = z.shape
    keys, total = z.detach(), 0
    for v in range(views):
        for i in range(samples):
            others = [j for j in range(samples) if j != i and not closed(z, v, i, v, j)]
            negatives = sorted((z[v, i] @ keys[v, j] for j in others), key=lambda score: score.item())[-hardest:]
            positives = sorted((z[v, i] @ keys[w, i] for w in range(views) if w != v), key=lambda score: score.item())
            missing = hardest - len(negatives)
            row, places = [None] * missing + negatives + positives, hardest + len(positives)
            permutation = torch.eye(places, dtype=z.dtype)  # of each number, by place
            for layer in range(places):
                step = torch.eye(places, dtype=z.dtype)
                for place in range(layer % 2, places - 1, 2):
                    low, high = row[place : place + 2]
                    if low is None:
                        continue
                    stays = torch.atan(steepness * (high - low)) / torch.pi + 0.5
                    row[place : place + 2] = stays * low + (1 - stays) * high, (1 - stays) * low + stays * high
                    swap = torch.stack([torch.stack([stays, 1 - stays]), torch.stack([1 - stays, stays])])
                    around = torch.eye(places, dtype=z.dtype)
                    around[place : place + 2, place : place + 2] = 0
                    step = step @ (around + torch.nn.functional.pad(swap, (place, places - place - 2) * 2))
                permutation = permutation @ step
            among_positives, among_negatives = permutation[:, hardest:].sum(1), permutation[:, :hardest].sum(1)
            for number in range(missing, places):
                right, wrong = among_positives[number], among_negatives[number]
                if number < hardest:
                    right, wrong = wrong, right
                total = total - (right.log() + (1 - wrong).log()) / 2 / places
    return total / (views * samples)


def hydra(z, temperature, closed=nothing, gate=None, partner="arbitrary", label=LABEL):
    """`gate(y, y')`: [D], open without. The partner class is the next one, going up and around."""
    views, samples, _ = z.shape
    t = [int(one) for one in label[:samples]]
    classes = sorted({one for one in t if one >= 0})

    def partner_of(y):
        if y < 0 or partner == "identical" or (partner == "distinct" and len(classes) == 1):
            return y
        return classes[(classes.index(y) + 1) % len(classes)]

    total = 0
    for v in range(views):
        for i in range(samples):
            other = partner_of(t[i])
            g = torch.ones_like(z[v, i]) if gate is None or t[i] < 0 else gate(t[i], other)

            def score(w, j, v=v, i=i, g=g):
                one, two = g * z[v, i], g * z[w, j]
                length = 1 if gate is None else one.norm() * two.norm()
                return one @ two / (length * temperature)

            others = [(w, j) for j in range(samples) for w in range(views) if (w, j) != (v, i)]
            positives = [(w, j) for w, j in others if (j == i and other == t[i]) or (j != i and t[j] == other >= 0)]
            far = [
                score(w, j)
                for w, j in others
                if j != i and (t[j] < 0 or t[j] not in (t[i], other)) and not closed(z, v, i, w, j)
            ]
            for w, j in positives:
                among = torch.stack([score(w, j), *far]).logsumexp(0)
                total = total + (among - score(w, j)) / len(positives)
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


def input_label(z, temperature, closed=nothing, vectors=None, held_out=(), label=LABEL):
    """Without vectors the axes."""
    views, samples, width = z.shape
    vectors = torch.eye(width, dtype=z.dtype) if vectors is None else vectors
    y = [-1 if int(one) in held_out else int(one) for one in label[:samples]]
    of_label = torch.stack([vectors[one] if one >= 0 else torch.zeros(width, dtype=z.dtype) for one in y])
    total = 0
    for v in range(views):
        two = torch.stack([z[v], of_label])
        for i in range(samples):
            if y[i] < 0:
                continue
            scores = [z[v, i] @ of_label[i] / temperature]
            for j in range(samples):
                if y[j] not in (-1, y[i]) and not closed(two, 0, i, 1, j):
                    scores.append(z[v, i] @ of_label[j] / temperature - math.log(y.count(y[j])))
            total = total - scores[0] + torch.stack(scores).logsumexp(0)
    return total / (views * samples)


def mv_dhel(z, temperature, closed=nothing):
    views, samples, _ = z.shape
    total = 0
    for i in range(samples):
        pairs = [z[v, i] @ z[w, i] / temperature for v in range(views) for w in range(v + 1, views)]
        total = total - torch.stack(pairs).logsumexp(0)
        for v in range(views):
            total = total + _repulsion(_negatives(z, v, i, temperature, closed, slots=[v]))
    return total / samples


def mv_infonce(z, temperature, closed=nothing):
    views, samples, _ = z.shape
    total = 0
    for i in range(samples):
        pairs = [z[v, i] @ z[w, i] / temperature for v in range(views) for w in range(views) if w != v]
        negatives = [_negatives(z, v, i, temperature, closed) for v in range(views)]
        total = total - torch.stack(pairs).logsumexp(0) + torch.cat([torch.stack(pairs), *negatives]).logsumexp(0)
    return total / samples


def nnclr(z, temperature, closed=nothing, cached=(), keys=None):
    """`cached`: (sample, feature) of a support set; where there is none a view's neighbour is the view itself.

    `keys`, like z: what is compared with neighbours in its stead.
    """
    keys = z if keys is None else keys
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
                neighbour @ keys[v, j] / temperature
                for j in range(samples)
                if j not in (i, near) and not closed(two, 0, i, 1, j)
            ]
            positive = neighbour @ keys[v, i] / temperature
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


def sepclr(z, temperature, closed=nothing, width=2, background=(0,), weights=(1e-3, 1.0, 1.0, 1e-2), label=LABEL):
    views, samples, _ = z.shape
    empty = [int(one) in background for one in label[:samples]]
    c = [[z[v, i, :width] / z[v, i, :width].norm() for i in range(samples)] for v in range(views)]
    s = [[z[v, i, width:] / z[v, i, :width].norm() for i in range(samples)] for v in range(views)]
    counted = [[0 * s[v][i] if empty[i] else s[v][i] for i in range(samples)] for v in range(views)]

    def far(one, other):
        return (one - other).square().sum() / (2 * temperature)

    def alignment(head, of):
        pairs = [far(head[v][i], head[w][i]) for i in of for v in range(views) for w in range(v)]
        return torch.stack(pairs).mean() if pairs else 0

    def uniformity(head):
        total = 0
        for v in range(views):
            pairs = [-far(head[v][i], head[v][j]) for i in range(samples) for j in range(i)]
            total = total + torch.stack(pairs).logsumexp(0) - math.log(len(pairs))
        return total

    targets = [i for i in range(samples) if not empty[i]]
    nothing_beside = [far(s[v][i], 0) for i in range(samples) if empty[i] for v in range(views)]
    joint = 0
    for v in range(views):
        for i in range(samples):
            near = [
                -far(c[v][i], c[v][j]) - far(counted[v][i], counted[v][j])
                for j in range(samples)
                if j != i and not closed(z, v, i, v, j)
            ]
            joint = joint + (torch.stack(near).logsumexp(0) if near else 0)
    terms = (
        alignment(c, range(samples)) + uniformity(c),
        alignment(s, targets) + uniformity(counted),
        torch.stack(nothing_beside).mean() if nothing_beside else 0,
        joint / (views * samples),
    )
    return sum(weight * term for weight, term in zip(weights, terms, strict=True))


def sirl(z, temperature, closed=nothing, margin=1.0, label=LABEL, odd=ODD):
    views, samples, _ = z.shape
    total = 0 * z.sum()
    for v in range(views):
        for i in range(samples):
            query = [j for j in range(samples) if label[j] == label[i] >= 0]
            alike = [j for j in query if j != i and not odd[j] and not odd[i]]
            pairs = [(j, k) for j in alike for k in query if odd[k]]
            for j, k in pairs:
                near, far = 2 - 2 * z[v, i] @ z[v, j], 2 - 2 * z[v, i] @ z[v, k]
                total = total + (near - far + margin).relu() / len(pairs)
    return total / (views * samples)


def supcon(z, temperature, closed=nothing, decoupled=False, cached=()):
    """`cached`: (sample, feature) of a memory."""
    views, samples, _ = z.shape
    total = 0
    for v in range(views):
        for i in range(samples):
            others = [(w, j) for j in range(samples) for w in range(views) if (w, j) != (v, i)]
            positives = [(w, j) for w, j in others if j == i or LABEL[i] == LABEL[j] >= 0]
            own = [z[v, i] @ z[w, i] / temperature for w in range(views) if w != v]
            negatives = _negatives(z, v, i, temperature, closed)
            among = negatives if decoupled else torch.cat([torch.stack(own), negatives])
            pulling = [z[w, j] for w, j in positives] + [f for j, f in cached if j != i and LABEL[i] == LABEL[j] >= 0]
            total = total - sum(z[v, i] @ one / temperature for one in pulling) / len(pulling)
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


def sycl(z, temperature, closed=nothing, label=LABEL):
    views, samples, _ = z.shape
    every = [(v, i) for v in range(views) for i in range(samples)]
    rows = {"scores": [], "grades": []}
    for v, i in every:
        scores, grades = [], []
        for w, j in every:
            if (w, j) == (v, i):
                continue
            scores.append((z[v, i] @ z[w, j] / temperature).exp())
            grades.append(math.exp(2 if i == j else label[i] == label[j] >= 0))
        for name, values in (("scores", torch.stack(scores)), ("grades", torch.tensor(grades, dtype=z.dtype))):
            shares, at = values / values.sum(), len(rows[name])
            rows[name].append(torch.cat([shares[:at], shares.new_zeros(1), shares[at:]]))
    p, t = (torch.stack(rows[name]) for name in ("scores", "grades"))
    total = sum((p[:, c].mean() - t[:, c].mean()) ** 2 for c in range(len(every)))
    p, t = ((of - of.mean(0)) / (len(every) - 1) ** 0.5 for of in (p, t))
    return total + (p**2).sum() + (t**2).sum() - 2 * torch.linalg.matrix_norm(p @ t.T, "nuc")


def whitenedcse(z, temperature, closed=nothing, channels=6, shuffles=3):
    views, samples, width = z.shape
    groups = next(g for g in range(1, width + 1) if width % g == 0 and width // g <= channels)
    white = []
    for k in range(shuffles):
        order = torch.randperm(width, generator=torch.Generator().manual_seed(k)).tolist()
        size, made = width // groups, torch.zeros(samples, width, dtype=z.dtype)
        for g in range(groups):
            mine = order[g * size : (g + 1) * size]
            rows = z[k % views][:, mine] - z[k % views][:, mine].mean(0)
            values, vectors = torch.linalg.eigh(rows.T @ rows / samples)
            made[:, mine] = rows @ sum(v.outer(v) / value.sqrt() for value, v in zip(values, vectors.T, strict=True))
        white.append(made / made.norm(dim=1, keepdim=True))
    total = 0
    for k in range(1, shuffles):
        two = torch.stack([white[0], white[k]])
        for i in range(samples):
            scores = [two[0, i] @ two[1, i] / temperature]
            for j in range(samples):
                if j != i and not closed(two, 0, i, 1, j):
                    scores.append(two[0, i] @ two[1, j] / temperature)
            total = total - scores[0] + torch.stack(scores).logsumexp(0)
    return total / samples / (shuffles - 1)


ORACLES = {
    "cacr": cacr,
    "dcl": dcl,
    "dclw": dclw,
    "debcse": debcse,
    "groco": groco,
    "hydra": hydra,
    "infonce": infonce,
    "input_label": input_label,
    "mv_dhel": mv_dhel,
    "mv_infonce": mv_infonce,
    "nnclr": nnclr,
    "rgcl": rgcl,
    "sepclr": sepclr,
    "sirl": sirl,
    "supcon": supcon,
    "supremix": supremix,
    "sycl": sycl,
    "whitenedcse": whitenedcse,
}
