"""Many tensors as one copy, to a pretended GPU and back."""

import numpy as np
import torch
from pretended_gpu import GPU, pretended_gpu

from emc2dist.core.transfer import Departure, to_device

TENSORS = [
    torch.tensor([True, False, True]),
    torch.arange(6, dtype=torch.int64).view(2, 3).T,
    torch.tensor([[1.5], [-2.0]], dtype=torch.float16),
    torch.zeros(0, 4),
    torch.tensor(7, dtype=torch.int32).expand(1),  # of stride 0
    torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64),
]


def test_tensors_of_all_types_go_and_come_back_for_one_wait():
    with pretended_gpu() as waits:
        there = to_device(TENSORS, GPU)
        assert {tensor.device for tensor in there} == {GPU}
        departure = Departure(there)
        assert waits == []
        back = departure.arrays()
        assert len(waits) == 1
        departure.arrays()
        assert len(waits) == 1
    for array, tensor in zip(back, TENSORS, strict=True):
        np.testing.assert_array_equal(array, tensor.numpy(), strict=True)


def test_on_the_cpu_nothing_is_copied():
    assert to_device(TENSORS, torch.device("cpu")) == TENSORS
    kept = torch.arange(3)
    (array,) = Departure([kept]).arrays()
    assert np.shares_memory(array, kept.numpy())


def test_of_nothing_nothing_is_made():
    with pretended_gpu() as waits:
        assert to_device([], GPU) == Departure([]).arrays() == waits == []
