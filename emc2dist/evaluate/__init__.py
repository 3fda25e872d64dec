"""Measures of a representation: numbers in, a number out. Which rows take part is `emc2dist.train.evaluation`'s.

    neighbours.py   the nearest rows, and whether they are of the right class: kNN, recall
    probe.py        a linear classifier
    regression.py   labels that are numbers: how far off
    few_shot.py     classes told by a few images of each
    accuracy.py     the share of right answers, of all and of a mean class
    retrieval.py    the documents of greatest inner product, and whether they are the relevant ones: nDCG, MRR, recall
    bm25.py         what words alone find
    similarity.py   pairs of texts: rank correlation with what people say

What needs no labels is in `emc2dist.core.diagnostics`.
"""
