"""A certificate for people: one paragraph in words, a table, and a picture.

Every sentence follows from the rows by a rule of its own, a function of that sentence alone. Distances are those of
`emc2dist.train.certificate.Row`; what is nearer by less than a tenth counts as equal.
"""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from emc2dist import files
from emc2dist.config import S3, Spec
from emc2dist.config.negatives import Chain, Negatives
from emc2dist.errors import SpecError
from emc2dist.files import Place
from emc2dist.plotting import COLOURS, FONT, GREY, add_legend, frame, new_figure, render
from emc2dist.run.certificate import Certificate
from emc2dist.terminal import columns
from emc2dist.train.certificate import AVERAGED, ROOM, Row

EQUAL = 0.1
"""Share by which a distance has to be smaller to count as nearer."""

_FORMATS = (".png", ".pdf", ".svg")


def name_of(negatives: Negatives) -> str:
    """What a row is called."""
    name = negatives.name.replace("_", " ")
    if isinstance(negatives, Chain):
        name = f"{negatives.kernel}, {negatives.carried}, K = {negatives.cache_proposals}"
    return f"{name}, {negatives.draws} draws" if negatives.draws else name


def words(certificate: Certificate) -> str:
    """The paragraph."""
    by_temperature = _by_temperature(certificate.rows)
    sentences: list[str] = []
    for temperature, rows in by_temperature.items():
        where = f"At temperature {temperature:g}" + (" " + _end(certificate.spec, temperature)).rstrip()
        sentences += [f"{where}, batches of {rows[0].spec.micro_batch_size:,}: {off(rows)}", worth(rows), advice(rows)]
    first = next(iter(by_temperature.values()))
    sentences += [price(first), flattered(first), size(certificate.rows, certificate.images), encoder(certificate)]
    sentences.append("A nearer gradient is not yet a better representation.")
    return " ".join(sentence for sentence in sentences if sentence)


def off(rows: Sequence[Row]) -> str:
    """How far the averages are off: of the spec's own negatives, and of the batch alone."""
    own, batch = _own(rows), _batch(rows)
    whose = f"your negatives ({name_of(own.spec.negatives)})"
    told = f"after {own.steps:,} steps the mean gradient of {whose} is {_off(own)}"
    return f"{told}." if batch is own else f"{told}; that of in-batch softmax is {_off(batch)}."


def _off(row: Row) -> str:
    if row.is_biased:
        return f"off the exact one by a bias of {row.bias:.2f} of its length"
    return (
        f"no farther off the exact one than noise: a bias below {row.least:.2f} of its length cannot be told from none"
    )


def worth(rows: Sequence[Row]) -> str:
    """Whether a sampler is nearer than the batch alone, for what both encode."""
    own, batch = _own(rows), _batch(rows)
    which, sampler, verb = "Your sampler", own, "is"
    if batch is own:
        which, sampler, verb = "A sampler", min((row for row in rows if row.role == "other"), key=_distance), "would be"
    if _undecided(sampler, batch):
        return (
            f"Whether a sampler is worth it cannot be told: in-batch softmax shows no bias in {batch.steps:,} steps "
            "that one could remove; give more --seconds, or do without."
        )
    numbers = f"{sampler.distance:.2f} against {batch.distance:.2f} off for the encodings of {AVERAGED:,} plain steps"
    if _nearer(sampler, batch):
        return f"{which} {verb} worth it at this batch size: {numbers}."
    verdict = "in-batch softmax is nearer" if _nearer(batch, sampler) else "it makes no difference"
    return f"{which} {verb} not worth it at this batch size, {verdict}: {numbers}."


def advice(rows: Sequence[Row]) -> str:
    """Which negatives to take; nothing where no bias can be told apart from none."""
    own, best = _own(rows), pick(rows)
    if not any(row.is_biased for row in rows):
        return ""
    if best is own:
        return "Keep your negatives: nothing that was tried is nearer by a tenth."
    return f"Of what was tried take {spelt(best.spec)}: {best.distance:.2f} against {own.distance:.2f} of yours."


