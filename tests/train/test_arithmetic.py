"""torch's switches, as the spec has them, whatever they were before."""

import os

import pytest
import torch
from torch.utils import deterministic
from train.harness import small_spec

from emc2dist.train import arithmetic
from emc2dist.train.loop import initial_encoder

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture(autouse=True, params=[False, True])
def default(request, monkeypatch):
    """A machine where every switch was set one way, or the other; restored afterwards."""
    other = request.param
    products = torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", other)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", other)
    monkeypatch.setattr(deterministic, "fill_uninitialized_memory", other)
    monkeypatch.setenv(WORKSPACE, "")  # so that it is put back as it was
    monkeypatch.delenv(WORKSPACE)
    torch.set_float32_matmul_precision("medium" if other else "highest")
    torch.use_deterministic_algorithms(other)
    yield other
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision(products)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16", "float64"])
def test_only_convolutions_are_rounded_and_only_where_the_spec_says_so(precision):
    arithmetic.settle(small_spec(f"precision={precision}"), CUDA)
    assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize("asked", [False, True])
def test_a_gpu_is_deterministic_where_the_spec_says_so(asked):
    arithmetic.settle(small_spec(f"deterministic={str(asked).lower()}"), CUDA)
    assert torch.are_deterministic_algorithms_enabled() == asked
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not deterministic.fill_uninitialized_memory
    assert os.environ.get(WORKSPACE) == (":4096:8" if asked else None)


def test_what_a_person_set_for_cublas_stays(monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":16:8")
    arithmetic.settle(small_spec("deterministic=true"), CUDA)
    assert os.environ[WORKSPACE] == ":16:8"


def test_a_cpu_needs_no_other_algorithms(default):
    arithmetic.settle(small_spec("deterministic=true"), CPU)
    assert torch.are_deterministic_algorithms_enabled() == default
    assert WORKSPACE not in os.environ


def test_it_is_settled_before_the_encoder_is_made():
    initial_encoder(small_spec("precision=tf32"), CPU)
    assert torch.backends.cudnn.allow_tf32
    initial_encoder(small_spec(), CPU)
    assert not torch.backends.cudnn.allow_tf32
