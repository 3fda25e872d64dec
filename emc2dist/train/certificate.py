"""What a sampler buys on a spec's own features: its certificate (`emc2dist.core.certify`), beside those of others.

    freeze    a choice of the training images, uniform or, as batches may be, by class, in M random views, encoded once
              (`emc2dist.train.frozen`)
    certify   the spec's own negatives, the batch alone, and other chains, over those features, for as many steps each

All of them are held against the same exact gradient, that of the spec's objective over the frozen views. The rows are
told apart by one number, `Row.distance`: how far an average of gradients is from the exact one when as many images
were encoded as `AVERAGED` steps of the batch alone encode.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import comb
from time import perf_counter
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from emc2dist.config import Spec
from emc2dist.config.negatives import Chain, InBatch, Negatives
from emc2dist.core.certify import FrozenRun, Report, certify
from emc2dist.core.contrast import contrast_for
from emc2dist.data.images import Images
from emc2dist.data.sampler import EpochOrder
from emc2dist.errors import DataError, SpecError
from emc2dist.terminal import Progress, say
from emc2dist.towers.encoder import Encoder
from emc2dist.train.loop import initial_encoder

SAMPLES, VIEWS, SECONDS = 500, 20, 45.0
"""Images, views of each, and seconds of all steps together, where nobody says otherwise."""
AVERAGED = 1000
"""Steps over which gradients are averaged where rows are compared: noise averages out, as over the steps of a run, and
bias stays."""
NOISE = 3.0
"""Standard errors up to which a bias cannot be told apart from none."""
ROOM = 4
"""How many batches the frozen images have to be, at least, and how many times K."""

Role = Literal["own", "batch", "other", "half"]
"""The spec's own negatives, the batch alone, other ones; or the spec's own over half of the images."""

_MOST_VIEWS = 2**17  # the exact gradient contrasts each with each
_MOST_BYTES = 2**30  # of features
_MOST_WAYS = 1200  # in which views stand together, where an exact loss is a mean over them
_ROWS = 64  # cached rows of chains that begin anew at one, where a spec names no number
_FEWEST_STEPS, _MOST_STEPS = 120, 20_000
_TRIED = 12  # steps that are timed


@dataclass(frozen=True)
class Row:
    """One way to take negatives, certified."""

    role: Role
    spec: Spec
    """The spec with these negatives."""
    temperature: float
    samples: int
    """N."""
    steps: int
    """T."""
    report: Report

    @property
    def is_biased(self) -> bool:
        """Whether its bias can be told apart from none."""
        return self.bias > self.least

    @property
    def least(self) -> float:
        """The least bias that could be told apart from none after these steps."""
        return (NOISE * self.report.excess_error) ** 0.5

    @property
    def bias(self) -> float:
        """relbias without what noise leaves of it."""
        return max(0.0, self.report.excess) ** 0.5

    @property
    def images(self) -> int:
        """Images of the batch in all their views, which every step encodes."""
        return self.spec.micro_batch_size * self.spec.views.count

    @property
    def reencoded_images(self) -> float:
        """Images that a step encodes beside the batch, draws included, mean."""
        return self.report.facts.get("reencoded_images", 0.0) + self.spec.negatives.draws

    @property
    def distance(self) -> float:
        """Of an average of gradients from the exact one, over its length, for the encodings of `AVERAGED` plain steps.

        sqrt(bias^2 + variance iact / steps), where dearer steps are fewer.
        """
        steps = AVERAGED * self.images / (self.images + self.reencoded_images)
        variance = max(0.0, self.report.error - self.bias**2)
        return (self.bias**2 + variance * self.report.iact / steps) ** 0.5


def samples_for(spec: Spec, images: Images, samples: int | None, views: int) -> int:
    """N, how many images are to be frozen in so many `views`; None: 500, or more where the batch asks for more.

    Raises:
        SpecError: it is too little for the batch and its views, or too much. DataError: the images are fewer than a
            batch.
    """
    batch, count = spec.micro_batch_size, spec.views.count
    if len(images) < batch:
        raise DataError(f"{len(images):,} training images are fewer than a batch of {batch:,}; lower batch_size")
    least = min(ROOM * max(batch, spec.negatives.draws), len(images))
    chosen = min(max(SAMPLES, least) if samples is None else samples, len(images))
    if chosen < least:
        raise SpecError(
            f"--samples {chosen:,}: too few for batches of {batch:,} and {spec.negatives.draws:,} draws, in which "
            f"every image would be met again at once; give at least {least:,}, or a smaller batch_size or fewer draws"
        )
    if contrast_for(spec).objective.support:
        raise SpecError(
            f"objective: {spec.objective.name} has no exact loss to be certified by: its positives depend on what is "
            "cached; certify the negatives with objective.name=infonce"
        )
    if all(role != "other" for role, _ in ways(spec, chosen)):
        raise SpecError(
            f"objective: {spec.objective.name} takes negatives: in_batch alone, so there is no sampler to certify; "
            "objective.name=dcl certifies those of these images"
        )
    if views < 2 * count:
        raise SpecError(
            f"--views {views}: a step takes views.count: {count} of an image for its batch, and as many others may "
            f"stand beside them; give at least {2 * count}"
        )
    if any(what.ranked for what in contrast_for(spec).denominators):
        raise SpecError(
            f"objective: {spec.objective.name}: it takes the hardest candidates that there are, not a mean over them, "
            "so no gradient is exact and there is nothing to certify; objective.name=dcl certifies these negatives"
        )
    objective = contrast_for(spec).objective
    if objective.bends and not objective.looks_around and comb(views, count) > _MOST_WAYS:
        within = [most for most in range(2 * count, views) if comb(most, count) <= _MOST_WAYS]
        advice = f"give --views {within[-1]}" if within else "set views.count=2"
        raise SpecError(
            f"--views {views}: the exact loss of {spec.objective.name} is a mean over the {comb(views, count):,} ways "
            f"in which {count} of them stand together, which is too dear; {advice}"
        )
    nbytes = 4 * chosen * views * spec.encoder.features
    if chosen * views > _MOST_VIEWS or nbytes > _MOST_BYTES:
        raise SpecError(
            f"--samples {chosen:,} --views {views}: {chosen * views:,} features of {spec.encoder.features} numbers, "
            f"{nbytes / 2**20:,.0f} MiB, are too many to contrast each with each; at most {_MOST_VIEWS:,}, and "
            f"{_MOST_BYTES // 2**20:,} MiB"
        )
    return chosen


def choose(images: Images, samples: int, seed: int, most: int | None = None) -> NDArray[np.int64]:
    """A uniform choice of so many images, int64 [samples], in random order.

    With `most`, so many of a class at a time: classes one after the other, and where these are too few, again. So half
    of the choice is half of its classes.
    """
    rows = np.random.default_rng(seed).permutation(len(images))
    if most is None:
        return rows[:samples]
    _, seen, kind = np.unique(images.labels(rows), return_index=True, return_inverse=True)
    turn = seen[kind]  # of the class, by its first row: in random order
    by_class = turn.argsort(kind="stable")
    _, first, count = np.unique(turn[by_class], return_index=True, return_counts=True)
    place = np.empty_like(rows)
    place[by_class] = np.arange(len(rows)) - first.repeat(count)
    return rows[np.lexsort((turn, place // most))[:samples]]


def most_of_a_class(spec: Spec, samples: int) -> int | None:
    """How many images of a class to choose at a time; None where batches are not by class.

    As many as leave classes for `ROOM` batches, if each came once.
    """
    size = spec.data.per_class
    return None if size is None else max(size, samples * size // (ROOM * spec.micro_batch_size))


def untrained(spec: Spec, device: torch.device) -> Encoder:
    """The encoder with which training begins; in training mode where it has batch norms, which have seen nothing."""
    encoder = initial_encoder(spec, device)
    return encoder.train(any(isinstance(layer, _BatchNorm) for layer in encoder.modules()))


def certificates(
    spec: Spec,
    features: Tensor,
    columns: Mapping[str, Tensor],
    seconds: float = SECONDS,
    steps: int | None = None,
    learnt: nn.Module | None = None,
) -> list[Row]:
    """The rows of all ways to take negatives, over features [M, N, D], at the temperatures of the spec.

    What is known of the N images is in `columns`, as in `emc2dist.core.batch`. As many steps for each as `seconds`
    allow for all of them together, or `steps` >= 24. `learnt` is what the objective itself has learnt.
    """
    learnt = None if learnt is None else deepcopy(learnt).to("cpu", features.dtype)
    plans = list(_plans(spec, features, columns, learnt))
    if steps is None:
        steps = _steps_within(seconds, plans)
    say(f"the exact gradient of {spec.objective.name} over {features.shape[1]:,} images in {len(features)} views")
    exact: dict[tuple[float, int], Tensor] = {}
    for plan in plans:
        if plan.target not in exact and not plan.run().looks_around:  # else each step has one
            exact[plan.target] = plan.run().exact()
    rows = []
    with _one_thread(), closing(Progress(len(plans) * steps, unit="step")) as progress:
        for plan in plans:
            report = certify(plan.run(), steps, progress.add, exact.get(plan.target))
            rows.append(Row(plan.role, plan.spec, *plan.target, steps, report))
    return rows


class _Plan(NamedTuple):
    """A row to come."""

    role: Role
    spec: Spec
    temperature: float
    features: Tensor
    columns: Mapping[str, Tensor]
    learnt: nn.Module | None = None

    @property
    def target(self) -> tuple[float, int]:
        """What its exact gradient depends on: the temperature and N."""
        return self.temperature, self.features.shape[1]

    def run(self) -> FrozenRun:
        """A fresh one."""
        spec, batches = self.spec, None
        if spec.data.per_class is not None:
            labels, size = self.columns["label"].numpy(), spec.data.per_class
            order = EpochOrder(len(labels), spec.micro_batch_size, spec.seed, labels=labels, per_class=size)
            batches = partial(_batch, order)
        return FrozenRun(
            contrast_for(spec),
            self.features,
            spec.micro_batch_size,
            self.temperature,
            spec.seed,
            spec.views.count,
            columns=self.columns,
            batches=batches,
            learnt=self.learnt,
        )


def _batch(order: EpochOrder, step: int) -> Tensor:
    return torch.from_numpy(order.batch(step))


def _plans(spec: Spec, features: Tensor, columns: Mapping[str, Tensor], learnt: nn.Module | None) -> Iterator[_Plan]:
    samples = features.shape[1]
    half = features[:, : samples // 2]
    of_half = {name: values[: samples // 2] for name, values in columns.items()}
    end = spec.temperature if spec.temperature_end is None else spec.temperature_end
    for temperature in dict.fromkeys([spec.temperature, end]):
        for role, negatives in ways(spec, samples):
            changed = spec.model_copy(update={"negatives": negatives})
            yield _Plan(role, changed, temperature, features, columns, learnt)
        if half.shape[1] >= 2 * max(spec.micro_batch_size, spec.negatives.draws):
            yield _Plan("half", spec, temperature, half, of_half, learnt)


def ways(spec: Spec, samples: int) -> Iterator[tuple[Role, Negatives]]:
    """The spec's own negatives, the batch alone, and chains: of either kernel with every `carried`, and with more K."""
    own = spec.negatives
    common = {key: getattr(own, key) for key in InBatch.model_fields if key not in ("name", "balance")}
    batch = InBatch(name="in_batch", **common | {"draws": 0})
    chain = own if isinstance(own, Chain) else Chain(name="chain", kernel="isir", carried="cached", **common)
    yield "own", own
    seen: list[Negatives] = [own]
    others: list[tuple[Role, Negatives]] = [("batch", batch)]
    kinds = [*product(("mh", "isir"), ("reencode", "complete", "cached")), ("isir", "roulette")]
    for kernel, carried in kinds:  # `mh` encodes few again, and roulette hardly fewer
        others.append(("other", _changed(chain, kernel=kernel, carried=carried)))
    for proposals in (0, 64, 512):
        if ROOM * proposals <= samples:
            others.append(("other", _changed(chain, cache_proposals=proposals)))
    for role, given in others:
        negatives = _taken(spec, given)
        if negatives is not None and negatives not in seen:
            seen.append(negatives)
            yield role, negatives


