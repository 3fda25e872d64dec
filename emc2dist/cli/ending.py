"""What `train` leaves a person with: a table of what was learnt, and the run's pictures."""

from pathlib import Path
from typing import Any

from emc2dist import files
from emc2dist.terminal import columns, say

_ENCODERS = {"raw pixels": "knn_pixels", "untrained encoder": "knn_untrained", "trained encoder": "knn_accuracy"}
_RETRIEVERS = {"BM25": "ndcg_bm25", "untrained encoder": "ndcg_untrained", "trained encoder": "ndcg_at_10"}


def table(summary: dict[str, Any], report: str | None) -> str:
    """Lines that compare the trained encoder with what it has to beat, and name its checkpoint and its report.

    `summary` is that of `emc2dist.run.driver.train`. Where nothing was evaluated there is nothing to compare.
    """
    rows = []
    titles = {f"kNN accuracy, k = {summary.get('neighbours')}": _ENCODERS, "nDCG@10": _RETRIEVERS}
    for title, compared in titles.items():
        scores = {what: summary[name] for what, name in compared.items() if summary.get(name) is not None}
        if scores:
            rows += [(title, ""), *((what, f"{score:.3f}") for what, score in scores.items())]
    if summary["checkpoint"] is not None:  # a finished run's may have been removed
        rows.append(("checkpoint", summary["checkpoint"]))
    if report is not None:
        rows.append(("report", report))
    return columns(rows) if rows else ""


def write_report(run: str) -> str | None:
    """The address of the report of the finished run in the folder `run`; written unless there is one of its end.

    None where there is none: a run folder on S3 gets none without being asked, and what goes wrong is only said.
    """
    if files.is_remote(run):
        return None
    try:
        from emc2dist.report.page import PAGE, report

        page = Path(run) / "report" / PAGE
        if not page.exists() or page.stat().st_mtime < (Path(run) / "summary.json").stat().st_mtime:
            report([run], asked=False)
    except Exception as error:  # the run is finished, whatever a picture fails of
        reason = " ".join(str(error).split())
        say(f"no report: {type(error).__name__}: {reason}; `emc2dist report {run}` tries once more")
        return None
    return page.absolute().as_uri()
