"""`emc2dist report`: one self-contained page of pictures and tables about one run, or several side by side.

    RUN/report/report.html       everything in one file: it loads nothing, and runs no script
    RUN/report/*.png             the pictures in it, on their own

    curves     what metrics.jsonl says, all runs in the same axes
    chains     which negatives the chains sit on: are they hard, and are they false?
    atlas      where images lie in the space of features
    page       from pictures and tables to HTML

What a run does not have (a checkpoint, chains, labels) is said in a sentence where it would have stood. Samples and
t-SNE are drawn with fixed seeds: the same run gives the same pictures.
"""

from emc2dist.service.report.page import PAGE, report

__all__ = ["PAGE", "report"]
