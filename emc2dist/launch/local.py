"""A Ray of several nodes on this machine, behind a token: a head without work on it, and nodes for workers.

All of it lies in one private folder: the token, a pid file and a log for each node, the dashboard's URL, and what Ray
writes. Two folders, two clusters. A node is a session of its own (processes.py), so exactly what was started is ended.

Nodes have loopback addresses, and the dashboard listens there alone. But Ray opens its other ports on every interface
and has no option for it: they ask for the token, except that anybody may read the metrics. Elsewhere than on Linux
127.0.0.1 is the only loopback address; the head is then the one node and does the work.
"""

import errno
import fcntl
import os
import random
import re
import secrets
import signal
import socket
import sys
import sysconfig
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from emc2dist import files, machine
from emc2dist.errors import LaunchError, SpecError
from emc2dist.files import explained
from emc2dist.launch import processes
from emc2dist.run.environment import DEFAULTS, past_proxies
from emc2dist.terminal import say

NODE_TIMEOUT_S = 120.0
LOCK_TIMEOUT_S = 300.0
STOP_GRACE_S = 15.0
MOST_WORKERS = 200
MOST_CPUS = 100_000
LONGEST_FOLDER = 34

_SEVERAL = sys.platform == "linux"
_NODE = re.compile(r"head|worker-[1-9]\d*")
_OURS = re.compile(rf"({_NODE.pattern})\.(pid|log)|token|token\.draft|dashboard|ray|lock")
_READY = b"will now block forever"  # the last that `ray start --block` says, when all is up


@dataclass(frozen=True)
class Connection:
    """The address of a cluster, and its token."""

    address: str
    """Where drivers on this machine connect, HOST:PORT."""
    dashboard: str
    """URL of the dashboard, to which jobs are submitted."""
    token: Path
    """The file that holds the token."""

    def environment(self) -> dict[str, str]:
        """The variables that lead Ray's drivers and tools to it."""
        return {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}


