"""A Ray cluster to run on: the one that RAY_ADDRESS names, or one of our own on this machine.

Importing this module sets Ray's defaults for us (an environment that sets them wins), so import it before ray.
"""

import functools
import os
import secrets
import signal
import sys
import sysconfig
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from emc2dist.run.environment import DEFAULTS, past_proxies

for _name, _value in DEFAULTS.items():
    os.environ.setdefault(_name, _value)
os.environ.update(past_proxies(os.environ))

import ray  # noqa: E402
from ray._private import parameter, services  # noqa: E402
from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager  # noqa: E402
from ray._private.authentication.authentication_token_setup import AuthenticationTokenLoader  # noqa: E402
from ray._private.node import Node  # noqa: E402
from ray._private.utils import validate_socket_filepath  # noqa: E402
from ray.core.generated.gcs_pb2 import ActorTableData, PlacementGroupTableData  # noqa: E402
from ray.exceptions import RayError  # noqa: E402
from ray.job_config import JobConfig  # noqa: E402
from ray.util.placement_group import PlacementGroup, remove_placement_group  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

from emc2dist.config import Spec  # noqa: E402
from emc2dist.errors import LaunchError, RayEnded, RunError, SpecError  # noqa: E402
from emc2dist.machine import cpus  # noqa: E402
from emc2dist.run import address, limits  # noqa: E402
from emc2dist.run.access import find_token, make_token  # noqa: E402
from emc2dist.run.guard import Guard, end_process  # noqa: E402

RELEASE_S = 10.0
"""Seconds in which what a lost worker or a lost node held becomes free, or is known to be gone."""
POLL_S = 0.5
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
_ACCELERATOR = "accelerator_type:"  # and a name: a resource of Ray's
_NO_THREAD = "can't start new thread"
_guard: Guard | None = None
BOUNDLESS = 1_000_000
"""Workers that ask for nothing and fit on a node, as many as anybody wants."""


@contextmanager
def connected(spec: Spec, *, runs: int = 1, dashboard: bool = False) -> Iterator[None]:
    """A connection to a cluster with room for the run; one that was started here ends with it.

    One that is started here has room for `runs` such runs at once, and with `dashboard` Ray's State API, without which
    Ray Train gives nothing back of a run whose driver was killed in the midst of other work.

    Raises:
        SpecError: RAY_ADDRESS is no address, or the cluster is too small for the workers or the shards.
        LaunchError: no Ray can be joined where RAY_ADDRESS says (`emc2dist.run.address`), or none starts here; or
            the cluster is not on this machine, and there is no token for it; or it was lost meanwhile (RayEnded where
            it was one of our own: whoever waits has been told, and this process is ended if it does not end itself).
        RunError: Ray ended what ran there for want of memory.
    """
    ours = not ray.is_initialized()
    try:
        if ours:
            _connect(spec, runs, dashboard)
        _check_room(spec)
        yield
    except Exception as error:
        see_that_own_ray_lives(error)
        if _NO_THREAD in str(error):
            raise LaunchError(f"{error}{scarce_threads(spec)}; the same command resumes") from error
        if not isinstance(error, RayError):
            raise
        from emc2dist.run import failures  # late: it asks for this module first

        if failure := failures.fatal_text(str(error), spec):
            raise failure from error
        raise LaunchError(f"the Ray that this ran on was lost ({_chain(error)}); the same command resumes") from error
    finally:
        if ours:
            _shut_down()


def is_own() -> bool:
    """Whether the Ray that this process is connected to was started here, for it alone."""
    return _guard is not None


def see_that_own_ray_lives(error: Exception | None = None) -> None:
    """Raise RayEnded, from `error`, where Ray was started here and its processes are gone; Ray itself is not asked."""
    try:
        if _guard is not None:
            _guard.check()
    except RayEnded as ended:
        raise ended from error


def scarce_threads(spec: Spec) -> str:
    """The end of a message on what does not start in a Ray of our own: this machine's limit, where that may be why."""
    return limits.scarce(spec.workers) if is_own() else ""