def pick(rows: Sequence[Row]) -> Row:
    """The nearest row; among equals the spec's own, then the batch alone, then what encodes and proposes least."""
    nearest = min(rows, key=_distance)
    equals = [row for row in rows if not _nearer(nearest, row)]

    def effort(row: Row) -> tuple[bool, bool, float, int]:
        negatives = row.spec.negatives
        proposals = negatives.cache_proposals if isinstance(negatives, Chain) else 0
        return row.role != "own", row.role != "batch", row.reencoded_images, proposals

    return min(equals, key=effort)


def spelt(spec: Spec) -> str:
    """Negatives as a spec has them."""
    negatives = spec.negatives
    keys = [f"name: {negatives.name}"]
    if isinstance(negatives, Chain):
        keys += [f"{key}: {getattr(negatives, key)}" for key in ("kernel", "carried", "cache_proposals")]
    return f"`objective: {spec.objective.name}` with `negatives: {{{', '.join(keys)}}}`"


def price(rows: Sequence[Row]) -> str:
    """What the spec's own negatives encode beside the batch."""
    own = _own(rows)
    if not own.reencoded_images:
        return ""
    return f"Your negatives encode {own.reencoded_images:.1f} images a step again, beside {own.images:,} of the batch."


def flattered(rows: Sequence[Row]) -> str:
    """That K proposals are a large part of the frozen images."""
    own = _own(rows)
    proposals = own.spec.negatives.cache_proposals if isinstance(own.spec.negatives, Chain) else 0
    if proposals * ROOM <= own.samples:
        return ""
    return (
        f"K = {proposals:,} draws {min(1.0, proposals / own.samples):.0%} of these images at once, which flatters it; "
        f"give --samples {ROOM * proposals:,}."
    )


def size(rows: Sequence[Row], images: int) -> str:
    """What the number of images does to the bias."""
    own = _own(rows)
    batch = own.spec.micro_batch_size
    told = []
    if own.samples < images:
        told.append(
            f"These are {own.samples:,} of {images:,} images, and fewer flatter: an anchor comes back after "
            f"{own.samples / batch:.0f} steps here, after {images / batch:.0f} there, so expect at "
            "least this bias there"
        )
    half = next((row for row in rows if row.role == "half"), None)
    if half is not None and (half.is_biased or own.is_biased):
        told.append(
            f"from {half.samples:,} to {own.samples:,} images the bias of yours went from "
            f"{half.bias:.2f} to {own.bias:.2f}"
        )
    text = "; ".join(told)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def encoder(certificate: Certificate) -> str:
    """Whose features these are."""
    if certificate.trained_steps is None:
        return "The encoder is untrained: certify the run too, once it has a checkpoint."
    return f"The encoder is that of step {certificate.trained_steps:,}."


def table(certificate: Certificate) -> str:
    """A line for each row."""
    several = len(_by_temperature(certificate.rows)) > 1
    closed, valued = (
        any(name in row.report.facts for row in certificate.rows) for name in ("closed_ratio", "log_z_error")
    )
    heads = ["NEGATIVES", "N", *(["TEMPERATURE"] if several else []), "RELBIAS", "BIAS", "FLOOR", "IACT", "ERROR"]
    names = ["acceptance_rate", "carried_weight_ratio", "effective_sample_size", *(["closed_ratio"] if closed else [])]
    heads += ["ACCEPTED", "CARRIED", "ESS", *(["CLOSED"] if closed else [])]
    heads += [*(["LOG Z", "RMS"] if valued else []), "AGAIN", "DISTANCE"]
    lines = [heads]
    for row in certificate.rows:
        report, facts = row.report, row.report.facts
        lines.append(
            [
                f"{'your ' if row.role in ('own', 'half') else ''}{name_of(row.spec.negatives)}",
                f"{row.samples:,}",
                *([f"{row.temperature:g}"] if several else []),
                f"{report.relbias:.3f}",
                f"{row.bias:.3f}" if row.is_biased else f"<{row.least:.3f}",
                f"{report.floor:.3f}",
                f"{report.iact:.1f}",
                f"{report.error:.1f}",
                *(f"{facts[name]:.3g}" if name in facts else "-" for name in names),
                *([f"{facts['log_z_error']:+.2f}", f"{facts['log_z_rms_error']:.2f}"] if valued else []),
                f"{row.reencoded_images:.1f}",
                f"{row.distance:.3f}",
            ]
        )
    return columns(lines, numbers=range(1, len(heads)))


