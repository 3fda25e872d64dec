"""A limit on the start of workers: Ray Train has none once their places are set aside.

Ray may never start an actor in its place: Ray 2.60 does not where a node's clock was set back. Or a worker hangs before
it trains. Ray Train's controller then waits for ever, and answers nobody; so it is the controller that ends itself.
"""

import threading
from typing import Any

import emc2dist.run.cluster as cluster  # before ray: sets its defaults

import ray  # isort: skip
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from typing_extensions import override

from emc2dist.run.channel import ChannelHandle


class StartLimit(WorkerGroupCallback):
    """Lives in Ray Train's controller, and kills it if the workers do not all train after `limit_s`.

    First it leaves word on the channel, by which the driver knows why, and which nodes to avoid.
    """

    def __init__(self, channel: ChannelHandle, limit_s: float) -> None:
        self._channel, self._limit_s = channel, limit_s

    @override
    def before_worker_group_start(self, worker_group_context: Any) -> None:
        context = ray.get_runtime_context()
        self._timer = threading.Timer(self._limit_s, self._end, (context.get_actor_id(), context.current_actor))
        self._timer.daemon = True  # a start that fails by itself ends the controller sooner
        self._timer.start()

    @override
    def after_worker_group_training_start(self, worker_group: Any) -> None:
        self._timer.cancel()

    def _end(self, controller: str, actor: Any) -> None:
        try:
            self._channel.give_up(cluster.not_started(controller))
        finally:
            ray.kill(actor)
