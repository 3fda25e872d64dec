"""Group norm in bf16 against float64, and the type of what comes out."""

import pytest
import torch
from torch.nn import functional

from emc2dist.towers.norms import GroupNorm


def layer_and_input(dtype):
    torch.manual_seed(0)
    layer = GroupNorm(4, 16)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2)
        layer.bias.uniform_(-1, 1)
    # A mean far from 0: rounded to bf16 it would be off by a sixteenth of the deviation.
    return layer, (torch.randn(3, 16, 9, 7) + 30).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_are_in_float32_and_only_what_comes_out_is_rounded(dtype):
    layer, given = layer_and_input(dtype)
    given.requires_grad_()
    made = layer._in_float32(given)
    assert made.dtype == dtype
    exact = given.detach().double().requires_grad_()
    weight, bias = (p.detach().double().requires_grad_() for p in (layer.weight, layer.bias))
    expected = functional.group_norm(exact, 4, weight, bias)
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(made.double(), expected, rtol=0.51 * step, atol=1e-5)
    pull = torch.randn(made.shape).to(dtype)
    made.backward(pull)
    expected.backward(pull.double())
    assert given.grad.dtype == dtype
    torch.testing.assert_close(given.grad.double(), exact.grad, rtol=0.51 * step, atol=1e-5)
    torch.testing.assert_close(layer.weight.grad.double(), weight.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(layer.bias.grad.double(), bias.grad, rtol=1e-4, atol=1e-3)


def test_autocast_does_not_widen_it():
    layer, given = layer_and_input(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(given).dtype == layer._in_float32(given).dtype == torch.bfloat16


@pytest.mark.parametrize(("device", "dtype", "own"), [
    ("cpu", torch.bfloat16, False),
    ("meta", torch.bfloat16, True),
    ("meta", torch.float32, False),
    ("meta", torch.float64, False),
])  # fmt: skip
def test_it_is_torchs_where_torch_is_right(device, dtype, own, monkeypatch):
    asked = []
    monkeypatch.setattr(GroupNorm, "_in_float32", lambda self, given: asked.append(given))
    GroupNorm(4, 16).to(device, dtype)(torch.ones(2, 16, 3, 3, device=device, dtype=dtype))
    assert bool(asked) == own