def _shut_down() -> None:
    """End the connection, and with it a Ray of our own."""
    global _guard
    guard, _guard = _guard, None
    if guard is not None and not guard.told:
        guard.stop()  # else it ends the process where Ray does not return from its shutdown
    ray.shutdown()
    if guard is not None:
        guard.stop()


def in_job() -> bool:
    """Whether this is the driver of a submitted Ray job, whose working directory is a copy that goes with the job."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def leave_jobs_folder() -> None:
    """Leave the working directory of a submitted job, for home; relative paths have been resolved before.

    Nodes that share a machine unpack it anew, and whoever is still in it then is nowhere: pictures cannot be drawn, and
    processes that are started there die of it.
    """
    is_in_it = in_job() or (ray.is_initialized() and "working_dir" in ray.get_runtime_context().runtime_env)
    for folder in (Path.home(), "/") if is_in_it else ():
        with suppress(OSError):
            os.chdir(folder)
            return


def here() -> NodeAffinitySchedulingStrategy:
    """For actors that are to live on this process's node, and die with it."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def use_gpu(spec: Spec) -> bool:
    """Whether the workers train on GPUs: where a kind of them is asked for, on no CPU."""
    if spec.device != "auto" or spec.resources.accelerator is not None:
        return spec.device != "cpu"
    return spec.fitting(_places({"GPU": spec.resources.worker_gpus}, spec.resources.worker_labels)) is not None


def why_no_gpu(spec: Spec) -> str:
    """What keeps the workers from GPUs, as far as the cluster and this machine tell; empty where there are none."""
    asked, gpus = spec.resources, NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
    if ray.cluster_resources().get("GPU"):
        places = _places({"GPU": asked.worker_gpus}, asked.worker_labels)
        return f"the cluster's GPUs have room for {places} of {spec.workers} workers"
    causes = [f"this machine has {gpus}"] if gpus else []
    import torch  # here: who only asks a cluster does without

    if not torch.backends.cuda.is_built():
        causes.append(f"torch {torch.__version__} is built for CPUs")
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        causes.append(f"CUDA_VISIBLE_DEVICES is {visible!r}")
    return ", ".join(causes) if gpus or spec.device == "cuda" else ""


def room(spec: Spec) -> int:
    """The number of such runs that the cluster can hold at once, as if nothing else ran."""
    fit = _places(worker_needs(spec), spec.resources.worker_labels) // spec.workers
    mib = spec.resources.shard_mib
    return min(fit, _places({"memory": mib * 2**20}, spec.resources.shard_labels) // spec.shards) if mib else fit


def worker_needs(spec: Spec) -> dict[str, float]:
    """Resources that Ray sets aside for a worker, by its names."""
    asked = spec.resources
    if use_gpu(spec):
        # As Ray asks for a kind of GPU: each node that has some holds 1 of its name.
        kind = {} if asked.accelerator is None else {f"{_ACCELERATOR}{asked.accelerator}": 0.001}
        return {"GPU": asked.worker_gpus, "CPU": asked.worker_cpus or 0} | kind
    return {"CPU": 1 if asked.worker_cpus is None else asked.worker_cpus}


def worker_labels(spec: Spec, avoid: Collection[str] = ()) -> dict[str, str]:
    """Labels that a worker's node must have, as Ray takes them: those of the spec, and no id of `avoid`."""
    elsewhere = {ray._raylet.RAY_NODE_ID_KEY: f"!in({','.join(sorted(avoid))})"} if avoid else {}
    return spec.resources.worker_labels | elsewhere


def wait_for_workers(spec: Spec, avoid: set[str], give_up: Callable[[], bool], say: Callable[[str], None]) -> int:
    """Wait for free places of as many workers as the run may have; returns how many that is, 0 if given up.

    All of `workers` are waited for at first, for what was just let go of takes a moment to be free again. The nodes to
    `avoid`, by id, are used again, and taken from the set, where there is not room enough without them.

    Raises:
        RunError: there were not even `min_workers` after `resources.wait_s`.
    """
    began, told = monotonic(), False
    while not give_up():
        drop_leftovers()
        waited, places = monotonic() - began, free_places(spec, avoid)
        workers = spec.fitting(places)
        if workers == spec.workers or (workers is not None and waited > RELEASE_S):
            return workers
        if waited > RELEASE_S and avoid:
            say(f"there is no room without {addresses(avoid)}: workers may go there again")
            avoid.clear()
            continue
        if waited > spec.resources.wait_s:
            raise RunError(
                f"{spec.name}: the cluster has room for {places} workers, and has had no more for "
                f"{spec.resources.wait_s:g} s (resources.wait_s); add nodes or lower min_workers, then resume"
            )
        if waited > RELEASE_S and not told:
            say(f"waiting for room for {spec.workers if spec.min_workers is None else spec.min_workers} workers")
            told = True
        sleep(POLL_S)
    return 0


def free_places(spec: Spec, avoid: Collection[str] = ()) -> int:
    """The number of workers that could be started now, elsewhere than on the nodes to avoid."""
    free = ray._private.state.available_resources_per_node()  # Ray's public sum does not tell nodes apart
    nodes = [node["NodeID"] for node in _nodes(spec.resources.worker_labels) if node["NodeID"] not in avoid]
    return _times(worker_needs(spec), [{"Resources": free.get(node, {})} for node in nodes])


def drop_leftovers() -> None:
    """Remove the placement groups of this job whose creators, actors, have died.

    Ray Train leaves one where a worker dies while its group starts, and Ray keeps it until the job ends.
    """
    job = ray.get_runtime_context().get_job_id()
    for data in _placement_groups():
        ours = data.creator_job_id.hex() == job and not ray.ActorID(data.creator_actor_id).is_nil()
        if ours and data.creator_actor_dead and data.state != PlacementGroupTableData.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(data.placement_group_id)))


