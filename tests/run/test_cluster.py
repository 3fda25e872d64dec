"""Room for a run on a real Ray: as many workers as there are places, and a limit to waiting for them."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from functools import reduce
from pathlib import Path

import pytest
from command import on
from train.harness import small_spec

from emc2dist.config import dump
from emc2dist.errors import LaunchError, RunError, SpecError, StoreError
from emc2dist.run import cluster
from emc2dist.run.elastic import NodeMonitor

from ray._private import parameter  # isort: skip
from ray._private.node import Node  # isort: skip


@pytest.mark.parametrize(("places", "workers"), [(0, None), (1, 1), (2, 2), (3, 2), (4, 4), (9, 4)])
def test_workers_are_as_many_as_fit_and_share_the_batch_evenly(places, workers):
    assert small_spec("workers=4", "min_workers=1").fitting(places) == workers
    assert small_spec("workers=4").fitting(places) == (4 if places >= 4 else None)


def test_a_run_waits_for_its_fewest_workers_and_no_longer_than_it_may(ray_cluster):
    said = []
    assert cluster.wait_for_workers(small_spec("workers=4"), set(), lambda: False, said.append) == 4
    assert cluster.wait_for_workers(small_spec("resources.worker_cpus=0"), set(), lambda: False, said.append) == 1
    assert said == []
    spec = small_spec("workers=16", "batch_size=32", "resources.wait_s=0.1")
    with pytest.raises(RunError, match=r"the cluster has room for \d workers, .* add nodes or lower min_workers"):
        cluster.wait_for_workers(spec, set(), lambda: False, said.append)
    assert cluster.wait_for_workers(spec, set(), lambda: True, said.append) == 0


def test_what_a_cluster_can_never_hold_is_refused_with_the_numbers(ray_cluster):
    for overrides, message in (
        (["workers=16", "batch_size=32"], "workers: 16 need 1 CPU each, the cluster has room for 8"),
        (["resources.worker_labels={a: b}"], "room for 0 on nodes with labels {'a': 'b'}"),
        (["resources.shard_labels={ray.io/zone: moon}"], "no node of the cluster carries {'ray.io/zone': 'moon'}"),
        (["resources.shard_mib=99999999"], "1 shards need 99999999 MiB each, the cluster has room for 0"),
    ):
        with pytest.raises(SpecError) as refused, cluster.connected(small_spec(*overrides)):
            pass
        assert message in str(refused.value)


def test_a_folder_too_long_for_rays_sockets_is_refused_before_anything_is_made_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was asked"))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 60)))
    with pytest.raises(LaunchError, match=r"cannot exceed 10\d bytes: .* set RAY_TMPDIR to a folder with a short name"):
        cluster._start(1, dashboard=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dashboard", [False, True])
def test_a_ray_of_our_own_starts_with_what_it_needs_and_waits_for_no_port(dashboard, monkeypatch):
    start, asked = Node.start_api_server, []

    def init(**_):
        asked.append((parameter.RayParams(), Node.start_api_server is start))
        raise RuntimeError("far enough")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(LaunchError, match="far enough"):
        cluster._start(1, dashboard=dashboard)
    ((params, has_api_server),) = asked
    assert (params.no_monitor, params.include_log_monitor, params.dashboard_agent_listen_port) == (True, False, 0)
    assert has_api_server == dashboard
    assert parameter.RayParams().dashboard_agent_listen_port != 0  # whoever else starts a Ray here gets what Ray has
    assert Node.start_api_server is start


UNREACHED = """
import emc2dist.run.cluster as cluster
from emc2dist.run import address
address.OWN_S = 1.0
try:
    cluster._start(1, dashboard=False)
except cluster.LaunchError as error:
    print(error)
"""


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode != 0,
    reason="no networks may be made here",
)
def test_where_rays_processes_cannot_reach_each_other_it_is_told_at_once():
    """Ray itself tries for a quarter of an hour, and hears no signal meanwhile."""
    command = ["unshare", "--net", sys.executable, "-c", UNREACHED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Ray starts on this machine, but its server at 127.0.0.1:")
    assert done.stdout.count("\n") == 1


INTERRUPTED = """
import os, sys
import ray._private.worker as worker
from emc2dist.cli import main
connect = worker.connect
def connect_and_be_told(*args, **kwargs):
    connect(*args, **kwargs)
    os.kill(os.getpid(), int(sys.argv[1]))
worker.connect = connect_and_be_told
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_ray_starts_ends_as_any_other(ray_cluster, tmp_path, number, status):
    """Left to Ray and Python it ended by SIGSEGV or SIGABRT: what Ray runs in threads outlived the interpreter."""
    spec = tmp_path / "small.yaml"
    spec.write_text(dump(small_spec(f"run_dir={tmp_path}")))
    command = [sys.executable, "-c", INTERRUPTED, str(int(number)), "train", str(spec)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=on(ray_cluster))
    assert done.returncode == status, done.stderr
    said = f"emc2dist: {tmp_path / 'small'}: stopped while it waited for its places; the same command resumes"
    assert done.stderr.splitlines()[-1] == said


