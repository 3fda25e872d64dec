"""Group norm's kernels in Triton's interpreter, against torch's in float64; in a process of its own, as the sweep's."""

from triton_interpreter import NEEDED, interpreted

pytestmark = NEEDED

COMPARE = """
import torch
from torch.nn import functional
from emc2dist.towers import norms
from emc2dist.towers.norms_triton import GroupNormFunction

asked, apply = [], GroupNormFunction.apply
GroupNormFunction.apply = lambda *given: asked.append(given) or apply(*given)
norms.kernels.run_on = lambda given: True  # as on a GPU
torch.manual_seed(0)
SHAPES = (
    (2, 16, 4, 9, 7),
    (2, 12, 4, 1, 1),
    (1, 64, 32, 70, 70),
    (2, 33, 11, 5, 5),
    (1, 8, 2, 3),
    (2, 64, 32, 9, 7, "last"),
    (2, 96, 3, 40, 30, "last"),
    (2, 12, 4, 3, 3, "last"),  # channels that fill no program lie before pixels meanwhile
)
for n, channels, groups, *pixels in SHAPES:
    last = pixels[-1] == "last"
    pixels = pixels[:-1] if last else pixels
    for dtype in (torch.bfloat16, torch.float16):
        layer = norms.GroupNorm(groups, channels)
        with torch.no_grad():
            layer.weight.uniform_(0.5, 2)
            layer.bias.uniform_(-1, 1)
        given = (torch.randn(n, channels, *pixels) + 30).to(dtype)  # a mean far from 0
        given = (given.to(memory_format=torch.channels_last) if last else given).requires_grad_()
        made = layer(given)
        assert made.is_contiguous() != (last and channels > 12)
        exact = [t.detach().double().requires_grad_() for t in (given, layer.weight, layer.bias)]
        expected = functional.group_norm(exact[0], groups, *exact[1:])
        # The interpreters of some Tritons cut bf16 off where a GPU rounds.
        step = torch.finfo(dtype).eps * (1.01 if dtype == torch.bfloat16 else 0.51)
        assert made.dtype == dtype
        torch.testing.assert_close(made.double(), expected, rtol=step, atol=1e-4)
        pull = torch.randn(made.shape).to(dtype)
        made.backward(pull)
        expected.backward(pull.double())
        assert given.grad.dtype == dtype
        torch.testing.assert_close(given.grad.double(), exact[0].grad, rtol=step, atol=1e-4)
        for found, sought in zip((layer.weight, layer.bias), exact[1:], strict=True):
            torch.testing.assert_close(found.grad.double(), sought.grad, rtol=1e-4, atol=1e-3)
assert len(asked) == 2 * len(SHAPES)
layer(torch.zeros(0, 12, 3, dtype=torch.bfloat16))  # no image, no program
layer(torch.zeros(1, 12, 3))  # float32 is torch's
assert len(asked) == 2 * len(SHAPES)
print("compared")
"""


def test_the_kernels_do_what_torchs_group_norm_does_in_float64():
    done = interpreted(COMPARE)
    assert done.returncode == 0, done.stderr
    assert "compared" in done.stdout
