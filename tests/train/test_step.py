"""Parts of a training step that no run on one CPU shows."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import normalize

from emc2dist.core.batch import Batch, Side
from emc2dist.core.diagnostics import alignment, effective_rank, isotropy, uniformity
from emc2dist.train import step
from emc2dist.train.step import Trainer


def health(rank, features, **columns):
    side = {"x": Side(features, features)}
    batch = Batch(torch.arange(features.shape[1]), 0, side, 0.3, 100, columns=columns)
    return Trainer._health(SimpleNamespace(_rank=rank, device=torch.device("cpu")), batch)


@pytest.mark.parametrize("most", [6, 2_048])
def test_health_is_measured_by_one_rank_on_so_many_samples(most, monkeypatch):
    monkeypatch.setattr(step, "_MOST_MEASURED", most)
    features = normalize(torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    measured = features[:, :most]
    expected = {
        "alignment": alignment(measured),
        "uniformity": uniformity(measured[0]),
        "isotropy": isotropy(measured[0]),
        "effective_rank": effective_rank(measured[0]),
    }
    assert health(0, features) == expected
    others = health(1, features)  # the same names, as ranks are added up, and no weight
    assert others.keys() == expected.keys()
    assert all(total == weight == 0 for total, weight in others.values())


def test_tolerance_is_of_the_batchs_own_labels():
    features = normalize(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    total, pairs = health(0, features, label=torch.tensor([7, 1, 7, 7]))["tolerance"]
    torch.testing.assert_close(total / pairs, features[0, 0] @ features[0, 2])
    assert health(1, features, label=torch.tensor([7, 1, 7, 7]))["tolerance"][1] == 0
