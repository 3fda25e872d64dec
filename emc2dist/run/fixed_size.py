"""A cluster to which no nodes are added: Ray Train asks nobody for them.

By its own policy its controller starts an actor that tells Ray's autoscaler how many workers are wanted, and waits for
it before it starts any: a second at the start of a run. A Ray of our own has no autoscaler that would listen.
"""

import emc2dist.run.cluster  # noqa: F401  before ray: sets its defaults

from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy  # isort: skip
from typing_extensions import override


class FixedSize(FixedScalingPolicy):
    """As many workers as were asked for, of nodes that are there. Lives in Ray Train's controller."""

    @override
    def after_controller_start(self, train_run_context: object) -> None:
        pass

    @override
    def _maybe_send_resource_request(self) -> None:
        pass