def not_started(creator: str) -> set[str]:
    """Ids of the nodes where an actor of id `creator` has set places aside for actors that have not come to live."""
    created = (group for group in _placement_groups() if group.state == PlacementGroupTableData.CREATED)
    own = [group for group in created if group.creator_actor_id.hex() == creator]
    alive = map(ActorTableData.FromString, _accessor().get_actor_table(None, "ALIVE"))
    groups = {group.placement_group_id for group in own}
    living = Counter(actor.node_id for actor in alive if actor.placement_group_id in groups)
    places = Counter(bundle.node_id for group in own for bundle in group.bundles)
    return {node.hex() for node in places - living}


def addresses(nodes: Collection[str]) -> str:
    """Of nodes by id, for people."""
    known = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    return ", ".join(sorted(known.get(node, node) for node in nodes))


def draining() -> set[str]:
    """Ids of nodes that are about to be taken away."""
    return set(ray._private.state.state.get_draining_nodes())  # public only as a barrier of all workers


def _placement_groups() -> Iterator[PlacementGroupTableData]:
    """All that Ray knows of; its public table does not tell the creators."""
    return map(PlacementGroupTableData.FromString, _accessor().get_placement_group_table())


def _accessor() -> Any:
    return ray._private.state.state._connect_and_get_accessor()


def _connect(spec: Spec, runs: int, dashboard: bool) -> None:
    named = address.named()
    if named is None:
        limits.refuse_too_few(spec.workers)
        # One CPU a worker is Ray's ticket to run, not a promise of a core: more workers than cores are slow but fine.
        # Ray starts an idle process for each CPU, so those that are not ours to use are none.
        _start(max(cpus(), spec.workers * runs), dashboard)
        return
    address.check(named, authorised=in_job())
    try:
        with _signals_left_alone():
            ray.init(job_config=_job_config(), **_QUIET)
    except Exception as error:  # Ray raises anything, bare Exceptions too
        raise LaunchError(f"RAY_ADDRESS: {named}: Ray cannot be joined there ({_chain(error)})") from error


