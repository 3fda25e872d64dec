"""Vectors out: what a run's encoder makes of images or texts, as one Parquet file; and what lies nearest in it.

images.py   representations and features of a set of images, in parts, so that what was cut off goes on
texts.py    features of any texts
nearest.py  the rows nearest to one of them, or to something new
"""

from pathlib import Path, PurePath
from typing import Any

from emc2dist import files
from emc2dist.config import S3
from emc2dist.errors import RunError, SpecError, StorageError
from emc2dist.run.folder import refuse_runs_own
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.run.vectors.images import embed_images
from emc2dist.run.vectors.texts import embed_texts


def embed(
    run: str | Path, source: str | Path, out: str | Path, *, s3: S3 | None = None, **options: Any
) -> dict[str, Any]:
    """Write what the encoder of a run makes of a source, as Parquet at `out`, whole or not at all.

    Args:
        run: a run folder, or one checkpoint of it.
        source: of a run over images a set of them, see `embed_images`; else a file of texts, see `embed_texts`.
        out: a file, on disk or S3.
        s3: goes before what the run's spec says.
        options: those of `embed_images` or `embed_texts`; None is left out.

    Raises:
        SpecError: an option is of the other kind of run, or `out` is named as a file of another format. RunError: there
        is no checkpoint, or captions are to be embedded as images. StorageError: `out` is what is read, or a run's own.
        Else see these two.
    """
    _refuse_other_endings(out)
    _refuse_what_is_read(out, source)
    newest = LoadedCheckpoint.at(run, s3)
    refuse_runs_own(out)
    given = {name: value for name, value in options.items() if value is not None}
    if newest.spec.of_images and newest.spec.of_texts and _is_of_texts(source) and given.get("side") != "document":
        raise RunError(f"{run}: its queries are images, and captions are documents; give --side document")
    # Of images with captions, the captions are documents.
    of_texts = newest.spec.of_texts and (not newest.spec.of_images or given.get("side") == "document")
    for name in ("splits",) if of_texts else ("side", "column"):
        if name in given:
            kind = newest.spec.data.kind
            raise SpecError(f"--{name.rstrip('s')}: is not of a run over {kind}, as {run} is; leave it out")
    return (embed_texts if of_texts else embed_images)(newest, source, out, s3=newest.spec.s3.overridden(s3), **given)


def _is_of_texts(source: str | Path) -> bool:
    """Whether it can be no set of images: a file that is no Parquet."""
    path = str(source)
    return not files.is_remote(path) and files.local(path).is_file() and PurePath(path).suffix != ".parquet"


def _refuse_other_endings(out: str | Path) -> None:
    suffix = PurePath(str(out)).suffix
    if suffix not in ("", ".parquet") or str(out) == "-":
        raise SpecError(f"{out}: Parquet is what is written, and to a file; call it *.parquet")


def _refuse_what_is_read(out: str | Path, source: str | Path) -> None:
    """Raise StorageError where `out` would take the place of the source, or lie in the set that is read."""
    if files.is_remote(str(out)) or files.is_remote(str(source)):
        same = str(out) == str(source) or str(out).startswith(f"{str(source).rstrip('/')}/")
    else:
        target, read = files.local(out).resolve(), files.local(source).resolve()
        same = target == read or read in target.parents
    if same:
        raise StorageError(f"{out}: is, or lies in, what is read ({source}); name another file")
