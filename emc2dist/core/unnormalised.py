"""Unnormalised models: a density p~ that is known up to its constant Z, learnt by noise of a known density q.

    -E_data log p  =  -E_data log p~ + log Z,        log Z = log E_noise p~/q

A model is an anchor whose candidates are the whole space, noise proposes some of them, and a score is log p~/q. So what
estimates denominators of anchors estimates Z, and each system of the literature is one function here:

    meco    Z by a moving average that all steps share (MECO, Jiang et al., ICML 2023): SogCLR's of a single anchor
    emc2    the gradient of log Z by a chain over noise: EMC^2's of a single anchor
    nce     no estimate: data are told from noise, and log Z is a parameter (NCE, Gutmann & Hyvarinen 2010)

All take the same two tensors, log p~/q of data and of noise, of A models that have nothing to do with each other; one
model is A = 1. Losses of `meco` and `emc2` are in nats against q: minus log-likelihood, and E_data log q on top, which
moves no model. What is exact and what is not, and what came out on Gaussians and digits: docs/unnormalised.md.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from emc2dist.core.denominator import only_gradient
from emc2dist.core.estimators.moving_average import averaged
from emc2dist.core.sweep import Kernel, Sweep, sweep


class Meco(NamedTuple):
    """A step of MECO."""

    loss: Tensor
    """[A]."""
    log_z: Tensor
    """[A], the average with this step in it, to be handed to the next; a constant of the differentiation."""


class Emc2(NamedTuple):
    """A step of a chain over noise."""

    loss: Tensor
    """[A], of which a chain knows the gradient; its value lacks log Z."""
    visit: Sweep
    """`state` is what the chain ends on: a column of the noise, or C, what it carried."""


def meco(data: Tensor, noise: Tensor, log_z: Tensor, rate: float) -> Meco:
    """The negative log-likelihood with Z <- (1 - rate) Z + rate * mean_c exp noise_c, and weights exp noise / (C Z).

    Args:
        data: [A, n], log p~/q of samples of the data.
        noise: [A, C], log p~/q of samples of q; -inf where p~ is 0.
        log_z: [A], what the last step remembered; -inf at the first, which takes its own mean.
        rate: weight of this step, in (0, 1]; 1 is the batch's own softmax, and biased.
    """
    log_z, weights = averaged(noise, math.log(noise.shape[1]), log_z, log_z > -torch.inf, rate)
    return Meco(log_z + only_gradient(weights, noise) - data.mean(1), log_z)


def emc2(data: Tensor, noise: Tensor, carried: Tensor, streams: Tensor, kernel: Kernel = "isir") -> Emc2:
    """The negative log-likelihood whose log Z has the gradient that a visit of a chain estimates.

    Args:
        data: [A, n], log p~/q of samples of the data.
        noise: [A, C], of samples of q.
        carried: [A], of what the last visit ended on, by the model of today; -inf where there was none.
        streams: int64 [A], another one in every step (`emc2dist.core.streams`).
        kernel: as of `emc2dist.core.sweep.sweep`.
    """
    visit = sweep(noise, carried, kernel=kernel, streams=streams)
    scores = torch.cat([noise, carried.unsqueeze(1)], 1)
    return Emc2(only_gradient(visit.weights, scores) - data.mean(1), visit)


def nce(data: Tensor, noise: Tensor) -> Tensor:
    """[A]: the logistic loss of telling n samples of the data from C of the noise, divided by n.

    Args:
        data: [A, n], log p/q of samples of the data; p = p~/Z, log Z being a parameter of the model.
        noise: [A, C], of samples of q.
    """
    ratio = noise.shape[1] / data.shape[1]
    odds = math.log(ratio)
    return softplus(odds - data).mean(1) + ratio * softplus(noise - odds).mean(1)
