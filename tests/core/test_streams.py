"""Random streams: uniform, unrelated, and the same for everybody."""

import torch

from emc2dist.core.streams import fork, seed_of, uniforms


def test_known_answer():
    # SplitMix64 of seed 0: the first output of the reference implementation is 0xE220A8397B1DCDAF.
    # Of numbers, of tensors on the CPU, and of what stands for those of a GPU.
    from emc2dist.core.streams import _GOLDEN, _mix, _signed

    expected = 0xE220A8397B1DCDAF
    assert _mix(_GOLDEN) == expected
    assert _mix(torch.tensor([_signed(_GOLDEN)])).item() == _signed(expected)
    assert _mix(torch.tensor(_signed(_GOLDEN))).item() == _signed(expected)


def test_uniforms_are_uniform_and_streams_unrelated():
    draws = uniforms(fork(0, torch.arange(400)), 400)
    assert draws.min() > 0
    assert draws.max() < 1
    counts = torch.histc(draws, 20, 0, 1)
    expected = draws.numel() / 20
    assert ((counts - expected) ** 2 / expected).sum() < 45  # chi-square, 19 degrees of freedom, p = 0.0007
    for pairs in (draws, draws.T):
        correlation = torch.corrcoef(pairs)
        assert correlation.fill_diagonal_(0).abs().max() < 6 / 400**0.5


def test_labels_and_lanes_matter():
    streams = fork(1, 2, torch.arange(1000))
    assert len(streams.unique()) == 1000
    assert (streams >= 0).all()
    assert seed_of(1, 2, 3) != seed_of(1, 3, 2) != seed_of(2, 1, 3)
    assert seed_of(1, 2, 3) == streams[3].item() == fork(1, 2, torch.tensor([[3]])).item()
    assert not uniforms(streams, 3, lane=0).eq(uniforms(streams, 3, lane=1)).any()
