"""The maths: numbers, tensors and a generator in, tensors out. No config, file, clock, rank or Ray.

Letters: N samples in the dataset, V views of each, B samples in the gathered batch, A anchors (sample, view) of one
call, P proposals per anchor, K cached rows drawn in a step, D feature width. A score is a cosine similarity divided
by the temperature: a log-density up to a constant.
"""
