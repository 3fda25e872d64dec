"""All measures of what an encoder gives, its representation or its feature, on the images of an evaluation.

docs/evaluation.md says what each is.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from emc2dist.core.contrast import contrast_for
from emc2dist.core.diagnostics import alignment, effective_rank, isotropy, tolerance, uniformity
from emc2dist.core.objectives import InputLabel, Sirl
from emc2dist.evaluate import neighbours, probe, regression
from emc2dist.evaluate.accuracy import accuracy, per_class
from emc2dist.evaluate.few_shot import few_shot
from emc2dist.evaluate.triplets import triplet_accuracy
from emc2dist.evaluate.zero_shot import zero_shot
from emc2dist.towers.encoder import Encoder, Tower
from emc2dist.train.evaluation import Evaluation

MOST_IN_PAIRS = 2_048
"""Images of which all pairs are compared."""
_RECALLS = (1, 5, 10)
_SHOTS = (1, 5)

Measures = dict[str, float | None]
"""By name; None where the images do not allow it."""


def all_measures(
    evaluation: Evaluation, encoder: Encoder, bank: Tensor, queries: Tensor, pair: Tensor
) -> dict[str, Measures]:
    """Of the representation, of the feature and of its heads; and what the objective of the run has measures of.

    Arguments and errors as of `measures`, of representations on the encoder's device.
    """
    features = _features_of(encoder, bank, queries, pair)
    found = {"representation": measures(evaluation, bank, queries, pair), "feature": measures(evaluation, *features)}
    objective = contrast_for(evaluation.spec).objective
    heads = [objective.heads(vectors) for vectors in features]
    for name in heads[0]:
        found[name] = measures(evaluation, *(head[name] for head in heads))
    _, asked = evaluation.labels()
    if isinstance(objective, InputLabel) and objective.held_out:
        vectors = objective.label_vectors(features[1].shape[1]).numpy()
        shares = zero_shot(features[1].cpu().numpy(), asked, vectors, list(objective.held_out)) or (None, None)
        names = ("zero_shot_accuracy", "zero_shot_among_all")
        found["representation"] |= dict.fromkeys(names)
        found["feature"] |= dict(zip(names, shares, strict=True))
    if isinstance(objective, Sirl):
        for name, of_asked in (("representation", queries), ("feature", features[1])):
            found[name]["triplet_accuracy"] = triplet_accuracy(normalize(of_asked, dim=1).cpu().numpy(), asked)
    return found


@torch.no_grad()
def _features_of(encoder: Encoder, *representations: Tensor) -> list[Tensor]:
    """Unit-norm features [..., D], float32, of representations [..., R] on the encoder's device."""
    assert isinstance(encoder, Tower)
    dtype, was_training = next(encoder.parameters()).dtype, encoder.training
    encoder.eval()
    flat = (one.flatten(0, -2).to(dtype) for one in representations)
    found = zip(map(encoder.feature, flat), representations, strict=True)
    features = [vectors.unflatten(0, one.shape[:-1]).float() for vectors, one in found]
    encoder.train(was_training)
    return features


def measures(evaluation: Evaluation, bank: Tensor, queries: Tensor, pair: Tensor) -> Measures:
    """Every measure of vectors of the bank [n, R], the queries [m, R], and [2, p, R] two random views of some queries.

    Raises:
        DataError: all voters are of one class; or labels are to be numbers, and a class is called otherwise.
    """
    voters, asked = evaluation.labels()
    voted = neighbours.votes(bank, voters, queries, neighbours=evaluation.neighbours)
    probed = probe.predictions(bank.cpu().numpy(), voters, queries.cpu().numpy())
    found: Measures = {
        "knn_accuracy": accuracy(voted, asked),
        "knn_per_class": per_class(voted, asked),
        "linear_probe_accuracy": accuracy(probed, asked),
        "linear_probe_per_class": per_class(probed, asked),
    }
    found |= _errors(evaluation, bank, queries)
    among = [count for count in _RECALLS if count <= len(voters)]
    for count, share in zip(among, neighbours.recall(bank, voters, queries, asked, among), strict=True):
        found[f"recall_at_{count}"] = share
    among = [count for count in _RECALLS if count < len(asked)]
    for count, share in zip(among, neighbours.recall_among(queries, asked, among), strict=True):
        found[f"asked_recall_at_{count}"] = share if np.isfinite(share) else None
    for shots in _SHOTS:
        episodes = few_shot(queries.cpu(), asked, shots)
        found[f"few_shot_{shots}"], found[f"few_shot_{shots}_error"] = episodes or (None, None)
    return found | _geometry(normalize(queries[:MOST_IN_PAIRS], dim=1).cpu(), torch.from_numpy(asked), pair)


def _errors(evaluation: Evaluation, bank: Tensor, queries: Tensor) -> Measures:
    """How far off are answers to queries [m, R], where labels are numbers."""
    numbers = evaluation.numbers()
    if numbers is None:
        return {"knn_absolute_error": None, "linear_absolute_error": None}
    near = regression.of_neighbours(bank, numbers[0], queries, neighbours=evaluation.neighbours)
    line = regression.of_line(bank.cpu().numpy(), numbers[0], queries.cpu().numpy())
    return {
        "knn_absolute_error": regression.absolute_error(near, numbers[1]),
        "linear_absolute_error": regression.absolute_error(line, numbers[1]),
    }


def _geometry(unit: Tensor, asked: Tensor, pair: Tensor) -> Measures:
    """Of unit-norm vectors [m, R] of labels int64 [>= m], all as they lie to each other."""
    cosines, pairs = tolerance(unit, asked[: len(unit)])
    return {
        "alignment": float(alignment(normalize(pair, dim=-1))),
        "uniformity": float(uniformity(unit)) if len(unit) > 1 else None,
        "tolerance": float(cosines / pairs) if pairs else None,
        "isotropy": float(isotropy(unit)) if len(unit) > 1 else None,
        "effective_rank": float(effective_rank(unit)),
    }
