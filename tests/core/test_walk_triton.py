"""The kernel for GPUs in Triton's interpreter, against the readable walk with the same random numbers.

In a process of its own: the interpreter is chosen when Triton is imported, and torch imports it.
"""

from triton_interpreter import NEEDED, interpreted

pytestmark = NEEDED

COMPARE = """
import torch
from core.test_kernels import random_scores, readable_sweep
from emc2dist.core import sweep as kernels
from emc2dist.core import kernels as triton_runs
from emc2dist.core import streams_triton, walk_triton
from emc2dist.core.streams import fork, uniforms

for shape, count, lane in (((5,), 7, 0), ((2, 3), 1, 4), ((0,), 3, 1), ((1100,), 1, 2)):
    streams = fork(3, torch.arange(shape[-1]), torch.zeros(shape, dtype=torch.int64))
    assert streams_triton.uniforms(streams, count, lane).equal(uniforms(streams, count, lane=lane))

SIZES = ((0, 3), (1, 8), (2, 8), (7, 8), (33, 8), (200, 3))
elsewhere = triton_runs.run_on
CASES = (
    (torch.float32, 0.3, True, (*SIZES, (1025, 1))),
    (torch.float64, 0.99, True, SIZES),
    (torch.float32, 0.0, False, SIZES),
    (torch.float64, 0.5, False, SIZES),
)
for dtype, fraction, shuffle, sizes in CASES:
    for columns, chains in sizes:
        scores, carried, _ = random_scores(columns, chains, columns, dtype)
        carried[0] = torch.nan
        if columns == 200:  # many acceptances
            scores = scores * 0.1
        streams = fork(columns, torch.arange(chains))
        weights, state, rate, valid = walk_triton.visit(scores, carried, streams, fraction, shuffle)
        expected, ends = readable_sweep(scores, carried, streams, fraction, shuffle)
        torch.testing.assert_close(weights, expected, rtol=0, atol=0)
        assert state.tolist() == ends[:, 0].long().tolist()
        assert valid.tolist() == ends[:, 2].long().tolist()
        torch.testing.assert_close(rate, ends[:, 1].to(dtype), rtol=1e-7, atol=0)
        whole = kernels.sweep(scores, carried, burn_in_fraction=fraction, shuffle=shuffle, streams=streams)
        for found, sought in zip((weights, state, rate, valid), whole, strict=True):
            torch.testing.assert_close(found, sought, rtol=0, atol=0)
        triton_runs.run_on = lambda scores: True  # as on a GPU
        through = kernels.sweep(scores, carried, burn_in_fraction=fraction, shuffle=shuffle, streams=streams)
        triton_runs.run_on = elsewhere
        assert all(map(torch.equal, through, whole))
nobody = walk_triton.visit(torch.zeros(0, 5), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5, True)
assert nobody[0].shape == (0, 6)
print("compared")
"""


def test_the_kernel_walks_as_the_readable_walk_does():
    done = interpreted(COMPARE)
    assert done.returncode == 0, done.stderr
    assert "compared" in done.stdout
