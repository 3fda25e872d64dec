"""Zero-shot classification: which label's vector is nearest to an image's feature."""

import numpy as np
from numpy.typing import NDArray


def zero_shot(
    features: NDArray[np.floating], labels: NDArray[np.int64], vectors: NDArray[np.floating], asked: list[int]
) -> tuple[float, float] | None:
    """Share of images of the labels `asked` that are told rightly: among these labels, and among all.

    Args:
        features: [n, D], of unit length.
        labels: int64 [n], rows of `vectors`; others are nobody's.
        vectors: [K, D], one for each label, of unit length.
        asked: the labels whose images are asked about; None is returned where there are none of them.
    """
    of_those = np.isin(labels, asked)
    if not of_those.any():
        return None
    cosines, right = features[of_those] @ vectors.T, labels[of_those]
    among = np.array(asked)[cosines[:, asked].argmax(1)]
    return float((among == right).mean()), float((cosines.argmax(1) == right).mean())
