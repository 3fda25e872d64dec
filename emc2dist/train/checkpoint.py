"""What a run resumes from: encoder, optimiser, step and the rows of every shard, of one and the same step.

    manifest.json                 step, resolved spec, samples, shards, version
    trainer.safetensors           encoder and optimiser
    shard-00000-of-00002.safetensors ...
    pending-00000-of-00002.safetensors ...   only where a run was stopped within an epoch
    checksums-00000-of-00002.json ...        a rank's list of what it wrote, see `checksums`

Ranks write different files of one folder: rank 0 the first two, rank r the shards r, r + W, ... There is no other
state: order of the data, views, chains' randomness, learning rate and temperature are functions of the step. Shards may
be read back into another number of shards, and by another number of workers. Nothing here is a pickle: numbers and
JSON alone, so that who can write to the run folder cannot have code run.

`verify` comes before anything is read; the other readers take what it has passed.

Within an epoch reads run ahead of the steps (see `emc2dist.train.memory`). A run that is stopped there must go on with
what these would have seen, so its shards' rows are older than the step, and the commits since lie beside them.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from math import gcd
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors
from torch import Tensor, nn

import emc2dist
from emc2dist import files
from emc2dist.config import Spec, dump, parse
from emc2dist.core.columns import as_of_step_0
from emc2dist.data.images import Images
from emc2dist.data.texts.documents import Documents
from emc2dist.data.texts.pairs import Pairs
from emc2dist.errors import RunError, StorageError
from emc2dist.files import Place
from emc2dist.store import ChainStore, Column, Commit, Layout, Rows, Schema, Tables, nbytes
from emc2dist.towers.images import versioned
from emc2dist.towers.optim import restore_optimiser
from emc2dist.train import checksums, collectives, tensors
from emc2dist.train.model_files import ModelFiles

MANIFEST, TRAINER = "manifest.json", "trainer.safetensors"
PIECE_NBYTES = 64 * 2**20
"""A shard's rows are read and written so many bytes at a time."""


class Manifest(BaseModel):
    """What a checkpoint says of itself."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    step: Annotated[int, Field(ge=0)]
    """Steps taken."""
    applied: int
    """The step that the shards' rows show: the last one taken, or an earlier one where later commits are pending."""
    samples: Annotated[int, Field(ge=1)]
    """Rows of the dataset it was trained on."""
    fingerprint: str
    """Of the training images, see `emc2dist.data.images.Images`; or pairs."""
    model: dict[str, str] = {}
    """SHA-256 of each file that a run over pairs keeps of its model, see `emc2dist.train.model_files`."""
    began: dict[str, str] = {}
    """SHA-256 of what the run began with, by the key that names it: `encoder.weights` or `start_from`."""
    shards: Annotated[int, Field(ge=0, le=65_536)]
    """Shard files it holds."""
    ranks: Annotated[int, Field(ge=1, le=65_536)]
    """Ranks that wrote it."""
    generation: str
    """Names the start of the workers that wrote it."""
    created: str
    """When, UTC."""
    spec: str
    """The resolved spec, YAML."""
    version: str
    """emc2dist's."""

    def parsed_spec(self) -> Spec:
        """The spec that the checkpoint was made under."""
        return parse(self.spec, source="the checkpoint's manifest.json")

    def change(self, train: Images | Pairs | Documents) -> str | None:
        """What has become of the training set since, as in "20 training images, not the 24"; None if nothing has."""
        what = "texts" if isinstance(train, Pairs | Documents) else "images"
        if len(train) != self.samples:
            return f"{len(train):,} training {what}, not the {self.samples:,}"
        return f"other training {what} than the {self.samples:,}" if train.fingerprint != self.fingerprint else None


