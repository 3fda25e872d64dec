"""Workers that do not start: the controller, which would wait for ever, is ended, and says which nodes are to blame."""

import pytest
from run.test_cluster import comes_true
from train.harness import small_spec

from emc2dist.run import cluster


@pytest.fixture
def controller(ray_cluster):
    """As Ray Train's: sets two places aside, starts workers, and waits without a limit until all have answered."""

    class Worker:  # in here, so that Ray takes it along
        def answer(self):
            return True

        def hang(self):
            import threading

            threading.Event().wait()

    class Controller:
        def start(self, channel, limit_s, workers, hangs):
            import ray
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            from emc2dist.run.start_limit import StartLimit

            limit = StartLimit(channel, limit_s)
            group = ray.util.placement_group([{"CPU": 1}] * 2)
            ray.get(group.ready(), timeout=60)
            placed = ray.remote(Worker).options(num_cpus=1, scheduling_strategy=PlacementGroupSchedulingStrategy(group))
            self.workers = [placed.remote() for _ in range(workers)]
            ray.get([worker.answer.remote() for worker in self.workers], timeout=60)
            limit.before_worker_group_start(None)
            if hangs:
                ray.get(self.workers[0].hang.remote())
            limit.after_worker_group_training_start(None)
            limit._timer.join(timeout=60)
            return limit._timer.is_alive()

    free = ray_cluster.available_resources()["CPU"]
    controller = ray_cluster.remote(Controller).options(num_cpus=0).remote()
    yield controller
    ray_cluster.kill(controller)
    assert comes_true(lambda: ray_cluster.available_resources()["CPU"] == free)


@pytest.fixture
def channel(ray_cluster):
    from emc2dist.run.channel import ChannelHandle

    return ChannelHandle.create()


@pytest.mark.parametrize(("workers", "to_blame"), [(1, 1), (2, 0)], ids=["not placed", "placed, and hangs"])
def test_a_start_that_takes_too_long_is_ended_and_the_nodes_without_workers_are_named(
    ray_cluster, controller, channel, workers, to_blame
):
    assert channel.late() is None
    with pytest.raises(ray_cluster.exceptions.ActorDiedError):
        ray_cluster.get(controller.start.remote(channel, 0.5, workers, True), timeout=60)
    here = ray_cluster.get_runtime_context().get_node_id()
    assert channel.late() == {here for _ in range(to_blame)}


def test_a_start_in_time_is_left_alone(ray_cluster, controller, channel):
    assert not ray_cluster.get(controller.start.remote(channel, 600, 2, False), timeout=60)
    assert channel.late() is None


def test_a_node_to_avoid_gets_no_worker(ray_cluster):
    here = ray_cluster.get_runtime_context().get_node_id()
    spec = small_spec()
    for avoid, ready in (({"0" * 56, "1" * 56}, True), ({here, "1" * 56}, False)):
        labels = cluster.worker_labels(spec, avoid)
        group = ray_cluster.util.placement_group([{"CPU": 1}], bundle_label_selector=[labels])
        assert group.wait(30 if ready else 1) == ready
        ray_cluster.util.remove_placement_group(group)
        assert (cluster.free_places(spec, avoid) > 0) == ready


def test_where_there_is_no_room_without_them_the_nodes_to_avoid_are_tried_again(ray_cluster, monkeypatch):
    monkeypatch.setattr(cluster, "RELEASE_S", 0.0)
    said, avoid = [], {ray_cluster.get_runtime_context().get_node_id()}
    assert cluster.wait_for_workers(small_spec(), avoid, lambda: False, said.append) == 1
    here = ray_cluster.nodes()[0]["NodeManagerAddress"]
    assert said == [f"there is no room without {here}: workers may go there again"]
    assert avoid == set()
