"""Does the pretended GPU find what a real one would wait for?"""

import pytest
import torch
from pretended_gpu import GPU, pretended_gpu


@pytest.mark.parametrize(
    "waiting",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 1).all()),
        lambda x: x[x > 1],
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: x.unique(),
        lambda x: torch.ones(2).to(GPU),
        lambda x: torch.ones(2).to(GPU, non_blocking=True),
        lambda x: torch.tensor([1.0, 2.0], device=GPU),
        lambda x: x[torch.tensor([0, 1])],
    ],
    ids=range(10),
)
def test_a_wait_is_counted(waiting):
    with pretended_gpu() as waits:
        x = torch.arange(4.0, device=GPU)
        assert waits == []
        waiting(x)
    assert len(waits) == 1


def test_what_does_not_wait_is_not_counted_and_gradients_are_right():
    with pretended_gpu() as waits:
        x = torch.arange(4.0).pin_memory().to(GPU, non_blocking=True).requires_grad_()
        slots = torch.arange(2, device=GPU)
        (x[slots] * 3 + torch.tensor(1.0)).sum().backward()
        assert waits == []
        assert x.grad.cpu().tolist() == [3, 3, 0, 0]


def test_a_copy_that_nobody_waited_for_holds_garbage():
    with pretended_gpu():
        copy = torch.arange(4.0, device=GPU).to("cpu", non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        assert copy.tolist() != [0, 1, 2, 3]
        event.synchronize()
        assert copy.tolist() == [0, 1, 2, 3]


def test_devices_do_not_mix():
    with pretended_gpu():
        x = torch.arange(4.0, device=GPU)
        with pytest.raises(RuntimeError, match="CUDA would refuse"):
            x + torch.ones(4)
