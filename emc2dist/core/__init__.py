"""The maths: numbers, tensors and random streams in, tensors out. No file, clock, rank or Ray.

    batch         the gathered batch, as one worker sees it
    denominator   what an objective asks to be estimated, and an estimate of it
    estimators/   from a denominator and what is remembered to an estimate: in_batch, chain, moving_average
    objectives/   from estimates to a loss: dcl, infonce, cacr ...
    balance       what makes up for candidates whose features carry no gradient
    contrast      an objective and an estimator, put together: batch -> loss, and what to remember
    unnormalised  densities whose constant is not known: MECO, NCE and a chain over noise
    exact         the objective over the whole dataset: the oracle of all of them
    certify       a contrast over features that stand still, held against that

Letters: N samples in the dataset, V views of each, B samples in the gathered batch, A anchors (sample, view) of one
worker, b = A / V samples of one worker, M draws of a step, C candidates of an anchor, K cache proposals of a step, D
feature width. A score is a cosine similarity divided by the temperature: a log-density up to a constant.
"""
