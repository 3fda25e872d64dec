"""`emc2dist report`: one self-contained page of pictures and tables about one run, or several side by side.

    RUN/report/report.html       everything in one file: it loads nothing, and runs no script
    RUN/report/*.png             the pictures in it, on their own

    runs.py    a run as the report reads it
    curves.py  what metrics.jsonl says, all runs in the same axes
    chains.py  which negatives the chains sit on: are they hard, and are they false?
    texts.py   the same of a run over pairs, as a table of texts
    atlas.py   where images lie in the space of features
    page.py    from pictures and tables to HTML

    certificate.py    not on the page: the words, the table and the picture of `emc2dist certify`

What a run does not have (a checkpoint, chains, labels) is said in a sentence where it would have stood. Samples and
t-SNE are drawn with fixed seeds: the same run gives the same pictures.
"""