def as_result(certificate: Certificate) -> dict[str, Any]:
    """All of it, for JSON."""
    spec = certificate.spec
    return {
        "of": certificate.of,
        "trained_steps": certificate.trained_steps,
        "objective": spec.objective.model_dump(mode="json"),
        "batch_size": spec.micro_batch_size,
        "views": certificate.views,
        "images": certificate.images,
        "rows": [_row(row) for row in certificate.rows],
        "words": words(certificate),
        "remarks": certificate.remarks,
    }


def _row(row: Row) -> dict[str, Any]:
    report = row.report
    return {
        "role": row.role,
        "negatives": row.spec.negatives.model_dump(mode="json"),
        "temperature": row.temperature,
        "samples": row.samples,
        "steps": row.steps,
        "relbias": report.relbias,
        "floor": report.floor,
        "iact": report.iact,
        "ratio": report.ratio,
        "error": report.error,
        "biased": row.is_biased,
        "bias": row.bias,
        "least_bias": row.least,
        "distance": row.distance,
        "batch_images": row.images,
        "reencoded_images": row.reencoded_images,
        "curve": report.curve,
        "facts": report.facts,
    }


def picture_place(out: str, s3: S3 | None = None) -> Place:
    """Where the picture is to be written; to be asked before there is one.

    Raises:
        SpecError: it is no name of a picture. StorageError: it cannot be written there.
    """
    place = files.at(out, s3)
    files.refuse_folder(out)
    if PurePath(place.name).suffix not in _FORMATS:
        raise SpecError(f"{out}: is no picture that can be written; call it *.png, *.pdf or *.svg")
    place.entry() if place.remote else files.writable(out)
    return place


def picture(certificate: Certificate, kind: str = "png") -> bytes:
    """relbias against steps, a panel for each temperature; dotted what independent unbiased samples would leave."""
    by_temperature = _by_temperature(certificate.rows)
    figure = new_figure(4.6 * len(by_temperature) + 2.0, 4.2)
    panels = figure.subplots(1, len(by_temperature), sharey=True, squeeze=False)[0]
    for axes, (temperature, rows) in zip(panels, by_temperature.items(), strict=True):
        _panel(axes, rows)
        axes.set_title(f"temperature {temperature:g}, batches of {rows[0].spec.micro_batch_size:,}", fontsize=FONT)
    panels[0].set_ylabel("distance of the mean gradient, over its length", fontsize=FONT)
    add_legend(panels[-1], loc="center left", bbox_to_anchor=(1.0, 0.5))
    return render(figure, kind)


def _panel(axes: Axes, rows: Sequence[Row]) -> None:
    for number, row in enumerate(rows):
        steps, values = zip(*row.report.curve, strict=True)
        colour, own = COLOURS[number % len(COLOURS)], row.role == "own"
        name = f"{'yours: ' if own else ''}{name_of(row.spec.negatives)}"
        axes.plot(steps, values, color=colour, linewidth=2.4 if own else 1.3, label=name, zorder=3 if own else 2)
        floors = [row.report.floor * (row.steps / count) ** 0.5 for count in steps]
        axes.plot(steps, floors, ":", color=colour, linewidth=1.0, zorder=1)
    axes.plot([], [], ":", color=GREY, linewidth=1.0, label="noise alone")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("steps", fontsize=FONT)
    frame(axes)


def _end(spec: Spec, temperature: float) -> str:
    """Which of a schedule's it is."""
    if spec.temperature_end is None or spec.temperature_end == spec.temperature:
        return ""
    return "(the start's)" if temperature == spec.temperature else "(the end's)"


def _by_temperature(rows: Sequence[Row]) -> dict[float, list[Row]]:
    """Those over all frozen images; not over half of them."""
    whole: dict[float, list[Row]] = {}
    for row in rows:
        if row.role != "half":
            whole.setdefault(row.temperature, []).append(row)
    return whole


def _own(rows: Sequence[Row]) -> Row:
    return next(row for row in rows if row.role == "own")


def _batch(rows: Sequence[Row]) -> Row:
    """The batch alone, which may be the spec's own."""
    return next((row for row in rows if row.role == "batch"), _own(rows))


def _undecided(one: Row, other: Row) -> bool:
    return not one.is_biased and not other.is_biased


def _distance(row: Row) -> float:
    return row.distance


def _nearer(one: Row, other: Row) -> bool:
    return one.distance < (1 - EQUAL) * other.distance
