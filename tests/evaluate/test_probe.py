"""The quick probe against scikit-learn's ridge regression, and against what a line can and cannot tell."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from emc2dist.evaluate.probe import by_ridge, predictions


def test_ridge_is_that_of_scikit_learn():
    points, labels = load_digits(return_X_y=True)
    bank, voters, queries, asked = points[:1200], labels[:1200] * 3 + 1, points[1200:], labels[1200:] * 3 + 1
    found = by_ridge(torch.tensor(bank, dtype=torch.float32), voters, torch.tensor(queries, dtype=torch.float32))
    scaler = StandardScaler().fit(bank)
    classes = np.unique(voters)
    model = Ridge(alpha=0.01 * len(bank)).fit(scaler.transform(bank), voters[:, None] == classes)
    assert (found == classes[model.predict(scaler.transform(queries)).argmax(1)]).all()
    slower = (predictions(bank, voters, queries) == asked).mean()
    assert abs((found == asked).mean() - slower) < 0.06  # pixels are counts, which a logistic fit takes better


def test_a_feature_that_never_changes_and_labels_without_a_line_do_no_harm():
    rng = np.random.default_rng(0)
    bank = np.column_stack([rng.normal(size=(200, 3)), np.ones(200)])
    voters = (bank[:, 0] > 0).astype(np.int64)
    found = by_ridge(torch.tensor(bank), voters, torch.tensor([[5.0, 0, 0, 1], [-5.0, 0, 0, 1]]))
    assert found.tolist() == [1, 0]