def save(
    folder: Path, step: int, applied: int, spec: Spec, encoder: nn.Module, optimiser: torch.optim.Optimizer,
    store: ChainStore, generation: str, fingerprint: str, follower: nn.Module | None = None,
    model: ModelFiles | None = None, began: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Write this rank's files, into an empty folder, of the checkpoint after `step` steps; rows as of step `applied`.

    `fingerprint` is the training set's, `model` what a run over pairs keeps of its model, `began` as in `Manifest`.
    All ranks' commits of all steps must be in the store, and no rank's reads on their way.

    Raises:
        StorageError: the disk is full, or cannot be written to.
    """
    try:
        parts = (encoder, optimiser, store, generation, fingerprint, follower, model, began or {})
        _save(folder, step, applied, spec, *parts)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{folder}: {error}; see that its disk has room, then run it again") from error


def _save(
    folder: Path, step: int, applied: int, spec: Spec, encoder: nn.Module, optimiser: torch.optim.Optimizer,
    store: ChainStore, generation: str, fingerprint: str, follower: nn.Module | None, model: ModelFiles | None,
    began: Mapping[str, str],
) -> None:  # fmt: skip
    shards = store.layout.shards if store.schema else 0
    for shard in range(collectives.rank(), shards, collectives.world_size()):
        _save_shard(folder / _name("shard", shard, shards), store, generation, shard, applied)
        pending = store.pending(generation, shard)
        if pending:
            path = folder / _name("pending", shard, shards)
            with tensors.as_any_file(path):
                save_file(_flat_commits(pending), path)
    if collectives.rank() == 0:
        _save_trainer(folder / TRAINER, encoder, optimiser, follower)
        manifest = Manifest(
            step=step, applied=applied, samples=store.layout.samples, fingerprint=fingerprint, shards=shards,
            model=model.sha256 if model else {}, began=dict(began), ranks=collectives.world_size(),
            generation=generation, created=datetime.now(UTC).isoformat(timespec="seconds"), spec=dump(spec),
            version=emc2dist.__version__,
        )  # fmt: skip
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1))
    checksums.write(folder, generation)


def refuse_other_data(where: object, manifest: Manifest, train: Images | Pairs | Documents) -> None:
    """Raise RunError where the training set is not that which the checkpoint at `where` was made on."""
    change = manifest.change(train)
    if change:
        raise RunError(
            f"{where}: the data now hold {change} that it was made on; resume with the same data, which may lie "
            "elsewhere but not be written anew, or give the run a new name"
        )


def read_manifest(place: Place) -> Manifest:
    """The manifest of a checkpoint. Raises RunError where there is none."""
    if (place / MANIFEST).entry() is None:
        raise RunError(f"{MANIFEST} is missing")
    return checksums.parsed(Manifest, place / MANIFEST)


def verify(place: Place, names: Collection[str] | None = None, *, contents: bool = True) -> Manifest:
    """The manifest of a checkpoint whose files (or those `names`) are there and as they were written.

    With `contents` every byte is read; without, names and sizes alone are looked at.

    Raises:
        RunError: something is missing or damaged; names it.
    """
    manifest = read_manifest(place)
    listed = checksums.read(place, manifest.ranks, manifest.generation)
    checksums.check(place, listed, listed if names is None else names, contents=contents)
    return manifest


def fetch(place: Place, scratch: Path, layout: Layout | None) -> Path:
    """A local folder, on disk `place` itself, with the files that this rank needs to resume with `layout`, verified.

    Without a layout those are the trainer's alone. What has to be fetched goes into `scratch`, an empty folder.

    Raises:
        RunError: the checkpoint is not whole, as far as names, sizes and what this rank needs can tell.
    """
    manifest = verify(place, contents=False)
    names = {MANIFEST, TRAINER}
    if layout is not None:
        written = checksums.read(place, manifest.ranks, manifest.generation)
        names |= {name for name in written if name.startswith("pending-")} | _share(manifest, layout)
    lists = {checksums.list_name(rank, manifest.ranks) for rank in range(manifest.ranks)}
    folder = place.fetch(scratch, names | lists)
    verify(files.at(folder), names)
    return folder


def restore_trainer(
    folder: Path,
    encoder: nn.Module,
    optimiser: torch.optim.Optimizer | None = None,
    follower: nn.Module | None = None,
    *,
    own_groups: bool = False,
) -> None:
    """Put back what is given, `own_groups` as in `restore_optimiser`.

    Raises RunError where the checkpoint's are others, with what does not fit.
    """
    state = load_trainer(folder)
    with _understood(folder / TRAINER):
        encoder.load_state_dict(versioned(state["encoder"], encoder))
        if optimiser is not None:
            restore_optimiser(optimiser, state["optimiser"], own_groups=own_groups)
        if follower is not None:
            follower.load_state_dict(versioned(state["follower"], follower))


def fingerprint(folder: Path) -> str:
    """SHA-256 of the encoder and the optimiser of a checkpoint, hexadecimal."""
    with (folder / TRAINER).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_trainer(folder: Path) -> dict[str, Any]:
    """State dicts of `encoder`, `follower` (empty without) and `optimiser`, on the CPU.

    Raises RunError where the file holds something else.
    """
    towers: dict[str, dict[str, Tensor]] = {"encoder": {}, "follower": {}}
    state: dict[int, dict[str, Tensor]] = {}
    with _understood(folder / TRAINER), safe_open(folder / TRAINER, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (it is no dict)
            part, name = key.split("/", 1)
            if part in towers:
                towers[part][name] = file.get_tensor(key)
            else:
                parameter, slot = name.split("/")
                state.setdefault(int(parameter), {})[slot] = file.get_tensor(key)
        groups = json.loads(file.metadata()["param_groups"])
    return {**towers, "optimiser": {"state": state, "param_groups": groups}}


def restore_store(
    folder: Path, manifest: Manifest, store: ChainStore, generation: str, *, views_at_0: int | None = None
) -> None:
    """Put this rank's share of the shards back, re-sharding where their number has changed.

    With `views_at_0`, V, as what a new run begins with (`emc2dist.core.columns.as_of_step_0`).
    """
    if not store.schema:
        return
    old = Layout(manifest.samples, manifest.shards)
    for shard in range(collectives.rank(), store.layout.shards, collectives.world_size()):
        for start, stop in _pieces(store.schema, store.layout.rows(shard)):
            tables = _rows_of(folder, old, store.layout.indices(shard, start, stop), store.schema)
            applied = manifest.applied
            if views_at_0 is not None:
                applied = -1
                tables = {table: as_of_step_0(named, manifest.step, views_at_0) for table, named in tables.items()}
            store.restore(generation, applied, shard, tables, start, stop)


def resend_pending(folder: Path, manifest: Manifest, store: ChainStore, generation: str) -> None:
    """Send the store the commits that its restored rows do not show yet. One rank does, once all shards are back."""
    parts: dict[tuple[int, int], dict[str, list[Rows]]] = {}
    for shard in range(manifest.shards):
        path = folder / _name("pending", shard, manifest.shards)
        with _understood(path):
            for commit in _commits(tensors.columns(path)) if path.exists() else ():
                for table, rows in commit.writes.items():
                    parts.setdefault((commit.step, commit.rank), {}).setdefault(table, []).append(rows)
    # Whole again: a shard takes a commit of one step and rank once, and shards may be fewer now.
    commits = [Commit(*key, {table: _joined(rows) for table, rows in parts[key].items()}) for key in sorted(parts)]
    store.resend(generation, commits, manifest.applied)


def read_table(place: Place, manifest: Manifest, scratch: Path, table: str) -> dict[str, NDArray]:
    """The columns of one table, [samples, ...] in the order of the dataset; empty where there is no such table.

    What has to be fetched goes into `scratch`. Raises RunError where a shard's file is missing or damaged.
    """
    layout = Layout(manifest.samples, max(1, manifest.shards))
    names = [_name("shard", shard, manifest.shards) for shard in range(manifest.shards)]
    verify(place, names)
    folder = place.fetch(scratch, names)
    read: dict[str, NDArray] = {}
    for shard, name in enumerate(names):
        with _understood(folder / name):
            for key, rows in tensors.columns(folder / name).items():
                if key.startswith(f"{table}/"):
                    empty = np.empty((manifest.samples, *rows.shape[1:]), rows.dtype)
                    read.setdefault(key.removeprefix(f"{table}/"), empty)[layout.indices(shard)] = rows
    return read


def _share(manifest: Manifest, layout: Layout) -> set[str]:
    """The shard files with samples of the shards that this rank restores."""
    # Sample i lies in file i mod (shards then) and goes to shard i mod (shards now).
    step = gcd(manifest.shards, layout.shards)
    mine = {shard % step for shard in range(collectives.rank(), layout.shards, collectives.world_size())}
    return {_name("shard", shard, manifest.shards) for shard in range(manifest.shards) if shard % step in mine}


def _save_shard(path: Path, store: ChainStore, generation: str, shard: int, applied: int) -> None:
    rows = store.layout.rows(shard)
    columns = {f"{table}/{name}": column for table, named in store.schema.items() for name, column in named.items()}
    with tensors.Writer(path, columns, rows) as file:
        for start, stop in _pieces(store.schema, rows):
            piece = store.snapshot(generation, shard, applied, start, stop)
            file.write(start, {f"{t}/{name}": column for t, named in piece.items() for name, column in named.items()})


def _pieces(schema: Schema, rows: int) -> Iterator[tuple[int, int]]:
    """Spans of rows of at most PIECE_NBYTES each, from the first row to the last."""
    step = max(1, PIECE_NBYTES // nbytes(schema, 1))
    return ((start, min(rows, start + step)) for start in range(0, rows, step))


def _save_trainer(path: Path, encoder: nn.Module, optimiser: torch.optim.Optimizer, follower: nn.Module | None) -> None:
    state = optimiser.state_dict()
    towers = {"encoder": encoder} if follower is None else {"encoder": encoder, "follower": follower}
    flat = {f"{part}/{name}": value for part, one in towers.items() for name, value in one.state_dict().items()}
    for parameter, slots in state["state"].items():
        flat |= {f"optimiser/{parameter}/{slot}": value for slot, value in slots.items() if value is not None}
    metadata = {"param_groups": json.dumps(state["param_groups"])}
    with tensors.as_any_file(path):
        save_tensors({name: tensor.contiguous() for name, tensor in flat.items()}, path, metadata)


def _rows_of(folder: Path, old: Layout, indices: NDArray[np.int64], schema: Schema) -> Tables:
    """The tables of the given samples, out of the files of another (or the same) sharding."""
    tables: Tables = {
        table: {name: np.empty((len(indices), *column.shape), column.dtype) for name, column in named.items()}
        for table, named in schema.items()
    }
    for part in old.split(indices):
        path = folder / _name("shard", part.shard, old.shards)
        with _understood(path):
            columns = tensors.columns(path)
            for table, named in tables.items():
                for name, rows in named.items():
                    rows[part.positions] = _fitting(path, columns, f"{table}/{name}", schema[table][name])[part.rows]
    return tables


def _fitting(path: Path, columns: Mapping[str, NDArray], key: str, wanted: Column) -> NDArray:
    """A column of a shard's file. Raises RunError where it is not what the run remembers."""
    found = columns.get(key)
    if found is None or (str(found.dtype), found.shape[1:]) != (wanted.dtype, wanted.shape):
        kind = "none" if found is None else f"{found.dtype} {list(found.shape[1:])}"
        raise RunError(
            f"{path}: {key} is {kind}, the run needs {wanted.dtype} {list(wanted.shape)}; it is of another spec"
        )
    return found


@contextmanager
def _understood(path: Path) -> Iterator[None]:
    """Turn what torch, NumPy and safetensors say of a foreign or damaged file into a RunError that names it."""
    try:
        yield
    except (SafetensorError, OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
        reason = shorten(" ".join(str(error).split()), 400)
        raise RunError(f"{path}: damaged, or made under another spec ({type(error).__name__}: {reason})") from error


def _flat_commits(commits: Sequence[Commit]) -> dict[str, NDArray]:
    flat = {}
    for commit in commits:
        for table, rows in commit.writes.items():
            prefix = f"{commit.step}/{commit.rank}/{table}"
            flat[f"{prefix}/index"] = rows.index
            flat |= {f"{prefix}/values/{name}": np.ascontiguousarray(value) for name, value in rows.values.items()}
    return flat


def _commits(flat: dict[str, NDArray]) -> Iterator[Commit]:
    """What `_flat_commits` made flat, a commit for each table."""
    for key, index in flat.items():
        step, rank, table, *column = key.split("/")
        if column == ["index"]:
            prefix = f"{step}/{rank}/{table}/values/"
            values = {name.removeprefix(prefix): flat[name] for name in flat if name.startswith(prefix)}
            yield Commit(int(step), int(rank), {table: Rows(index, values)})


def _joined(parts: Sequence[Rows]) -> Rows:
    index = np.concatenate([part.index for part in parts])
    return Rows(index, {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values})


def _name(kind: str, shard: int, shards: int) -> str:
    return f"{kind}-{shard:05d}-of-{shards:05d}.safetensors"
