"""A cluster whose nodes are as good as machines: each has a network card that can be unplugged and a clock of its own.

A node's network is a namespace with one card, whose other end is in a namespace that serves as the switch. Its clock is
the real one, moved by what a file says (clock.c, which is loaded before everything else). The disk is shared by all.
"""

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np

from emc2dist.launch.local import LocalCluster

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET


class Machines(LocalCluster):
    """A LocalCluster of such nodes; `stop` removes the networks as well."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._clocks = folder.with_name("clocks")  # the cluster's own folder is for its own files alone
        self._clocks.mkdir(mode=0o700)
        self._network = f"{folder.parent.name}-"  # before the names of our namespaces, for all see them
        self._shim = compile_clock(self._clocks)
        _ip("netns", "add", self._namespace("switch"))
        _ip("-n", self._namespace("switch"), "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._namespace("switch"), "link", "set", "bridge", "up")

    @staticmethod
    def possible() -> bool:
        """Whether this process may make networks, and there is a compiler."""
        tools = sys.platform == "linux" and shutil.which("ip") and shutil.which("cc")
        return bool(tools) and subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode == 0

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """What is started inside is started on that machine."""
        own = {"LD_PRELOAD": str(self._shim), "FAKE_CLOCK": str(self._clock(name)), "GLOO_SOCKET_IFNAME": "eth0"}
        with _inside(self._namespace(name)), mock.patch.dict(os.environ, own):
            yield

    def unplug(self, name: str) -> None:
        """Nothing reaches the machine, and nothing leaves it."""
        _ip("-n", self._namespace("switch"), "link", "set", name, "down")

    def plug_in(self, name: str) -> None:
        """As before."""
        _ip("-n", self._namespace("switch"), "link", "set", name, "up")

    def advance_clock(self, name: str, seconds: int) -> int:
        """Set a machine's clock forward, or back; returns how many seconds it is ahead of the real one."""
        ahead = np.memmap(self._clock(name), np.int64, "r+")
        ahead[0] += seconds
        return int(ahead[0])

    def address(self, name: str) -> str:
        """See `LocalCluster.address`."""
        return f"198.18.0.{1 if name == 'head' else 1 + int(name.removeprefix('worker-'))}"

    def stop(self) -> None:
        """See `LocalCluster.stop`."""
        super().stop()
        for path in Path("/run/netns").glob(f"{self._network}*"):
            _ip("netns", "delete", path.name)

    def _start_node(self, name: str, *arguments: str) -> None:
        if not self._clock(name).exists():
            self._add(name)
        with self.on(name):
            super()._start_node(name, *arguments)

    def _add(self, name: str) -> None:
        """A machine without anything on it."""
        self._clock(name).write_bytes(bytes(8))
        own, switch = self._namespace(name), self._namespace("switch")
        _ip("netns", "add", own)
        _ip("-n", switch, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", own)
        _ip("-n", switch, "link", "set", name, "master", "bridge", "up")
        _ip("-n", own, "address", "add", f"{self.address(name)}/24", "dev", "eth0")
        for card in ("lo", "eth0"):
            _ip("-n", own, "link", "set", card, "up")
        _ip("-n", own, "route", "add", "default", "dev", "eth0")  # by which Ray finds its own address

    def _namespace(self, name: str) -> str:
        return self._network + name

    def _clock(self, name: str) -> Path:
        return self._clocks / f"{name}.clock"


def compile_clock(folder: Path) -> Path:
    """The library that has a process read the clock of FAKE_CLOCK, for LD_PRELOAD."""
    source, library = Path(__file__).with_name("clock.c"), folder / "clock.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True, timeout=60)
    return library


@contextmanager
def _inside(namespace: str) -> Iterator[None]:
    """This thread, and what it starts, is in the network namespace of that name."""
    with open("/proc/thread-self/ns/net") as before, open(f"/run/netns/{namespace}") as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(before.fileno())


def _enter(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=30)
