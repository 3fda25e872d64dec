"""Answers that are numbers, against what they have to be."""

import numpy as np
import pytest
import torch

from emc2dist.evaluate.regression import absolute_error, of_line, of_neighbours


def test_the_nearest_give_their_mean():
    bank = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [-1, 0]], dtype=torch.float64)
    found = of_neighbours(bank, np.array([2, 5, 8, 100]), 3 * bank[[0, 2]], neighbours=2)
    assert found.tolist() == [3.5, 6.5]
    assert absolute_error(found, np.array([2, 8])) == 1.5


def test_a_line_is_found_whatever_the_scale_and_noise_is_not():
    rows = np.random.default_rng(0).normal(size=(200, 3))
    scales = np.array([1, 1e3, 1e-3])
    numbers = np.rint(10 * rows[:, 0] - 4 * rows[:, 1] + 50).astype(np.int64)
    found = of_line(rows[:100] * scales, numbers[:100], rows[100:] * scales)
    assert absolute_error(found, numbers[100:]) == pytest.approx(0.25, abs=0.05)  # which rounding takes
    blind = of_line(rows[:100, 2:], numbers[:100], rows[100:, 2:])
    of_mean = np.abs(numbers[100:] - numbers[:100].mean()).mean()
    assert absolute_error(blind, numbers[100:]) == pytest.approx(of_mean, rel=0.1)