def test_workers_that_are_not_there_yet_do_not_take_their_own_places_for_room(ray_cluster, monkeypatch):
    monkeypatch.setattr("emc2dist.run.elastic.INTERVAL_S", 0.0)
    here, nowhere = ray_cluster.get_runtime_context().get_node_id(), set[str]()
    spec = small_spec("workers=4", "min_workers=1").model_copy(update={"workers": 2})
    assert NodeMonitor(spec, 4, lambda: nowhere, lambda: {here}).reason_to_move() is None
    reason = NodeMonitor(spec, 4, lambda: {here}, lambda: nowhere).reason_to_move()
    assert reason.startswith("there is room for 4 workers")
    assert NodeMonitor(spec, 2, lambda: {here}, lambda: nowhere).reason_to_move() is None
    assert NodeMonitor(spec, 4, lambda: {here}, lambda: nowhere, {here}).reason_to_move() is None


def test_a_shard_that_is_lost_meanwhile_is_no_reason_to_move(ray_cluster, monkeypatch):
    def lost():
        raise StoreError("shard 0 of 1 was lost")

    monkeypatch.setattr("emc2dist.run.elastic.INTERVAL_S", 0.0)
    monkeypatch.setattr(cluster, "draining", lambda: {"a node"})
    spec = small_spec()
    assert NodeMonitor(spec, 1, lambda: set(), lost).reason_to_move() is None
    assert NodeMonitor(spec, 1, lambda: set(), lambda: {"a node"}).reason_to_move().startswith("a node is about to be")


def test_what_dead_creators_have_left_is_given_back_and_nothing_else(ray_cluster):
    class Creator:
        def create(self):
            import ray

            self.group = ray.util.placement_group([{"CPU": 1}])
            ray.get(self.group.ready(), timeout=60)

    def free():
        return ray_cluster.available_resources()["CPU"]

    before = free()
    own = ray_cluster.util.placement_group([{"CPU": 1}])  # its creator is no actor
    ray_cluster.get(own.ready(), timeout=60)
    dead, alive = (ray_cluster.remote(Creator).options(num_cpus=0).remote() for _ in range(2))
    ray_cluster.get([dead.create.remote(), alive.create.remote()], timeout=60)
    assert comes_true(lambda: free() == before - 3)
    ray_cluster.kill(dead)
    assert comes_true(lambda: free() == before - 2)
    cluster.drop_leftovers()
    ray_cluster.kill(alive)
    assert comes_true(lambda: free() == before - 1)
    ray_cluster.util.remove_placement_group(own)
    assert comes_true(lambda: free() == before)


def test_a_driver_leaves_the_working_directory_of_its_job_alone(monkeypatch, tmp_path):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    cluster.leave_jobs_folder()
    assert Path.cwd() == tmp_path  # it is no job's
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    cluster.leave_jobs_folder()
    assert Path.cwd() == tmp_path / "home"
    monkeypatch.setenv("HOME", str(tmp_path / "gone"))
    cluster.leave_jobs_folder()
    assert Path.cwd() == Path("/")


def test_so_does_what_works_for_it(ray_cluster, tmp_path):
    """A worker of Ray starts in the job's folder; loaders that it starts would die in one that is gone."""

    def found():
        before = Path.cwd()
        cluster.leave_jobs_folder()
        return before, Path.cwd()

    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "spec.yaml").touch()
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "job")
    task = ray_cluster.remote(num_cpus=0)(found)
    before, after = ray_cluster.get(task.options(runtime_env={"working_dir": f"file://{packed}"}).remote())
    assert "working_dir_files" in str(before)
    assert after == Path.home()
    before, after = ray_cluster.get(task.remote())
    assert before == after


def test_a_ray_of_our_own_has_a_place_for_each_cpu_that_may_be_used_and_each_worker(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "cpus", lambda: 3)
    asked = []
    monkeypatch.setattr(cluster, "_start", lambda places, dashboard: asked.append(places))
    cluster._connect(small_spec(), 1, False)
    cluster._connect(small_spec("workers=2", "batch_size=32"), 4, False)
    assert asked == [3, 8]


def test_workers_import_what_the_driver_does_and_the_standard_library_first(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()

    def path_of(*seen):
        monkeypatch.setattr("sys.path", [*seen, "/elsewhere"])
        config = cluster._job_config()
        config._py_driver_sys_path.extend([str(tmp_path / "jobs"), str(tmp_path)])  # as Ray does
        sent = config._get_proto_job_config().py_driver_sys_path
        return reduce(lambda path, folder: [folder, *path], sent, [])  # as Ray's workers do

    library = sysconfig.get_path("stdlib")
    assert path_of() == []
    assert path_of(str(tmp_path / "jobs"))[::2] == [library, str(tmp_path / "jobs")]
    assert path_of("")[::2] == [library, str(tmp_path)]
    assert all(map(os.path.isdir, path_of("")))


def comes_true(condition):
    """Whether it does, within a minute in which leftovers are dropped again and again."""
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            return False
        cluster.drop_leftovers()
        time.sleep(0.2)
    return True
