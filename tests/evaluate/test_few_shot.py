"""Few-shot accuracy where it is known, and against its definition."""

import numpy as np
import pytest
import torch

from emc2dist.evaluate.accuracy import accuracy, per_class
from emc2dist.evaluate.few_shot import few_shot


def test_classes_that_lie_apart_are_told_by_one_image_and_noise_is_told_by_chance():
    labels = np.repeat(np.arange(8), 12)
    apart = torch.eye(8)[labels] * torch.linspace(1, 9, 96).unsqueeze(1)  # lengths do not count
    assert few_shot(apart, labels, 1) == (1, 0)
    noise = torch.randn(96, 40, generator=torch.Generator().manual_seed(0))
    found = few_shot(noise, labels, 1, ways=4)
    assert found.accuracy == pytest.approx(1 / 4, abs=0.03)
    assert 0 < found.error < 0.02


def test_more_shots_tell_more_and_the_interval_is_that_of_the_mean():
    labels = np.repeat(np.arange(6), 20)
    means = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(120, 10, generator=torch.Generator().manual_seed(1))
    rows = means[labels] + 1.5 * noise
    one, five = (few_shot(rows, labels, shots) for shots in (1, 5))
    assert 0.3 < one.accuracy < five.accuracy - 0.1
    means = [few_shot(rows, labels, 1, episodes=50, seed=seed) for seed in range(40)]
    spread = 1.96 * np.std([found.accuracy for found in means])
    assert np.mean([found.error for found in means]) == pytest.approx(spread, rel=0.3)
    assert few_shot(rows, labels, 1) == one  # a function of the seed


def test_classes_with_too_few_images_take_no_part_and_too_few_classes_are_no_episode():
    labels = np.array([*np.repeat(np.arange(5), 3), 9])
    rows = torch.eye(6)[np.minimum(labels, 5)]
    assert few_shot(rows, labels, 2) == (1, 0)
    assert few_shot(rows, labels, 3) is None
    assert few_shot(rows, labels, 2, ways=6) is None


def test_a_rare_class_counts_as_much_as_a_frequent_one():
    from sklearn.metrics import accuracy_score, balanced_accuracy_score

    asked = np.array([0, 0, 0, 0, 1, 1, 7])
    found = np.array([0, 0, 0, 1, 1, 0, 7])
    assert accuracy(found, asked) == accuracy_score(asked, found)
    assert per_class(found, asked) == pytest.approx(balanced_accuracy_score(asked, found))
