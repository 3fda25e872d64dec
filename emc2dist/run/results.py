"""How good a run's encoder is, finished or running; what leaves it is in `emc2dist.run.exports`."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from emc2dist.config import S3, Data, Spec, dump, given_keys, parse
from emc2dist.data.images import Images, open_images, open_labelled
from emc2dist.errors import NonFiniteError, SpecError
from emc2dist.run.captions import evaluate_captions
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.run.texts import evaluate_pairs
from emc2dist.terminal import Progress, say
from emc2dist.train.evaluation import Evaluation
from emc2dist.train.measures import MOST_IN_PAIRS, all_measures

_HEEDED = (
    "data.path",
    "data.limit",
    "data.cache_dir",
    "data.cache_mib",
    "eval.voters",
    "eval.asked",
    "eval.neighbours",
)
_HEEDED_OF_PAIRS = ("data.path", "data.limit", "eval.asked")
_HEEDED_OF_CAPTIONS = (*_HEEDED_OF_PAIRS, "eval.prompts")


def evaluate(run: str | Path, overrides: Sequence[str] = (), *, s3: S3 | None = None) -> dict[str, Any]:
    """All measures (`emc2dist.train.measures`) of a checkpoint, a run's newest, on all images of the run's data.

    Of the representation, and of the feature, by these names. Of a run over pairs, `evaluate_pairs`, and over
    images with captions, `evaluate_captions`.

    `overrides` are KEY=VALUE, of the run's spec: `data.path=PATH` where the data have moved. What `s3` was given goes
    before what the run's spec says, for the run folder and for the data.

    Raises:
        SpecError: an override is none of the spec's, or is of no use here.
        RunError: there is no run or no whole checkpoint. DataError: the data is gone or has no labels.
        NonFiniteError: the run has diverged.
    """
    newest = LoadedCheckpoint.at(run, s3)
    spec = parse(dump(newest.spec), overrides, source=str(newest.place)) if overrides else newest.spec
    _refuse_unheeded(overrides, spec)
    s3 = spec.s3.overridden(s3)
    if spec.of_texts:
        measured = evaluate_captions if spec.of_images else evaluate_pairs
        return measured(newest, spec.model_copy(update={"s3": s3}))
    train = open_images(spec.data, "train", s3)
    assert train is not None, "open_images raises where there are no training images"
    evaluation = Evaluation(spec, open_labelled(spec.data, spec.eval, train, s3), whole=True)
    remarks = newest.on_other_images(spec.data, train) + _on_limit(newest.spec.data, train, spec.data)
    remarks += [*train.remarks, *evaluation.remarks]
    for remark in remarks:
        say(remark)
    with closing(Progress(evaluation.images, unit="image")) as progress:
        bank, queries = evaluation.represent(newest.encoder, newest.device, progress.add)
    if not (bank.isfinite().all() and queries.isfinite().all()):
        raise NonFiniteError(f"{newest.place}: its encoder's representations are not finite; the run has diverged")
    pair = evaluation.pair(newest.encoder, newest.device, MOST_IN_PAIRS).to(newest.device)
    say("encoded; now the measures of it")
    return {
        "checkpoint": str(newest.place),
        "data": spec.data.path,
        "bank": len(bank),
        "queries": len(queries),
        "neighbours": evaluation.neighbours,
        **all_measures(evaluation, newest.encoder, bank, queries, pair),
        "remarks": [*newest.remarks, *remarks],
    }


def _refuse_unheeded(overrides: Sequence[str], spec: Spec) -> None:
    """Raise SpecError where an override would be read by nobody here."""
    heeded: tuple[str, ...] = _HEEDED
    what = "all labelled images vote and are asked about"
    if spec.of_texts:
        heeded, what = _HEEDED_OF_PAIRS, "all queries are asked among all documents"
    if spec.data.kind == "captions":
        heeded, what = _HEEDED_OF_CAPTIONS, "all images and captions of a split are asked for each other"
    for key in given_keys(overrides):
        if key not in heeded and not key.startswith("s3."):
            raise SpecError(
                f"{key}: is for training; {what} here, once. Leave it out; what can be set is {', '.join(heeded)} "
                "and s3"
            )


def _on_limit(own: Data, train: Images, data: Data) -> list[str]:
    """A remark where the limit of a run's own data holds for other data too."""
    if data.path == own.path or not data.limit == own.limit == len(train):
        return []
    return [f"data.limit: no more than the first {data.limit:,} training images are taken, as in the run"]
