"""Pictures of emoji and their names, split by emoji: the folder that jobs/emoji.yaml is ingested from.

    python -m benchmarks.emoji ../shared/data/emoji/pairs.parquet runs/emoji-source
    emc2dist ingest runs/emoji-source runs/emoji-set --captions caption --vocabulary 2048
    emc2dist train jobs/emoji.yaml

Labels are the groups of Unicode CLDR (9), which zero-shot classification asks for. Captions are the names, and with
`--tags` the keywords, too: several captions a picture.
"""

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


def main() -> None:
    """Write a file for each split."""
    parser = argparse.ArgumentParser(description="split the set of emoji")
    parser.add_argument("source", type=Path)
    parser.add_argument("dest", type=Path)
    parser.add_argument("--tags", action="store_true", help="keywords are captions, too")
    given = parser.parse_args()
    table = pq.read_table(given.source)
    captions = table["caption"]
    if given.tags:
        rows = zip(captions.to_pylist(), table["tags"].to_pylist(), strict=True)
        captions = pa.chunked_array([[[name, *(tags or [])] for name, tags in rows]])
    told = pa.table({"image": table["image"], "caption": captions, "label": table["group"], "split": table["split"]})
    given.dest.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        part = told.filter(pc.equal(told["split"], pa.scalar(split))).drop_columns(["split"])
        pq.write_table(part, given.dest / f"{split}.parquet", compression="none", row_group_size=512)


if __name__ == "__main__":
    main()