def _start(places: int, dashboard: bool) -> None:
    """Start a Ray of our own on this machine, with a guard over it."""
    global _guard
    _make_token()
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"  # Ray asks them in this order
    folder = os.environ.get(name) or tempfile.gettempdir()
    try:
        # Ray sees this too, but leaves the session's folder there.
        validate_socket_filepath(f"{folder}/ray/session_{'0' * 26}_{os.getpid()}/sockets/plasma_store")
        with _sessions_of_their_own(), _lean(dashboard), _asked_first(), _signals_left_alone():
            ray.init(address="local", num_cpus=places, include_dashboard=dashboard, job_config=_job_config(), **_QUIET)
            _guard = _guard_of(ray._private.worker._global_node)
    except LaunchError:
        raise
    except Exception as error:  # Ray raises anything, bare Exceptions too
        if short := limits.scarce(1):
            raise LaunchError(f"Ray does not start on this machine ({_chain(error)}){short}") from error
        raise LaunchError(
            f"Ray does not start on this machine ({_chain(error)}); it keeps sockets and logs in {folder}: set "
            f"{name} to a folder with a short name that may be written to and has room"
        ) from error


def _guard_of(node: Any) -> Guard:
    """A guard over the processes that Ray has started for a node."""

    def end() -> None:
        end_process(lambda: node.kill_all_processes(check_alive=False))

    return Guard(lambda: [(name, process.returncode) for name, process in node.dead_processes()], end)


def _told_by_ray(data: dict[str, Any], ignore_prefix: bool) -> None:
    """Have Ray's own messages go to stderr; Ray prints them on stdout, where results go.

    But for dozens of lines of a raylet's log at its end, which the guard tells.
    """
    if not any("Raylet is terminated" in line for line in data["lines"]):
        _RAYS_PRINT(data | {"is_err": True}, ignore_prefix)


_RAYS_PRINT = ray._private.worker.print_to_stdstream
ray._private.worker.print_to_stdstream = _told_by_ray


def _job_config() -> JobConfig:
    config = JobConfig()
    config._py_driver_sys_path = _Paths()
    return config


class _Paths(list[str]):
    """Folders that Ray's workers put, one after the other, in front of where they import from.

    Ray gives them the working folder, whose profile.py or queue.py would then stand in for those of Python. Here they
    get what the driver itself imports from, and the standard library before it.
    """

    def extend(self, folders: Iterable[str]) -> None:
        seen = {os.path.realpath(folder) for folder in sys.path}
        own = [folder for folder in folders if os.path.realpath(folder) in seen]
        library = sysconfig.get_path("stdlib")
        super().extend([*own, f"{library}/lib-dynload", library] if own else [])


@contextmanager
def _sessions_of_their_own() -> Iterator[None]:
    """Have Ray put each of its processes into a session of its own.

    It leaves them in the driver's process group, and has no option for it: a SIGTERM to the group, as timeout(1),
    systemd and Slurm send it, would end Ray under the run that wants to write its last checkpoint.
    """
    process = services.ConsolePopen
    services.ConsolePopen = functools.partial(process, start_new_session=True)
    try:
        yield
    finally:
        services.ConsolePopen = process


@contextmanager
def _lean(dashboard: bool) -> Iterator[None]:
    """Have Ray start only what a Ray of our own needs, and wait for nothing in vain; `ray.init` has no options for it.

    One of its processes would add nodes to this machine, one tell the driver of its workers' output, and without
    `dashboard` the API server report usage alone: more than a CPU second at the start, and one at the end. The port of
    its agent is a fixed one, for which a second Ray on a machine tries for three seconds before it does without.
    """
    params, start = parameter.RayParams, Node.start_api_server
    parameter.RayParams = functools.partial(
        params, no_monitor=True, include_log_monitor=False, dashboard_agent_listen_port=0
    )
    if not dashboard:
        Node.start_api_server = lambda node, **options: None
    try:
        yield
    finally:
        parameter.RayParams, Node.start_api_server = params, start


@contextmanager
def _asked_first() -> Iterator[None]:
    """Have a Ray of our own be given up where its server cannot be reached.

    Ray tries it twenty times for 40 s each, and hears no signal within one.
    """
    connect = Node._init_gcs_client

    def ask_and_connect(node: Node) -> None:
        address.check_own(node.gcs_address)
        connect(node)

    Node._init_gcs_client = ask_and_connect
    try:
        yield
    finally:
        Node._init_gcs_client = connect


