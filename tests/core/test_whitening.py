"""Whitening against its definition, and its gradient where autograd's own has none."""

import numpy as np
import pytest
import torch
from scipy.linalg import fractional_matrix_power
from torch.autograd import gradcheck

from emc2dist.core.whitening import ShuffledGroupWhitening, _InverseRoot
from emc2dist.errors import SpecError


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(seed, rows, width):
    """Rows of a scale and a mean of their own, whose channels are correlated."""
    return 0.05 * drawn(seed, rows, width) @ drawn(seed + 1, width, width) + 3


@pytest.mark.parametrize("groups", [1, 4, 24])
def test_the_covariance_of_a_group_is_the_identity(groups):
    head = ShuffledGroupWhitening(24, groups, seed=0)
    whitened = head(correlated(0, 200, 24).float())
    assert whitened.dtype == torch.float32
    torch.testing.assert_close(whitened.mean(0), torch.zeros(24), rtol=0, atol=1e-5)
    covariance = torch.cov(whitened.T, correction=0)
    for channels in head.order.view(groups, -1):
        block = covariance[channels][:, channels]
        torch.testing.assert_close(block, torch.eye(24 // groups), rtol=0, atol=1e-4)
    assert groups == 1 or (covariance - torch.eye(24)).abs().max() > 0.1  # other groups' channels stay correlated


def test_a_group_is_multiplied_by_the_symmetric_root_of_its_own_covariance():
    head, features = ShuffledGroupWhitening(12, 3, seed=5), correlated(2, 50, 12)
    expected = torch.zeros(50, 12, dtype=torch.float64)
    for channels in head.order.tolist()[:4], head.order.tolist()[4:8], head.order.tolist()[8:]:
        mine = features[:, channels].numpy()
        root = fractional_matrix_power(np.cov(mine.T, bias=True), -0.5)
        expected[:, channels] = torch.from_numpy((mine - mine.mean(0)) @ root)
    torch.testing.assert_close(head(features), expected)


def test_channels_come_back_to_their_places():
    white = torch.linalg.qr(drawn(0, 60, 17) - drawn(0, 60, 17).mean(0)).Q * 60**0.5
    white = white[:, :16]
    torch.testing.assert_close(torch.cov(white.T, correction=0), torch.eye(16, dtype=torch.float64))
    head = ShuffledGroupWhitening(16, 4, seed=1)
    assert not torch.equal(head.order, torch.arange(16))
    torch.testing.assert_close(head(white), white - white.mean(0))


def test_a_shuffle_is_its_seeds_and_is_kept():
    features = correlated(0, 40, 12)
    one, other = ShuffledGroupWhitening(12, 4, seed=0), ShuffledGroupWhitening(12, 4, seed=1)
    assert torch.equal(one(features), ShuffledGroupWhitening(12, 4, seed=0)(features))
    assert not torch.allclose(one(features), other(features))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(features), other(features))


@pytest.mark.parametrize("groups", [1, 3])
def test_the_gradient_goes_through_the_transform(groups):
    head = ShuffledGroupWhitening(6, groups, seed=0)
    assert gradcheck(head, correlated(0, 9, 6).requires_grad_())


@pytest.mark.parametrize(
    "rows",
    [
        torch.linalg.qr(drawn(0, 8, 5)).Q,  # all eigenvalues equal
        drawn(1, 8, 5) * torch.tensor([1, 1, 1, 0.01, 0.01]),  # two below the floor
        torch.cat([torch.eye(5, dtype=torch.float64)[:2], drawn(2, 1, 5)]),  # two equal ones that are 0
    ],
)
def test_the_roots_derivative_stands_where_eigenvalues_are_equal_or_below_the_floor(rows):
    def root(rows):
        return _InverseRoot.apply((rows.T @ rows)[None], torch.tensor(0.05, dtype=torch.float64))

    assert gradcheck(root, rows.clone().requires_grad_())


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_few_rows_and_channels_that_do_not_vary_give_finite_features_and_gradients(rows):
    features = correlated(0, rows, 16).float()
    features[:, [2, 3, 9]] = 1.0
    features.requires_grad_()
    whitened = ShuffledGroupWhitening(16, 2, seed=0)(features)
    assert whitened.abs().max() <= rows**0.5 * 1.01
    assert torch.equal(whitened[:, [2, 3, 9]].abs() < 1e-3, torch.ones(rows, 3, dtype=torch.bool))
    (whitened * torch.linspace(-1, 1, 16)).pow(2).sum().backward()
    assert features.grad.isfinite().all()


def test_a_direction_that_hardly_varies_is_not_blown_up():
    features = drawn(0, 500, 8)
    features[:, 5] *= 1e-4
    head = ShuffledGroupWhitening(8, 1, seed=0, floor=1e-2)
    whitened = head(features)
    assert whitened[:, 5].std() == pytest.approx(1e-4 / (1e-2 * 7 / 8) ** 0.5, rel=0.1)
    torch.testing.assert_close(head(1e-3 * features), whitened)  # whatever the scale of all


def test_features_in_half_are_whitened_as_in_full():
    features, head = correlated(0, 200, 8).bfloat16(), ShuffledGroupWhitening(8, 2, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        whitened = head(features)
    assert torch.equal(whitened, head(features.float()))


@pytest.mark.parametrize("groups", [0, 5, 13])
def test_groups_that_are_not_even_are_refused(groups):
    with pytest.raises(SpecError, match=f"groups: {groups} "):
        ShuffledGroupWhitening(12, groups, seed=0)
