"""A run is another's guide: what `emc2dist embed` writes of a set's own tables is read as one."""

import numpy as np
import pytest
from run.trained_pairs import ingest, rows, trained

from emc2dist.cli import main
from emc2dist.config import parse
from emc2dist.config.negatives import Guide
from emc2dist.data.texts.guide import open_guide
from emc2dist.data.texts.pairs import open_pairs
from emc2dist.errors import DataError
from emc2dist.run.driver import check
from emc2dist.run.folder import RunFolder
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.run.texts import Encoding
from emc2dist.train.sets import settled


def test_what_embed_writes_of_both_sides_is_a_guide(tmp_path):
    data = ingest(tmp_path / "set", rows() + rows("test"))
    run = trained(tmp_path, data)
    for side, name in (("query", "queries"), ("document", "documents")):
        source, out = data / f"{name}.parquet", tmp_path / f"{name}.parquet"
        assert main(["embed", str(run), str(source), str(out), "--side", side]) == 0
    guide = Guide(queries=str(tmp_path / "queries.parquet"), documents=str(tmp_path / "documents.parquet"))
    newest = LoadedCheckpoint.newest(RunFolder.open(run))
    pairs = open_pairs(newest.spec.data, "train")
    found = open_guide(guide, pairs)
    encoding = Encoding.of(newest)
    for side, texts, part in (("query", pairs.queries, found[:24]), ("document", pairs.documents, found[24:])):
        np.testing.assert_allclose(part, encoding.features(texts.get(np.arange(24)), side), atol=1e-3)
    paths = [f"negatives.guide.queries={guide.queries}", f"negatives.guide.documents={guide.documents}"]
    text = "name: a\nepochs: 1\nbatch_size: 4\nlr: 1\nobjective: infonce\nencoder: {backbone: bag}\n"
    spec = settled(parse(text, ["data.kind=pairs", f"data.path={data}", *paths]))
    train, _, _ = check(spec)
    assert len(train) == 48
    (tmp_path / "queries.parquet").unlink()
    with pytest.raises(DataError, match=r"negatives\.guide: .*queries\.parquet is not there"):
        check(spec)
