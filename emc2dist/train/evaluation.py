"""Which images a representation is judged by, and how many of them the nearest neighbours tell rightly.

Labelled images vote (those that were trained on, or those of `eval.voters`) and are asked about others (`eval.asked`).
Where there are no others, every tenth voter is a question (its pixels were trained on, its label was not). An image
without a label takes no part. Splits that name their classes in different orders are matched by name. All measures:
`emc2dist.train.measures`.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.config import Spec
from emc2dist.core.contrast import columns_for
from emc2dist.data.columns import on_joined, on_spelling
from emc2dist.data.images import Images, Labelled, numbers_of
from emc2dist.errors import DataError
from emc2dist.evaluate import neighbours, probe
from emc2dist.evaluate.accuracy import accuracy, per_class
from emc2dist.metrics import Row
from emc2dist.towers.encoder import Encoder
from emc2dist.towers.views import PlainView
from emc2dist.train import collectives
from emc2dist.train.frozen import freeze

_CHUNK = 256  # images encoded at once


class Evaluation:
    """A fixed set of labelled images that vote (bank) and that are asked (queries).

    At most `eval.bank` and `eval.queries` of them, or all with `whole`.

    Raises:
        DataError: they have no labels, or are too few.
    """

    def __init__(self, spec: Spec, images: Labelled, *, whole: bool = False) -> None:
        voters, asked = images.voters, images.asked
        if reason := voters.unlabelled():
            raise DataError(
                f"{reason}; use data with labels (data.path=LABELLED), or set eval.voters to a split that has some"
            )
        self.spec = spec
        bank, self.remarks = _labelled(voters), [*images.remarks]
        if asked is None:
            every_tenth = np.arange(len(bank)) % 10 == 0
            asked, queries, bank = voters, bank[every_tenth], bank[~every_tenth]
            self.remarks.append(
                f"no other images are asked about: every tenth voter is, {len(queries)}, and the other {len(bank)} vote"
            )
        else:
            queries = _labelled(asked)
        if not len(bank) or not len(queries):
            raise DataError(
                f"{len(bank)} labelled images to vote and {len(queries)} to ask about are too few to evaluate with; "
                "set eval.voters and eval.asked to splits with more, or do without labels"
            )
        if bool(voters.classes) != bool(asked.classes):
            raise DataError(
                "one of the splits that vote and are asked about names its classes, the other only numbers them: which "
                "is which cannot be told; give both the same kind of labels"
            )
        strangers = _strangers(voters.labels(bank), _numbered_as(voters, asked, queries), voters.classes)
        voting = voters.labels(bank)
        self.remarks += strangers + on_joined(voters.classes, voting) + on_spelling(voters.classes, voting)
        self._bank = voters, _sample(bank, None if whole else spec.eval.bank)
        self._queries = asked, _sample(queries, None if whole else spec.eval.queries)
        if self.neighbours < spec.eval.neighbours:
            self.remarks.append(
                f"eval.neighbours: {spec.eval.neighbours:,} neighbours asked for, {self.neighbours:,} voters: all of "
                "them vote on each image"
            )

    def labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Labels of bank and queries, both numbered as the voters' are; a class that these do not name is below -1."""
        return self._bank[0].labels(self._bank[1]), _numbered_as(self._bank[0], *self._queries)

    def numbers(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """What labels of bank and queries stand for, where the objective takes them for numbers; else None.

        Raises:
            DataError: a class is called otherwise.
        """
        wanted = columns_for(self.spec).get("target")
        if wanted is None:
            return None
        bank, queries = (
            numbers_of(images.labels(index), images.classes, wanted) for images, index in (self._bank, self._queries)
        )
        return bank, queries

    @classmethod
    def of(cls, spec: Spec, images: Labelled) -> tuple["Evaluation | None", list[str]]:
        """What a run evaluates, and what a person should know of it; None where labels do not suffice.

        Raises:
            DataError: they do not, though the spec names splits to evaluate with.
        """
        try:
            evaluation = cls(spec, images)
        except DataError as error:
            if spec.eval.asked is not None or spec.eval.voters != "train":
                raise
            return None, [*images.remarks, f"nothing is evaluated: {error}"]
        return evaluation, evaluation.remarks

    @property
    def neighbours(self) -> int:
        """k of kNN: `eval.neighbours`, or all voters where these are fewer."""
        return min(self.spec.eval.neighbours, len(self._bank[1]))

    @property
    def images(self) -> int:
        """Images that are encoded, bank and queries together."""
        return len(self._bank[1]) + len(self._queries[1])

    def represent(
        self, encoder: Encoder, device: torch.device, tell: Callable[[int], object] = lambda count: None
    ) -> tuple[Tensor, Tensor]:
        """Representations float32 [n, R] of bank and queries, on the device; ranks share the work, and all get it.

        `tell` is called with how many more images this rank has encoded.
        """
        was_training = encoder.training
        encoder.eval()
        with torch.no_grad():
            bank, queries = (self._encode(encoder, *split, device, tell) for split in (self._bank, self._queries))
        encoder.train(was_training)
        return bank, queries

    def pixels(self) -> tuple[Tensor, Tensor]:
        """The same images as they stand, [n, 3 * S * S], on the CPU: what a representation has to beat."""
        bank, queries = (
            torch.cat([chunk.flatten(1).float() for chunk in self._views(images, index)])
            for images, index in (self._bank, self._queries)
        )
        return bank, queries

    def measured(self, encoder: Encoder, device: torch.device) -> Row:
        """kNN and a linear probe by representation, by class too where classes are uneven; each rank has it.

        Ranks share the encoding and the search for neighbours; of one class alone there is no probe.
        """
        bank, queries = self.represent(encoder, device)
        voters, asked = self.labels()
        found = {"knn": self.votes(bank, queries, shared=True)}
        if len(np.unique(voters)) > 1:
            found["probe"] = probe.by_ridge(bank, voters, queries)
        row = {f"{name}_accuracy": accuracy(labels, asked) for name, labels in found.items()}
        _, counts = np.unique(asked, return_counts=True)
        if counts.min() < counts.max():
            row |= {f"{name}_per_class": per_class(labels, asked) for name, labels in found.items()}
        return row

    def baseline(self) -> Row:
        """kNN accuracy of the images as they stand."""
        _, asked = self.labels()
        return {"knn_pixels": accuracy(self.votes(*self.pixels()), asked)}

    def votes(self, bank: Tensor, queries: Tensor, *, shared: bool = False) -> NDArray[np.int64]:
        """The label [m] that the k nearest voters by cosine name, of each query.

        With `shared`, every rank calls it with the same, asks about its part of the queries, and gets the whole.
        """
        voters, _ = self.labels()
        if not shared:
            return neighbours.votes(bank, voters, queries, neighbours=self.neighbours)
        share = _share(np.arange(len(queries)))
        found = neighbours.votes(bank, voters, queries[torch.from_numpy(share)], neighbours=self.neighbours)
        gathered = collectives.gather_rows(torch.from_numpy(found).to(bank.device))
        return _in_order(gathered, len(queries)).cpu().numpy()

    def pair(self, encoder: Encoder, device: torch.device, most: int) -> Tensor:
        """Representations float32 [2, m, R], on the CPU, of up to `most` queries in two random views, as in training.

        Raises:
            NonFiniteError: a number is NaN or infinite.
        """
        images, index = self._queries
        return freeze(self.spec, encoder.representation, device, images, index[:most], 2).float()

    def _encode(
        self,
        encoder: Encoder,
        images: Images,
        index: NDArray[np.int64],
        device: torch.device,
        tell: Callable[[int], object],
    ) -> Tensor:
        parts = []
        for chunk in self._views(images, _share(index)):
            parts.append(encoder.representation(chunk.to(device)))
            tell(len(chunk))
        return _in_order(collectives.gather_rows(torch.cat(parts)), len(index)).float()

    def _views(self, images: Images, index: NDArray[np.int64]) -> Iterator[Tensor]:
        return plain_views(images, index, self.spec.views.size)


def _share(index: NDArray[np.int64]) -> NDArray[np.int64]:
    """This rank's part; every rank's is as long, so the last ones may repeat some."""
    ranks = collectives.world_size()
    return np.resize(index, -(-len(index) // ranks) * ranks).reshape(-1, ranks)[:, collectives.rank()]


def _in_order(gathered: Tensor, length: int) -> Tensor:
    """What ranks gathered of their shares, in the order of the whole, without what is repeated."""
    return gathered.unflatten(0, (collectives.world_size(), -1)).transpose(0, 1).flatten(0, 1)[:length]


def plain_views(images: Images, index: NDArray[np.int64], size: int) -> Iterator[Tensor]:
    """Plain views uint8 [<= 256, 3, size, size] of the images at `index`."""
    view = PlainView(size)
    for cut in np.split(index, range(_CHUNK, len(index), _CHUNK)):
        yield torch.stack([view(image) for image in images.get(cut)])


def _labelled(images: Images) -> NDArray[np.int64]:
    """The images that have a label."""
    everything = np.arange(len(images))
    return everything[images.labels(everything) >= 0]


def _numbered_as(voters: Images, images: Images, index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels of `images` at `index` by the voters' numbers; names that these do not know count down from -2."""
    labels, here, there = images.labels(index), images.classes, voters.classes
    if here == there:
        return labels
    number = {name: label for label, name in enumerate(there)}
    return np.array([number.get(name, -2 - label) for label, name in enumerate(here)], np.int64)[labels]


def _strangers(voters: NDArray[np.int64], asked: NDArray[np.int64], classes: list[str]) -> list[str]:
    """A remark on images that are asked about though no voter is of their class."""
    strange = asked[~np.isin(asked, voters)]
    if not len(strange):
        return []
    known = [classes[label] for label in np.unique(strange) if 0 <= label < len(classes)]
    example = f", as {known[0]!r}" if known else ""
    return [
        f"{len(strange)} of {len(asked)} images asked about are of {len(np.unique(strange))} classes of which no image "
        f"votes{example}: they count as wrong"
    ]


def _sample(index: NDArray[np.int64], limit: int | None) -> NDArray[np.int64]:
    """At most `limit` of the index, the same ones each time; all of them where limit is None."""
    if limit is None or limit >= len(index):
        return index
    return np.sort(np.random.default_rng(0).choice(index, limit, replace=False))
