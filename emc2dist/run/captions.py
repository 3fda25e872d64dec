"""A run over images with captions, measured: how well they find each other, and how well words alone tell classes.

Beside the trained encoder stands one that is not trained, begun as the run's was: drawings alone are told apart by
colours, and captions by shared words.
"""

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from emc2dist.config import Spec
from emc2dist.data.images import Images
from emc2dist.errors import DataError
from emc2dist.evaluate.zero_shot import zero_shot
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.run.texts import Encoding, on_another_set
from emc2dist.terminal import Progress, say
from emc2dist.train.loop import initial_encoder
from emc2dist.train.retrieval import RetrievalEvaluation, asked_of
from emc2dist.train.sets import plain_views


def evaluate_captions(newest: LoadedCheckpoint, spec: Spec) -> dict[str, Any]:
    """How well all images of `eval.asked` find their captions among those of the split, and these their images.

    Where images are labelled by names of classes, `zero_shot`: the share of them whose feature is nearest to the mean
    of the features of its class's name in `eval.prompts` (Radford et al. 2021, arXiv:2103.00020, section 3.1), among
    all classes of the set. Measures `to_images_...` are of captions that look for images.

    `spec` is the checkpoint's, with other data where that is asked for. Measures are those of
    `emc2dist.evaluate.retrieval`.

    Raises:
        DataError: there are no such images. NonFiniteError: the run has diverged.
    """
    pairs, split = asked_of(spec)
    if pairs is None:
        raise DataError(
            f"{spec.data.path}: no image with a caption is of split test or validation; name the split that is asked: "
            "eval.asked=train"
        )
    judge = RetrievalEvaluation(spec, pairs, plain_views(newest.spec, newest.model), whole=True)
    remarks = [*on_another_set(newest, spec), *pairs.remarks]
    for remark in remarks:
        say(remark)
    described = newest.model.config if newest.model else None
    untrained = Encoding.of(newest, initial_encoder(newest.spec, newest.device, described).eval())
    found: dict[str, dict[str, float]] = {}
    with closing(Progress(2 * judge.texts, unit="view")) as progress:
        for name, encoding in (("feature", Encoding.of(newest)), ("untrained", untrained)):
            found[name] = judge.all_measures(encoding.encoder, newest.device, progress.add)
            found[name] |= _zero_shot(encoding, pairs.queries, spec.eval.prompts)
    return {
        "checkpoint": str(newest.place),
        "data": spec.data.path,
        "asked": split,
        "images": len(judge.queries),
        "captions": len(judge.documents),
        **_classes(pairs.queries),
        **found,
        "remarks": [*newest.remarks, *remarks],
    }


def _classes(images: Images) -> dict[str, Any]:
    """How many classes `zero_shot` is told among, and the share of the largest; nothing where it is not measured."""
    if images.unlabelled() is not None or not images.classes:
        return {}
    labels = images.labels(np.arange(len(images)))
    counts = np.bincount(labels[labels >= 0])
    return {"classes": len(images.classes), "largest_class": float(counts.max() / counts.sum())}


def _zero_shot(encoding: Encoding, images: Images, prompts: Sequence[str]) -> dict[str, float]:
    """The share of images of named classes that words tell rightly; nothing where classes have no names."""
    if not _classes(images):
        return {}
    labels = images.labels(np.arange(len(images)))
    asked = np.flatnonzero(labels >= 0)
    features = encoding.of_rows(images, asked)
    vectors = _class_vectors(encoding, images.classes, prompts)
    told = zero_shot(features, labels[asked], vectors, list(range(len(vectors))))
    assert told is not None, "some have labels"
    return {"zero_shot": told[1]}


def _class_vectors(encoding: Encoding, classes: Sequence[str], prompts: Sequence[str]) -> NDArray[np.float32]:
    """A unit vector of each class, [K, D]: the mean over prompts."""
    texts = [prompt.replace("{}", name) for name in classes for prompt in prompts]
    features = torch.from_numpy(encoding.features(texts, "document")).unflatten(0, (len(classes), len(prompts)))
    vectors: NDArray[np.float32] = torch.nn.functional.normalize(features.mean(1), dim=1).numpy()
    return vectors
