"""The checkpoints of a run folder: sent there, looked through, chosen from to resume, and removed when old.

A checkpoint counts if it is whole, which can be seen from itself (see `emc2dist.train.checksums`), and this run's, by
the spec that it holds. So the folder is the only list there is. Ray Train keeps another one beside it, which it
overwrites in place and refuses to start with where it is torn or names a checkpoint that is gone: `drop_rays_list` has
it begin anew each time, and nobody reads it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from emc2dist import files
from emc2dist.config import Spec, differences
from emc2dist.errors import RunError, SpecError, StorageError, StorageUnreachable
from emc2dist.files import Place
from emc2dist.run.folder import RunFolder, checkpoint_name, step_of
from emc2dist.store import Layout
from emc2dist.train import checkpoint, collectives

_TOLD = 3


class State(NamedTuple):
    """A checkpoint's state, as its files tell it."""

    place: Place
    step: int
    created: str | None
    """When, UTC; None where its manifest does not say."""
    nbytes: int
    problem: str | None
    """What is missing, damaged or another run's; None where it is whole."""
    leaves: bool = False
    """Whether it has gone, or goes, for newer ones are whole: then nothing is amiss with the run."""


class Choice(NamedTuple):
    """The checkpoint that a run resumes from."""

    folder: Path | None
    """A local folder with what this rank needs, verified; None to begin at step 0."""
    step: int
    passed_over: list[str]
    """What is wrong with the newer checkpoints, each by its name."""


def examine(run: RunFolder, *, contents: bool) -> Iterator[State]:
    """The checkpoints, newest first: all they hold is read, or (not `contents`) names and sizes alone.

    A run that goes on removes its oldest ones meanwhile.
    """
    spec = run.spec()
    for place in run.checkpoints():
        state = _state(spec, place, contents)
        yield state if state.problem is None else state._replace(leaves=_leaves(run, spec, place))


def spec_of(place: Place, manifest: checkpoint.Manifest, spec: Spec) -> Spec:
    """The spec of a checkpoint in the folder of the run of `spec`: the same, but for what may change as a run resumes.

    Raises:
        RunError: it was copied or renamed here: it is another run's, or of another step than its name says.
    """
    try:
        own = manifest.parsed_spec()
    except SpecError as error:
        raise RunError(f"{checkpoint.MANIFEST} is damaged ({error})") from error
    others = differences(own, spec)
    if others:
        told = "; ".join(others[:_TOLD])
        if len(others) > _TOLD:
            told += f"; and {len(others) - _TOLD} keys more"
        raise RunError(f"is of another run than spec.yaml beside it ({told}); move it back to the folder of its own")
    if manifest.step != step_of(place):
        raise RunError(
            f"is of step {manifest.step}, not of the one in its name; name it {checkpoint_name(manifest.step)}"
        )
    return own


def choose(run: RunFolder, layout: Layout, scratch: Path, expendable: int) -> Choice:
    """The newest checkpoint whose files are as they were written, the same on every rank. Every rank calls it.

    `scratch` takes what has to be fetched. Where none is whole the run begins anew if none is of a step later than
    `expendable`: the first one a run makes may have been cut short.

    Raises:
        RunError: none is whole, and more would be lost than that.
    """
    passed_over: list[str] = []
    spec = run.spec()
    listed = [place.name for place in run.checkpoints()] if collectives.rank() == 0 else []
    names = collectives.broadcast_text(" ".join(listed)).split()  # what rank 0 sees is what all see
    places = [run.place / name for name in names]
    for place in places:
        folder, problem = _fetch(spec, place, layout, scratch / place.name)
        problems = [text for text in collectives.gather_texts(problem) if text]
        if not problems:
            return Choice(folder, step_of(place), passed_over)
        passed_over.append(problems[0])
    if places and step_of(places[0]) > expendable:
        raise RunError(
            f"{run.place}: no checkpoint is whole ({'; '.join(passed_over)}); remove them to begin this run anew"
        )
    return Choice(None, 0, passed_over)


def newest(run: RunFolder) -> checkpoint.Manifest | None:
    """The newest checkpoint's manifest that can be read and is this run's; None where there is none."""
    for place in run.checkpoints():
        try:
            manifest = checkpoint.read_manifest(place)
            spec_of(place, manifest, run.spec())
            return manifest
        except StorageUnreachable:
            raise
        except (RunError, StorageError):  # unfinished, damaged or another run's, as the workers will say
            continue
    return None


def send(folder: Path, place: Place) -> None:
    """Move this rank's files of a checkpoint to `place`, its list last, and remove the folder."""
    for path in sorted(folder.iterdir(), key=lambda path: (path.name.startswith("checksums-"), path.name)):
        (place / path.name).put(path)
    folder.rmdir()


def prune(run: RunFolder, keep: int) -> None:
    """Remove the checkpoints older than the `keep` newest that are whole by names and sizes.

    So an unfinished or truncated one never takes the place of a good one; and the newest is never removed.
    """
    whole = [state for state in examine(run, contents=False) if state.problem is None]
    if len(whole) > keep:
        for place in run.checkpoints():
            if step_of(place) < whole[keep - 1].step:
                place.remove()


def drop_rays_list(run: RunFolder) -> None:
    """Remove Ray Train's list of the checkpoints of an earlier start."""
    (run.place / "checkpoint_manager_snapshot.json").remove()


def _leaves(run: RunFolder, spec: Spec, place: Place) -> bool:
    """Whether a checkpoint is gone, or one that `prune` removes."""
    listed = run.checkpoints()
    newer = (one for one in listed if step_of(one) > step_of(place))
    whole = sum(_state(spec, one, contents=False).problem is None for one in newer)
    return place.name not in {one.name for one in listed} or whole >= spec.checkpoint.keep


def _state(spec: Spec, place: Place, contents: bool) -> State:
    size = sum(entry.size for entry in place.entries())
    try:
        manifest = checkpoint.verify(place, contents=contents)
        spec_of(place, manifest, spec)
    except StorageUnreachable:
        raise
    except (RunError, StorageError) as error:
        return State(place, step_of(place), None, size, str(error))
    return State(place, manifest.step, manifest.created, size, None)


def _fetch(spec: Spec, place: Place, layout: Layout, scratch: Path) -> tuple[Path | None, str]:
    """The folder of this rank's files, verified; or what is wrong with them, in a line."""
    scratch.mkdir()
    try:
        folder = checkpoint.fetch(place, scratch, layout)
        spec_of(place, checkpoint.read_manifest(files.at(folder)), spec)
        return folder, ""
    except StorageUnreachable:
        raise
    except (RunError, StorageError) as error:  # a sector that cannot be read is damage, too
        return None, f"{place}: {error}"