@contextmanager
def _signals_left_alone() -> Iterator[None]:
    """Keep SIGTERM's handler, where `ray.init` sets one of its own that ends the process without a word.

    What Ray's C++ sets beside it prints a trace before it calls the one that was there, until that is set again.
    """
    theirs = ray._private.utils.set_sigterm_handler
    ray._private.utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler = theirs
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _make_token() -> None:
    """Make the token of a Ray of our own where there is none: in the home folder, or for it alone.

    Ray would make one itself, but writes over the file whenever it finds none there that it can read.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return
    if find_token() is None:
        with suppress(OSError, RuntimeError):  # no home folder, or none that may be written to
            make_token()
    tokens = AuthenticationTokenLoader.instance()
    tokens.reset_cache()
    if not tokens.has_token(ignore_auth_mode=True):  # also where Ray, which asks HOME alone, looks elsewhere
        os.environ["RAY_AUTH_TOKEN"] = find_token() or secrets.token_hex(32)
        tokens.reset_cache()


def _chain(error: BaseException) -> str:
    """The messages of an error and its causes, in one line."""
    texts = [" ".join(str(error).split()) or type(error).__name__]
    while error.__cause__ is not None:
        error = error.__cause__
        texts.append(" ".join(str(error).split()))
    return "; ".join(texts)[:500]


def _check_accelerator(spec: Spec) -> None:
    """Raise SpecError where no node has the GPUs that are asked for by their name."""
    wanted = spec.resources.accelerator
    if wanted is None:
        return
    kinds = [name for name in ray.cluster_resources() if name.startswith(_ACCELERATOR)]
    if f"{_ACCELERATOR}{wanted}" not in kinds:
        there = ", ".join(sorted(name.removeprefix(_ACCELERATOR) for name in kinds))
        has = f"has {there}" if there else "tells of no GPU" + (f" ({why})" if (why := why_no_gpu(spec)) else "")
        raise SpecError(
            f"resources.accelerator: {wanted}, but the cluster {has}; give a name as Ray has it, leave it out to take "
            "any GPU or none, or add nodes"
        )


def _check_room(spec: Spec) -> None:
    needs, labels = worker_needs(spec), spec.resources.worker_labels
    places = _places(needs, labels)
    if spec.fitting(places) is None:
        _check_accelerator(spec)
        if spec.device == "cuda" and not ray.cluster_resources().get("GPU"):
            why = f" ({found})" if (found := why_no_gpu(spec)) else ""
            raise SpecError(f"device: cuda, but Ray finds no GPU{why}; give device=auto or device=cpu, or add nodes")
        each = " and ".join(f"{needs[kind]:g} {kind}" for kind in ("GPU", "CPU") if needs.get(kind))
        where = f" on nodes with labels {labels}" if labels else ""
        raise SpecError(
            f"workers: {spec.workers} need {each} each, the cluster has room for {places}{where}; "
            f"lower workers or min_workers, change resources{' or device' * (spec.device == 'cuda')} or add nodes"
        )
    mib, labels = spec.resources.shard_mib, spec.resources.shard_labels
    if labels and not _nodes(labels):
        raise SpecError(
            f"resources.shard_labels: no node of the cluster carries {labels}; nodes get labels from "
            "`ray start --labels` or their group of the manifest"
        )
    if mib and _places({"memory": mib * 2**20}, labels) < spec.shards:
        raise SpecError(
            f"resources.shard_mib: {spec.shards} shards need {mib} MiB each, the cluster has room for "
            f"{_places({'memory': mib * 2**20}, labels)}; lower it, or add nodes"
        )


def _places(needs: dict[str, float], labels: dict[str, str]) -> int:
    """The number of times that the needs can be met on nodes with those labels, as if nothing else ran."""
    return _times(needs, _nodes(labels))


def _times(needs: dict[str, float], nodes: Iterable[dict[str, Any]]) -> int:
    asked = {kind: amount for kind, amount in needs.items() if amount}
    return sum(
        min((int(node["Resources"].get(kind, 0) / amount + 1e-9) for kind, amount in asked.items()), default=BOUNDLESS)
        for node in nodes
    )


def _nodes(labels: dict[str, str]) -> list[dict[str, Any]]:
    gone = draining()
    return [
        node
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in gone and labels.items() <= node["Labels"].items()
    ]
