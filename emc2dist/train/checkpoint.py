"""What a run resumes from: encoder, optimiser, step and the rows of every shard, of one and the same step.

    manifest.json                 step, resolved spec, samples, shards, version
    trainer.pt                    encoder and optimiser (read with weights_only: no code in it can run)
    shard-00000-of-00002.safetensors ...
    pending-00000-of-00002.safetensors ...   only where a run was stopped within an epoch

Ranks write different files of one folder: rank 0 the first two, rank r the shards r, r + W, ... There is no other
state: order of the data, views, chains' randomness, learning rate and temperature are functions of the step. Shards may
be read back into another number of shards, and by another number of workers.

Within an epoch reads run ahead of the steps (see `emc2dist.train.memory`). A run that is stopped there must go on with
what these would have seen, so its shards' rows are older than the step, and the commits since lie beside them.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import nn

import emc2dist
from emc2dist.config import Spec, dump, parse
from emc2dist.errors import RunError
from emc2dist.store import ChainStore, Commit, Layout, Rows, Tables
from emc2dist.train import collectives


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    step: int
    """Steps taken."""
    applied: int
    """The step that the shards' rows show: the last one taken, or an earlier one where later commits are pending."""
    samples: int
    """Rows of the dataset it was trained on."""
    shards: int
    """Shard files it holds."""
    spec: str
    """The resolved spec, YAML."""
    version: str
    """emc2dist's."""

    def parsed_spec(self) -> Spec:
        """The spec that the checkpoint was made under."""
        return parse(self.spec, source="the checkpoint's manifest.json")


def save(
    folder: Path, step: int, applied: int, spec: Spec, encoder: nn.Module, optimiser: torch.optim.Optimizer,
    store: ChainStore, generation: str,
) -> None:  # fmt: skip
    """Write this rank's files of the checkpoint after `step` steps, with the store's rows as of step `applied`.

    All ranks' commits of all steps must be in the store, and no rank's reads on their way.
    """
    shards = store.layout.shards if store.schema else 0
    for shard in range(collectives.rank(), shards, collectives.world_size()):
        tables = store.snapshot(generation, shard, applied)
        save_file(_flat(tables), folder / _name("shard", shard, shards))
        pending = store.pending(generation, shard)
        if pending:
            save_file(_flat_commits(pending), folder / _name("pending", shard, shards))
    if collectives.rank() == 0:
        torch.save({"encoder": encoder.state_dict(), "optimiser": optimiser.state_dict()}, folder / "trainer.pt")
        manifest = Manifest(step, applied, store.layout.samples, shards, dump(spec), emc2dist.__version__)
        (folder / "manifest.json").write_text(json.dumps(asdict(manifest), indent=1))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint. Raises RunError where there is none."""
    try:
        return Manifest(**json.loads((folder / "manifest.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{folder}: not a whole checkpoint (manifest.json: {error}); use another one") from error


def load_trainer(folder: Path, device: torch.device) -> dict[str, Any]:
    """`encoder` and `optimiser` state dicts. Raises RunError where the file is missing or damaged."""
    try:
        return torch.load(folder / "trainer.pt", map_location=device, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise RunError(f"{folder / 'trainer.pt'}: cannot be read ({error}); use another checkpoint") from error


def restore_store(folder: Path, manifest: Manifest, store: ChainStore, generation: str) -> None:
    """Put this rank's share of the shards back, re-sharding where their number has changed."""
    if manifest.samples != store.layout.samples:
        raise RunError(
            f"{folder}: made on {manifest.samples} training images, the data now has {store.layout.samples}; "
            "resume with the same data, or give the run a new name"
        )
    if not store.schema:
        return
    old = Layout(manifest.samples, manifest.shards)
    for shard in range(collectives.rank(), store.layout.shards, collectives.world_size()):
        store.restore(generation, manifest.applied, shard, _rows_of(folder, old, store.layout.indices(shard)))


def resend_pending(folder: Path, manifest: Manifest, store: ChainStore, generation: str) -> None:
    """Send the store the commits that its restored rows do not show yet. One rank does, once all shards are back."""
    parts: dict[tuple[int, int], dict[str, list[Rows]]] = {}
    for path in sorted(folder.glob("pending-*.safetensors")):
        for commit in _commits(_load(path)):
            for table, rows in commit.writes.items():
                parts.setdefault((commit.step, commit.rank), {}).setdefault(table, []).append(rows)
    for key in sorted(parts):
        # Whole again: a shard takes a commit of one step and rank once, and shards may be fewer now.
        commit = Commit(*key, {table: _joined(rows) for table, rows in parts[key].items()})
        store.exchange(generation, commit, {}, manifest.applied).result()


def _rows_of(folder: Path, old: Layout, indices: NDArray[np.int64]) -> Tables:
    """The tables of the given samples, out of the files of another (or the same) sharding."""
    tables: Tables = {}
    for part in old.split(indices):
        for key, column in _load(folder / _name("shard", part.shard, old.shards)).items():
            table, name = key.split("/")
            rows = tables.setdefault(table, {})
            if name not in rows:
                rows[name] = np.empty((len(indices), *column.shape[1:]), column.dtype)
            rows[name][part.positions] = column[part.rows]
    return tables


def _load(path: Path) -> dict[str, NDArray]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be read ({error}); use another checkpoint") from error


def _flat(tables: Tables) -> dict[str, NDArray]:
    return {
        f"{table}/{name}": np.ascontiguousarray(column)
        for table, columns in tables.items()
        for name, column in columns.items()
    }


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
