"""A checkpoint alone: any damage to it is found, and it is written and read in pieces."""

import json
import os
import shutil
from stat import S_IMODE

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from store.store_oracle import ROW_NBYTES, SAMPLES, SCHEMA, assert_same, everything, expected, random_commit
from torch import nn
from train.harness import small_spec

from emc2dist import files
from emc2dist.errors import RunError
from emc2dist.store import Column, Layout, LocalStore, Shard
from emc2dist.train import checkpoint, checksums, collectives

COMMITS = [random_commit(np.random.default_rng(10 * step + rank), step, rank) for step in range(4) for rank in range(2)]


def filled_store(shards):
    store = LocalStore(Layout(SAMPLES, shards), SCHEMA)
    store.reset("first")
    for commit in COMMITS:
        store.exchange("first", commit, {}, as_of=-1).result()
    return store


def write(folder, shards=2, generation="first"):
    """A checkpoint of step 4 whose rows show step 1: the commits of steps 2 and 3 are pending."""
    folder.mkdir()
    encoder = nn.Linear(3, 2)
    optimiser = torch.optim.Adam(encoder.parameters())
    encoder(torch.ones(3)).sum().backward()
    optimiser.step()
    checkpoint.save(folder, 4, 1, small_spec(), encoder, optimiser, filled_store(shards), "first", "f")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write(tmp_path_factory.mktemp("checkpoints") / "whole")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_checkpoint_passes(whole):
    assert names(whole) == [
        "checksums-00000-of-00001.json", "manifest.json", "pending-00000-of-00002.safetensors",
        "pending-00001-of-00002.safetensors", "shard-00000-of-00002.safetensors", "shard-00001-of-00002.safetensors",
        "trainer.safetensors",
    ]  # fmt: skip
    assert checkpoint.verify(files.at(whole)).step == 4


@settings(
    derandomize=True, max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_single_damage_is_found_named_and_never_fetched(data, whole, tmp_path):
    """A file gone, cut short anywhere, or with any one byte changed to any other."""
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    path = folder / data.draw(st.sampled_from(names(whole)))
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    match data.draw(st.sampled_from(["gone", "short", "flipped"])):
        case "gone":
            path.unlink()
        case "short":
            path.write_bytes(content[:at])
        case "flipped":
            content[at] ^= data.draw(st.integers(1, 255))
            path.write_bytes(content)
    with pytest.raises(RunError, match=r"missing|damaged|bytes|another attempt"):
        checkpoint.verify(files.at(folder))
    with pytest.raises(RunError):
        checkpoint.fetch(files.at(folder), tmp_path, Layout(SAMPLES, 3))


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o027])
def test_whoever_may_read_one_file_may_read_all(umask, tmp_path):
    before = os.umask(umask)
    try:
        folder = write(tmp_path / "shared")
    finally:
        os.umask(before)
    assert {(path.name, S_IMODE(path.stat().st_mode)) for path in folder.iterdir()} == {
        (name, 0o666 & ~umask) for name in names(folder)
    }


def test_names_and_sizes_alone_tell_what_is_missing_or_short(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "short")
    shard = folder / "shard-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"shard-00001-of-00002\.safetensors has .* bytes"):
        checkpoint.verify(files.at(folder), contents=False)
    shard.unlink()
    with pytest.raises(RunError, match=r"shard-00001-of-00002\.safetensors is missing"):
        checkpoint.verify(files.at(folder), contents=False)


def test_files_of_two_attempts_never_make_one_checkpoint(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "mixed")
    (folder / "checksums-00000-of-00001.json").unlink()
    checksums.write(folder, "second")
    with pytest.raises(RunError, match="belongs to another attempt"):
        checkpoint.verify(files.at(folder), contents=False)


def test_what_earlier_attempts_left_does_not_matter(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "again")
    (folder / "shard-00002-of-00003.safetensors").write_bytes(b"")
    (folder / "checksums-00001-of-00002.json").write_bytes(b"")
    checkpoint.verify(files.at(folder))


