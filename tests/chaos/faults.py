"""Faults, each injected for real into a Ray of several nodes on this machine: processes are killed, stopped or asked to
end by pid, nodes with all their processes, networks unplugged, clocks set, files damaged, the disk filled.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import psutil
import tmpfs
from chaos.machines import Machines
from command import title

from emc2dist.launch import processes
from emc2dist.launch.local import LocalCluster

ROOT = Path(__file__).parents[2]
NODES = 3
# Ours, Train's and Tune's.
ACTORS = ("RayTrainWorker", "_ShardActor", "_NodeExchange", "Channel", "TrainController", "_Inner", "StopRequests")
HELPERS = ("Channel", "_NodeExchange", "TrainController", "SynchronizationActor", "PlacementGroupCleaner")
DISK_MIB = 500  # four checkpoints of 90 MB, and a bit
TUNED = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "15",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
}
"""So that a test waits seconds for what is noticed after minutes by default; the same code notices it."""


class World:
    """A cluster, a run on it by the command, and what can happen to them."""

    COMMAND, RUN_DIR = "train", "run_dir"

    def __init__(self, folder: Path, arguments: list[str], run: str, nodes: int = NODES) -> None:
        runs, self.temporary = folder / "runs", folder / "tmp"
        self.folder, self.run, self.arguments = folder, runs / run, [*arguments, f"{self.RUN_DIR}={runs}"]
        self.temporary.mkdir()
        self.disk = runs if tmpfs.mount(runs, DISK_MIB) else None
        self.cluster = Machines(folder / "ray") if Machines.possible() else LocalCluster(folder / "ray")
        self.log: list[str] = []
        self.struck: tuple[str, float, int] | None = None
        self.driver: subprocess.Popen | None = None
        try:
            self.start_nodes(nodes)
            self.start_driver()
        except BaseException:
            self.close()
            raise

    def start_nodes(self, nodes: int = NODES) -> None:
        """Start those that do not run."""
        own = {**TUNED, "TMPDIR": str(self.temporary)}
        with mock.patch.dict(os.environ, own):
            self.connection = self.cluster.start(nodes, cpus=1)

    def start(self, *command: str, **options) -> subprocess.Popen:
        """Start Python on the head's machine, connected to the cluster."""
        with self.cluster.on("head") if isinstance(self.cluster, Machines) else contextlib.nullcontext():
            inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
            own = {**TUNED, "TMPDIR": str(self.temporary), **self.connection.environment()}
            return subprocess.Popen([sys.executable, *command], env={**inherited, **own}, cwd=ROOT, **options)

    def ask(self, *command: str) -> str:
        """What such a Python prints."""
        process = self.start(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        answer, _ = process.communicate(timeout=60)
        assert process.returncode == 0, answer
        return answer

    def start_driver(self) -> None:
        with (self.folder / "driver.log").open("a") as output:
            own_session = {"stdout": output, "stderr": output, "start_new_session": True}
            self.driver = self.start("-m", "emc2dist", self.COMMAND, *self.arguments, **own_session)

    def steps(self) -> int:
        """The newest step that the run folder tells of."""
        with contextlib.suppress(OSError, json.JSONDecodeError, IndexError):
            return int(json.loads((self.run / "metrics.jsonl").read_text().splitlines()[-1])["step"])
        return 0

    def restores(self) -> int:
        """How often the run has gone on from a checkpoint, as far as its folder tells."""
        with contextlib.suppress(OSError):
            return (self.run / "metrics.jsonl").read_text().count('"resumed": 1')
        return 0

    def keep_driver(self) -> None:
        """One that has ended before its run has is started again, as its user would."""
        if self.driver.poll() is not None and not self.finished():
            self.note(f"  the driver ended with {self.driver.returncode} and is started again")
            self.start_driver()

    def strike(self, fault, rng) -> None:
        self.keep_driver()
        self.note(f"{fault.__name__} at step {self.steps()}")
        self.struck = (fault.__name__, time.monotonic(), self.restores())
        fault(self, rng)

    def note(self, line: str) -> None:
        self.log.append(line)
        print(line, flush=True)

    def _see_whether_it_went_on(self) -> None:
        if self.struck and self.restores() > self.struck[2]:
            fault, when, _ = self.struck
            self.note(f"  {fault}: went on after {time.monotonic() - when:.1f} s")
            self.struck = None

    def finished(self) -> bool:
        return (self.run / "summary.json").exists()

    def wait_for(self, condition, seconds: float, what: str) -> None:
        """Wait, and keep the driver."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, (
                f"{what} took more than {seconds} s\n" + "\n".join(self.log) + self.tail()
            )
            self.keep_driver()
            self._see_whether_it_went_on()
            time.sleep(0.1)

    def wait_for_end(self) -> None:
        """Wait until the command has done all it was asked to, and has ended well."""
        self.wait_for(self.finished, 600, "the end")
        self.wait_for(lambda: self.driver.poll() is not None, 60, "the driver's end")
        assert self.driver.returncode == 0, self.tail()

    def check_that_nothing_is_left(self) -> None:
        """Of actors and temporary files; actors may take a moment."""
        self.wait_for(lambda: not any(self.processes(f"ray::{name}") for name in ACTORS), 60, "the end of all actors")
        assert not list(self.temporary.glob("emc2*"))

    def tail(self) -> str:
        return (self.folder / "driver.log").read_text()[-3000:]

    def processes(self, name: str) -> list[psutil.Process]:
        """Processes of the cluster whose title has `name` in it, by pid."""
        pids = [int(path.read_text()) for path in self.cluster.folder.glob("*.pid")]
        found = [process for pid in pids for process in processes.members(pid)]
        return sorted((p for p in found if name in title(p)), key=lambda process: process.pid)

    def close(self) -> None:
        if self.driver and self.driver.poll() is None:
            self.driver.kill()
            self.driver.wait(timeout=30)
        self.cluster.stop()
        if self.disk:
            tmpfs.unmount(self.disk)


def _signal_one(world, rng, name, number):
    found = world.processes(name)
    if found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(found[rng.integers(len(found))].pid, number)


def kill_worker(world, rng):
    _signal_one(world, rng, "ray::RayTrainWorker", signal.SIGKILL)


def kill_shard(world, rng):
    _signal_one(world, rng, "ray::_ShardActor", signal.SIGKILL)


def kill_worker_and_shard(world, rng):
    kill_worker(world, rng)
    kill_shard(world, rng)


def kill_helper(world, rng):
    """One of the processes beside: the run's channel, what joins a node's workers, and those that Ray Train has."""
    name = HELPERS[rng.integers(len(HELPERS))]
    _signal_one(world, rng, f"ray::{name}", signal.SIGKILL)
    world.note(f"  {name}")


def hang_worker(world, rng):
    _signal_one(world, rng, "ray::RayTrainWorker", signal.SIGSTOP)


def hang_shard(world, rng):
    _signal_one(world, rng, "ray::_ShardActor", signal.SIGSTOP)


def pause_shard(world, rng):
    """For less or more than `store.timeout_s`: calls that time out are then executed all the same."""
    found = world.processes("ray::_ShardActor")
    if found:
        process = found[rng.integers(len(found))]
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
            pass_time(world, rng.uniform(1, 15))
            process.resume()


def kill_in_checkpoint(world, rng):
    world.wait_for(lambda: any(world.temporary.glob("emc2-*/checkpoint-*")) or world.finished(), 240, "a checkpoint")
    kill_worker(world, rng)


def kill_in_restore(world, rng):
    """The second one dies on its way back from the death of the first."""
    kill_worker(world, rng)
    before = set(world.temporary.glob("emc2-*"))
    world.wait_for(lambda: set(world.temporary.glob("emc2-*")) - before or world.finished(), 240, "the way back")
    kill_worker(world, rng)


def kill_node(world, rng):
    """A node and all that is on it; another comes in its place, as in a cloud."""
    name = f"worker-{rng.integers(1, NODES + 1)}"
    end_node(world, name)
    world.start_nodes()


def drain_node(world, rng):
    """A node is taken away with a notice of 20 seconds, and really goes; another comes in its place."""
    name = f"worker-{rng.integers(1, NODES + 1)}"
    command = ["-m", "ray.scripts.scripts", "drain-node", "--node-id", _node_id(world, name)]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "notice"]
    command += ["--deadline-remaining-seconds", "20", "--address", world.connection.address]
    world.ask(*command)
    pass_time(world, 20)
    end_node(world, name)
    world.start_nodes()


def cut_off_node(world, rng):
    """Nothing reaches a machine any more, but it lives on, and is plugged in again when it has been given up."""
    name = f"worker-{rng.integers(1, NODES + 1)}"
    world.cluster.unplug(name)
    pass_time(world, 15)
    world.cluster.plug_in(name)
    pass_time(world, 5)
    end_node(world, name)
    world.start_nodes()


def set_clock(world, rng):
    """The clock of one machine is set, by up to a day forward or back."""
    name = ["head", *(f"worker-{number + 1}" for number in range(NODES))][rng.integers(NODES + 1)]
    ahead_s = world.cluster.advance_clock(name, int(rng.integers(-86400, 86400)))
    with world.cluster.on(name):
        told = int(subprocess.run(["date", "+%s"], capture_output=True, check=True, timeout=30).stdout)
    assert abs(told - time.time() - ahead_s) < 60
    world.note(f"  {name}: {ahead_s / 3600:+.1f} h")


def kill_driver(world, rng):
    world.driver.send_signal(signal.SIGKILL)
    world.driver.wait(timeout=30)


def stop_driver(world, rng):
    """SIGTERM: a checkpoint is written, and the same command goes on."""
    world.driver.send_signal(signal.SIGTERM)
    world.driver.wait(timeout=120)
    assert world.finished() or world.driver.returncode == 143, world.tail()


def damage_checkpoint(world, rng):
    """One byte of the newest checkpoint is flipped while the driver is dead."""
    kill_driver(world, rng)
    folders = sorted(world.run.glob("checkpoint-*"))
    if len(folders) > 1:  # the only one is never damaged: there would be nothing before it
        files = sorted(path for path in folders[-1].iterdir() if path.stat().st_size)
        path = files[rng.integers(len(files))]
        data = bytearray(path.read_bytes())
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        world.note(f"  {folders[-1].name}/{path.name}")


def fill_disk(world, rng):
    """The run folder's disk is full until the run has given up, with one clear message."""
    filler = world.disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))
    world.driver.wait(timeout=300)
    filler.unlink()
    if not world.finished():
        assert world.driver.returncode == 2, world.tail()
        assert "No space left on device; make room on its disk" in world.tail().splitlines()[-1], world.tail()


def pass_time(world, seconds):
    """Let the run go on for so long."""
    end = time.monotonic() + seconds
    world.wait_for(lambda: time.monotonic() > end, seconds + 60, "waiting")


def end_node(world, name):
    pid = int((world.cluster.folder / f"{name}.pid").read_text())
    for process in processes.members(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _node_id(world, name):
    """By its address, which tells which is which. One that was just replaced may take a moment to be known."""
    program = f"""if True:
        import ray, time
        ray.init(logging_level="error", log_to_driver=False)
        while True:
            here = [n for n in ray.nodes() if n["Alive"] and n["NodeManagerAddress"] == "{world.cluster.address(name)}"]
            if here:
                break
            time.sleep(0.3)
        print(here[0]["NodeID"])
    """
    return world.ask("-c", program).split()[-1]


FAULTS = [
    kill_worker, kill_shard, kill_worker_and_shard, kill_in_checkpoint, kill_in_restore, kill_helper, hang_worker,
    hang_shard, pause_shard, kill_node, drain_node, kill_driver, stop_driver, damage_checkpoint,
]  # fmt: skip
if os.getuid() == 0:  # who alone may mount a disk
    FAULTS += [fill_disk]
if Machines.possible():
    FAULTS += [cut_off_node, set_clock]
