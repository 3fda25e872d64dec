"""Where Triton's kernels do not run."""

import torch

from emc2dist.core import kernels


def test_where_they_do_not_run_that_is_said_once_and_on_a_cpu_not_at_all(monkeypatch, capfd):
    monkeypatch.setattr("emc2dist.terminal._said", set())
    kernels._tried.cache_clear()
    assert not kernels.run_on(torch.zeros(2, 3))
    assert capfd.readouterr().err == ""  # it has no use for them
    for _ in range(2):
        assert not kernels._tried(torch.device("cpu"))  # without Triton, or without a GPU for it
    told = capfd.readouterr().err
    kernels._tried.cache_clear()
    assert told.count("Triton's kernels do not run here (") == 1
    assert "sweep and group norm go by torch's operators" in told
