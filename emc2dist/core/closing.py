"""Closed candidates: those that an anchor is not pushed away from, for they are likely to be false negatives.

A closed candidate has log weight -inf. That is part of the target, so it holds for the exact loss, for the batch, for
what chains carry and for cached rows alike. For an anchor a, one view of a sample, three rules close candidates:

    ceiling    each view of a candidate by itself: its cosine with a is above `ceiling` times that of a's positive,
               which is the mean over the sample's other views (or its pair on the other side). A positive below 0
               counts as 0, so what is no nearer than orthogonal stays open.
    columns    a sample with all its views: its value in a column of the set (`Batch.columns`), say its label, is that
               of a's sample. -1 says that a sample has no value; it shares that with nobody.
    guide      a sample with all its views: a frozen model (`Batch.guide`) has its cosine with a's sample above a bound,
               by what it has for a's positive (GISTEmbed, Solatorio 2024) or fixed (MultiCSR, Wang et al. 2024). No
               feature that is trained has a part in it, so nothing has to be encoded again to be judged.

A sample's score is the log-sum-exp over its open views, -inf where there are none. By views, because a distribution
over samples is the one over views, summed (`emc2dist.core.scores`): each view keeps or loses its own part, so whichever
views are at hand stand for all of them as they do without a ceiling. Cosines are compared, never scores: no
temperature, and no schedule of it, closes anything. What is closed is a constant of the differentiation.
"""

from dataclasses import dataclass

from torch import Tensor

from emc2dist.core.batch import Batch
from emc2dist.core.scores import positive_cosines

_SLACK = 1e-4  # cosines of float16 features are good to that: what is as near as the positive stays open


@dataclass(frozen=True)
class Guided:
    """The bound g of a guide's cosine, above which it closes."""

    share: float = 1.0
    """In (0, 1]; of the positive's cosine p: g = p - (1 - share) |p| - margin."""
    margin: float = 0.0
    """>= 0."""
    above: float | None = None
    """g itself, whatever p is; None: by p."""

    def closes(self, batch: Batch, anchor: Tensor, positive: Tensor, index: Tensor) -> Tensor:
        """bool [A, C]: of samples int64 [A or 1, C], to the anchors' int64 [A, 1] whose positives are [A, 1]."""
        near = batch.guided(anchor, index)
        if self.above is not None:
            return near > self.above + _SLACK
        of_positive = batch.guided(anchor, positive)
        return near > of_positive - (1 - self.share) * of_positive.abs() - self.margin + _SLACK


@dataclass(frozen=True)
class Closing:
    """What closes candidates; by default nothing does."""

    ceiling: float | None = None
    """Share of the positive's cosine, in (0, 1]."""
    after: float = 0.0
    """Epochs before the ceiling holds."""
    columns: tuple[str, ...] = ()
    """Names of the batch's columns."""
    guide: Guided | None = None
    """How the batch's guide closes; None: it does not."""

    def __bool__(self) -> bool:
        """Whether anything can be closed."""
        return self.ceiling is not None or bool(self.columns) or self.guide is not None

    def highest(self, batch: Batch, anchors: str, positives: str) -> Tensor | None:
        """[A]: the cosine above which a view is closed; None without a ceiling, or before it holds.

        `anchors` and `positives` are their sides.
        """
        if self.ceiling is None or batch.epoch < self.after:
            return None
        return self.ceiling * positive_cosines(batch, anchors, positives).detach().clamp(min=0)

    def closes(self, batch: Batch, anchors: str, positives: str, index: Tensor) -> Tensor | bool:
        """bool [A, C]: samples int64 [A or 1, C] that a column or the guide closes; sides as for `highest`."""
        closed: Tensor | bool = False
        anchor = batch.anchor_index(anchors).unsqueeze(1)
        for name in self.columns:
            closed = closed | batch.same(name, anchor, index)
        if self.guide is not None:
            views = batch.sides[anchors].own.shape[0]
            positive = batch.own_index(positives).repeat(views).unsqueeze(1)
            closed = closed | self.guide.closes(batch, anchor, positive, index)
        return closed


OPEN = Closing()
"""Nothing is closed."""
