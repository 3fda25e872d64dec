"""Closed candidates: those that an anchor is not pushed away from, for they are likely to be false negatives.

A closed candidate has log weight -inf. That is part of the target, so it holds for the exact loss, for the batch, for
what chains carry and for cached rows alike. For an anchor a, one view of a sample, two rules close candidates:

    ceiling    each view of a candidate by itself: its cosine with a is above `ceiling` times that of a's positive,
               which is the mean over the sample's other views (or its pair on the other side). A positive below 0
               counts as 0, so what is no nearer than orthogonal stays open.
    columns    a sample with all its views: its value in a column of the set (`Batch.columns`), say its label, is that
               of a's sample. -1 says that a sample has no value; it shares that with nobody.

A sample's score is the log-sum-exp over its open views, -inf where there are none. By views, because a distribution
over samples is the one over views, summed (`emc2dist.core.scores`): each view keeps or loses its own part, so whichever
views are at hand stand for all of them as they do without a ceiling. Cosines are compared, never scores: no
temperature, and no schedule of it, closes anything. What is closed is a constant of the differentiation.
"""

from dataclasses import dataclass

from torch import Tensor

from emc2dist.core.batch import Batch
from emc2dist.core.scores import positive_cosines


@dataclass(frozen=True)
class Closing:
    """What closes candidates; by default nothing does."""

    ceiling: float | None = None
    """Share of the positive's cosine, in (0, 1]."""
    after: float = 0.0
    """Epochs before the ceiling holds."""
    columns: tuple[str, ...] = ()
    """Names of the batch's columns."""

    def __bool__(self) -> bool:
        """Whether anything can be closed."""
        return self.ceiling is not None or bool(self.columns)

    def highest(self, batch: Batch, anchors: str, positives: str) -> Tensor | None:
        """[A]: the cosine above which a view is closed; None without a ceiling, or before it holds.

        `anchors` and `positives` are their sides.
        """
        if self.ceiling is None or batch.epoch < self.after:
            return None
        return self.ceiling * positive_cosines(batch, anchors, positives).detach().clamp(min=0)

    def closes(self, batch: Batch, anchor: Tensor, index: Tensor) -> Tensor | bool:
        """bool [A, C]: samples int64 [A or 1, C] that a column closes to the anchors' samples int64 [A, 1]."""
        closed: Tensor | bool = False
        for name in self.columns:
            closed = closed | batch.same(name, anchor, index)
        return closed


OPEN = Closing()
"""Nothing is closed."""