def _taken(spec: Spec, negatives: Negatives) -> Negatives | None:
    """The negatives as the spec's objective takes them: chains that begin anew where no others may; None if not."""
    if spec.objective.refusal(negatives) is None:
        return negatives
    if not isinstance(negatives, Chain):
        return None
    anew = _changed(negatives, restart=True, cache_proposals=negatives.cache_proposals or _ROWS)
    return anew if spec.objective.refusal(anew) is None else None


def _changed(chain: Chain, **keys: object) -> Chain:
    """The chain with other keys; `isir` takes no burn-in."""
    values = chain.model_dump() | keys
    if values["kernel"] == "isir":
        values["burn_in_fraction"] = None
    if values["draws"] == 0 and values["carried"] != "cached":
        values["balance"] = None  # nothing is one-sided
    return Chain(**values)


def _steps_within(seconds: float, plans: list[_Plan]) -> int:
    """Steps of each, such that all together take about so long."""
    with _one_thread():
        cost = sum(_step_seconds(plan.run()) for plan in plans)
    return round(min(max(seconds / cost, _FEWEST_STEPS), _MOST_STEPS))


def _step_seconds(run: FrozenRun) -> float:
    """Of a step, once chains carry something, and of what its batch's exact gradient takes."""
    for t in range(_TRIED):
        if t == _TRIED // 2:
            began = perf_counter()
        run.step(t)
        if run.looks_around:
            run.exact_of_batch()
    return (perf_counter() - began) / (_TRIED - _TRIED // 2)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The tensors of a step are small: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
