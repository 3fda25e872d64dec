"""Sets of pairs: queries, documents, and which document answers which query; as `emc2dist ingest` writes them.

    SOURCE -> records      rows of Parquet, JSONL and CSV, each with where it stands
           -> formats      what a row says: a query, its positives, its negatives
           -> collection   each text once, what is refused or dropped, splits
           -> ingest       DEST/documents.parquet, queries.parquet, relevance.parquet, tokenizer.json, manifest.json
    DEST   -> pairs        one split, by index; manifest says what there is
    text   -> tokenizer    tokens of fixed length

docs/texts.md is the page for users.
"""
