"""The guard round torchvision: makes it importable where it is not, changes nothing where it is."""

import subprocess
import sys

from emc2dist.towers import _torchvision as guard

DECLARE = """
import torch
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def test_after_the_guard_torchvision_is_one_whole_package():
    import torchvision

    assert guard.models is torchvision.models
    assert guard.v2 is torchvision.transforms.v2
    assert "resnet18" in guard.models.list_models()


def test_where_torchvision_imports_nothing_is_declared():
    whole = guard._library is None  # this machine's torchvision needs no help; elsewhere the test provides it
    code = ("" if whole else DECLARE) + "from emc2dist.towers import _torchvision as guard; print(guard._library)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"