class LocalCluster:
    """The cluster of one folder: by default that of EMC2DIST_CLUSTER, else /tmp/emc2dist-UID."""

    def __init__(self, folder: Path | None = None) -> None:
        # Not below TMPDIR, which differs between shells and may be too long for the sockets.
        default = os.environ.get("EMC2DIST_CLUSTER", "").strip() or f"/tmp/emc2dist-{os.getuid()}"
        self.folder = (folder or files.local(default)).absolute()
        self._ray = self.folder / "ray"  # Ray opens its folder to everybody; the one around it keeps them out
        self._token = self.folder / "token"
        self._url = self.folder / "dashboard"  # there when the head is up

    def start(self, workers: int = 1, *, cpus: int | None = None, labels: str | None = None) -> Connection:
        """Start what does not run yet of a head and `workers` nodes; what runs stays as it is.

        Args:
            workers: nodes for workers.
            cpus: CPUs that each of them offers; by default all that may be used. They are tickets to run, not cores.
            labels: labels of each of them, as `ray start --labels` takes them: KEY=VALUE,KEY=VALUE.

        Raises:
            SpecError: more workers than can be, or CPUs or labels that are none.
            LaunchError: a folder that cannot be used, or a node that does not come up.
            KeyboardInterrupt, SystemExit: SIGINT, or SIGTERM or SIGHUP came.

        Nothing that a call started which raises is left.
        """
        _check_number(workers)
        _check_offer(cpus, labels)
        self._prepare()
        offer = [f"--num-cpus={machine.cpus() if cpus is None else cpus}"]
        offer += [f"--labels={labels}"] if labels else []
        with self._alone(), _deferred_signals() as signals:
            connection = self.running()
            before = {name for name, lives in self.nodes().items() if lives and connection}
            self._end(self.nodes().keys() - before)  # what lost nodes have left
            try:
                if connection is None:
                    self._make_token()
                    connection = self._start_head(offer, signals)
                self._start_workers(connection, workers if _SEVERAL else 0, offer, signals)
                _raise_first(signals)
            except BaseException:
                self._end(self.nodes().keys() - before)
                raise
        return connection

    def running(self) -> Connection | None:
        """The way to the cluster, if its head runs. Raises LaunchError where the folder is somebody else's."""
        return self._connection() if self._exists() and self._url.exists() and self._lives("head") else None

    def nodes(self) -> dict[str, bool]:
        """The nodes by name, head first, and whether each runs."""
        # Of the pid files in the folder only those that `start` writes.
        found = (path.stem for path in self.folder.glob("*.pid") if _NODE.fullmatch(path.stem))
        names = sorted(found, key=lambda name: (len(name), name))
        return {name: self._lives(name) for name in names}

    def address(self, name: str) -> str:
        """Of a node by name: not 127.0.0.1, which Ray takes for a mistake, so that it listens everywhere."""
        return "127.0.0.2" if name == "head" else f"127.0.0.{2 + int(name.removeprefix('worker-'))}"

    def stop(self) -> None:
        """End all nodes, if there are any. Jobs on them end unasked.

        Raises:
            LaunchError: a process cannot be ended, or the folder is somebody else's.
        """
        if self._exists() and self.nodes():
            with self._alone():
                self._end(self.nodes())

    def _start_head(self, offer: list[str], signals: list[int]) -> Connection:
        port, client_port = _free_ports(2)
        arguments = ["--head", "--port=0", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
        arguments += [f"--ray-client-server-port={client_port}"]
        if _SEVERAL:
            offer = [f"--node-ip-address={self.address('head')}", "--num-cpus=0", "--num-gpus=0", "--memory=0"]
        self._url.unlink(missing_ok=True)
        self._start_node("head", [*arguments, *offer], signals)
        self._url.write_text(f"http://127.0.0.1:{port}")
        return self._connection()

    def _start_workers(self, connection: Connection, workers: int, offer: list[str], signals: list[int]) -> None:
        for number in range(1, workers + 1):  # one after another: two at once take the same names for their sockets
            name = f"worker-{number}"
            if not self._lives(name):
                addresses = [f"--address={connection.address}", f"--node-ip-address={self.address(name)}"]
                self._start_node(name, [*addresses, *offer], signals)

    def _start_node(self, name: str, arguments: list[str], signals: list[int]) -> None:
        """Start a node and wait until it is up. Raises LaunchError with the end of its log."""
        command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--block", f"--temp-dir={self._ray}"]
        command += ["--object-store-memory=200000000", "--dashboard-agent-listen-port=0", *arguments]
        log = self._log(name)
        leader = processes.launch(command, log=log, environment=self._environment())
        self._pid_file(name).write_text(str(leader.pid))
        processes.wait_for(
            lambda: bool(signals) or _READY in log.read_bytes() or leader.poll() is not None, NODE_TIMEOUT_S
        )
        _raise_first(signals)
        if _READY not in log.read_bytes():
            late = leader.poll() is None
            reason = f"is not done after {NODE_TIMEOUT_S:g} s" if late else f"ended with {leader.returncode}"
            end = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
            raise LaunchError(f"{name}: `ray start` {reason}; {log} ends with:\n{end}")

    def _end(self, names: Collection[str]) -> None:
        processes.end([self._pid(name) for name in names], self.folder, grace_s=STOP_GRACE_S)
        for name in names:
            self._pid_file(name).unlink()

    def _connection(self) -> Connection:
        return Connection(
            _line(self._ray / "ray_current_cluster"), _line(self._url), self._token
        )  # Ray writes the first

    def _lives(self, name: str) -> bool:
        return self._pid_file(name).exists() and processes.lives(self._pid(name), self.folder)

    def _pid(self, name: str) -> int:
        text = _line(self._pid_file(name))
        if not text.isdecimal():
            raise LaunchError(
                f"{self._pid_file(name)}: holds {text[:20]!r} and no pid; end that node, and remove the file"
            )
        return int(text)

    def _pid_file(self, name: str) -> Path:
        return self.folder / f"{name}.pid"

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _environment(self) -> dict[str, str]:
        """That of a node: ours, without what leads to another cluster, and with our own commands on the path."""
        kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
        defaults = {**DEFAULTS, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._token)}
        return {**defaults, **kept, **past_proxies(kept), **token, "PATH": path}

    def _prepare(self) -> None:
        """A folder that nobody else can look into."""
        if len(str(self.folder)) > LONGEST_FOLDER:
            raise LaunchError(
                f"{self.folder}: sockets lie in it, whose paths end at 107 characters; set EMC2DIST_CLUSTER to a "
                f"folder of {LONGEST_FOLDER} characters at most"
            )
        if self._exists():
            self._refuse_others_use()
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise LaunchError(f"{self.folder}: {error.strerror}; set EMC2DIST_CLUSTER to another folder") from error

    def _refuse_others_use(self) -> None:
        """Raise LaunchError where the folder that is there is open to others, or for something else."""
        mode = self.folder.stat().st_mode & 0o7777
        if mode & 0o077:
            raise LaunchError(
                f"{self.folder}: is open to others (mode {mode:o}), and the token lies in it; set EMC2DIST_CLUSTER to "
                "a folder that is not there yet, or close this one (chmod 700) if it is for nothing else"
            )
        with explained(self.folder):
            found = sorted(path.name for path in self.folder.iterdir())
        others = [name for name in found if not _OURS.fullmatch(name)]
        if others and "lock" not in found:  # which the first start leaves
            raise LaunchError(
                f"{self.folder}: holds other files ({', '.join(map(repr, others[:3]))}); set EMC2DIST_CLUSTER to a "
                "folder that is not there yet, or to an empty one"
            )

    def _make_token(self) -> None:
        if not self._token.exists() or not self._token.stat().st_size:
            draft = self.folder / "token.draft"
            draft.touch(mode=0o600)
            draft.write_text(secrets.token_hex(32))
            draft.replace(self._token)

    def _exists(self) -> bool:
        """Whether the folder is there. Whoever owns it decides which cluster gets our jobs: another's is refused."""
        if self.folder.is_dir() and {self.folder.lstat().st_uid, self.folder.stat().st_uid} != {os.getuid()}:
            raise LaunchError(f"{self.folder}: somebody else's; set EMC2DIST_CLUSTER to a folder of your own")
        return self.folder.is_dir()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One start or stop at a time; the lock of one that dies is free."""
        with explained(self.folder), (self.folder / "lock").open("w") as lock:
            if not processes.wait_for(lambda: _lock(lock.fileno(), self.folder), LOCK_TIMEOUT_S):
                raise LaunchError(f"{self.folder}: another start or stop is at work for {LOCK_TIMEOUT_S:g} s; end it")
            yield


def _line(path: Path) -> str:
    """The text of a file of the folder. Raises LaunchError where it says nothing."""
    with explained(path):
        text = path.read_text(errors="replace").strip()
    if not text:
        raise LaunchError(f"{path}: is empty; end the cluster with `emc2dist cluster stop`, and start it again")
    return text


def _check_number(workers: int) -> None:
    most = MOST_WORKERS if _SEVERAL else 1
    if not 1 <= workers <= most:
        reason = "" if _SEVERAL else " here: more nodes need Linux, where all of 127.0.0.0/8 is this machine"
        raise SpecError(f"workers: {workers}; from 1 to {most} nodes are possible{reason}")


def _check_offer(cpus: int | None, labels: str | None) -> None:
    """Refuse what Ray would, only later and in its own words."""
    if cpus is not None and not 0 <= cpus <= MOST_CPUS:
        raise SpecError(f"cpus: {cpus}; from 0 to {MOST_CPUS:,} are possible for each node")
    if labels:
        from ray._private.label_utils import parse_node_labels_string  # late: it imports Ray

        try:
            parse_node_labels_string(labels)
        except ValueError as error:
            raise SpecError(
                f"labels: {labels!r}: {error}; write KEY=VALUE,KEY=VALUE as in ray.io/market-type=spot"
            ) from error


@contextmanager
def _deferred_signals() -> Iterator[list[int]]:
    """The signals that ask this process to end, noted as they come.

    Raised wherever they come they would leave a node behind which has begun and is not yet written down.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # others get none
        yield came
        return
    asks = [each for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) != signal.SIG_IGN]
    before = {each: signal.signal(each, lambda number, _: came.append(number)) for each in asks}
    try:
        yield came
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _raise_first(signals: list[int]) -> None:
    """Raise what stands for the first of the signals that have come, if any have."""
    for number in signals[:1]:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        say(f"emc2dist: {signal.Signals(number).name} came; what has been started here is ended")
        raise SystemExit(128 + number)


def _lock(descriptor: int, folder: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        raise LaunchError(
            f"{folder}: its file system has no locks ({error.strerror}), by which one start or stop is at work at a "
            "time; set EMC2DIST_CLUSTER to a folder of a local disk"
        ) from error
    return True


def _free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on, of a range that neither Ray's workers nor outgoing connections take."""
    return [port for port in random.sample(range(20_000, 30_000), 100) if _is_free(port)][:count]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