@pytest.mark.parametrize("shards", [1, 2, 3, 4])
def test_in_pieces_and_into_other_shards_every_row_comes_back(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PIECE_NBYTES", 100)  # three rows
    folder = write(tmp_path / "pieces")
    for shard in range(2):
        flat = load_file(folder / f"shard-{shard:05d}-of-00002.safetensors")  # by the library itself
        for name, column in flat.items():
            table, column_name = name.split("/")
            read = {table: np.arange(shard, SAMPLES, 2)}
            np.testing.assert_array_equal(column, expected(COMMITS, read, 1)[table][column_name])
    manifest = checkpoint.verify(files.at(folder))
    store = LocalStore(Layout(SAMPLES, shards), SCHEMA)
    checkpoint.restore_store(folder, manifest, store, "second")
    checkpoint.resend_pending(folder, manifest, store, "second")
    for step in (1, 2, 3):
        found = store.exchange("second", None, everything(), step).result()
        assert_same(found, expected(COMMITS, everything(), step))


def test_a_shard_is_never_in_memory_twice(tmp_path, monkeypatch):
    """A snapshot is made, and put back, in pieces of bounded size."""
    monkeypatch.setattr(checkpoint, "PIECE_NBYTES", 100)
    sizes = []

    def weigh(tables):
        sizes.append(sum(column.nbytes for columns in tables.values() for column in columns.values()))
        return tables

    snapshot, restore = Shard.snapshot, Shard.restore
    monkeypatch.setattr(Shard, "snapshot", lambda *arguments: weigh(snapshot(*arguments)))
    monkeypatch.setattr(Shard, "restore", lambda self, *given: restore(self, *given[:2], weigh(given[2]), *given[3:]))
    folder = write(tmp_path / "pieces")
    manifest = checkpoint.verify(files.at(folder))
    checkpoint.restore_store(folder, manifest, LocalStore(Layout(SAMPLES, 2), SCHEMA), "second")
    assert max(sizes) <= 100
    assert sum(sizes) == 2 * SAMPLES * ROW_NBYTES


@pytest.mark.parametrize(("old", "new", "rank", "ranks"), [(4, 4, 1, 4), (4, 2, 1, 2), (6, 4, 0, 4), (3, 4, 1, 2)])
def test_a_rank_fetches_the_files_of_its_own_samples_alone(old, new, rank, ranks, whole, monkeypatch):
    monkeypatch.setattr(collectives, "rank", lambda: rank)
    monkeypatch.setattr(collectives, "world_size", lambda: ranks)
    manifest = checkpoint.read_manifest(files.at(whole)).model_copy(update={"shards": old})
    layout = Layout(1000, new)
    mine = [sample for shard in range(rank, new, ranks) for sample in layout.indices(shard)]
    assert checkpoint._share(manifest, layout) == {f"shard-{s % old:05d}-of-{old:05d}.safetensors" for s in mine}


def test_a_checkpoint_of_another_encoder_is_named_with_what_does_not_fit(whole):
    with pytest.raises(RunError, match=r"trainer\.safetensors: .*made under another spec .*size mismatch for weight"):
        checkpoint.restore_trainer(whole, nn.Linear(4, 2))
    with pytest.raises(RunError, match=r"trainer\.safetensors: .*parameter group"):
        checkpoint.restore_trainer(whole, nn.Linear(3, 2), torch.optim.Adam(nn.Linear(3, 2, bias=False).parameters()))


def test_shards_of_another_spec_are_named_with_the_column(whole):
    manifest = checkpoint.read_manifest(files.at(whole))
    table, named = next(iter(SCHEMA.items()))
    name, column = next(iter(named.items()))
    for other, found in ((Column("int32", (7,)), str(column.dtype)), (None, None)):
        schema = {table: named | ({name: other} if other else {"more": column})}
        with pytest.raises(RunError, match=f"{table}/{name if other else 'more'} is {found or 'none'}"):
            checkpoint.restore_store(whole, manifest, LocalStore(Layout(SAMPLES, 2), schema), "second")


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 64, (8).to_bytes(8, "little") + b"[1, 2]  ", (2).to_bytes(8, "little") + b"{}"]
)
@pytest.mark.parametrize("name", ["trainer.safetensors", "shard-00000-of-00002.safetensors"])
def test_what_is_no_file_of_ours_is_named(name, content, whole, tmp_path):
    """As where somebody else has written it, and its checksums too."""
    folder = shutil.copytree(whole, tmp_path / "foreign")
    (folder / name).write_bytes(content)
    manifest, store = checkpoint.read_manifest(files.at(folder)), LocalStore(Layout(SAMPLES, 1), SCHEMA)
    with pytest.raises(RunError, match=f"foreign/{name}: "):
        read(name, folder, manifest, store)


@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "checksums-00000-of-00001.json",
        "trainer.safetensors",
        "shard-00000-of-00002.safetensors",
    ],
)
def test_a_pointer_in_place_of_a_file_is_named(name, whole, tmp_path):
    """As a clone leaves it where Git LFS keeps the file."""
    folder = shutil.copytree(whole, tmp_path / "cloned")
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(RunError, match=rf"^{name} is a pointer of Git LFS .*`git lfs pull`$"):
        checkpoint.verify(files.at(folder))


def read(name, folder, manifest, store):
    if name.startswith("trainer"):
        checkpoint.restore_trainer(folder, nn.Linear(3, 2))
    else:
        checkpoint.restore_store(folder, manifest, store, "second")


@pytest.mark.parametrize("change", [{"shards": 10**12}, {"ranks": 0}, {"step": -1}, {"more": 1}, {"spec": None}])
def test_a_manifest_of_another_schema_is_refused(change, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "other")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(RunError, match=r"manifest\.json is damaged"):
        checkpoint.read_manifest(files.at(folder))
