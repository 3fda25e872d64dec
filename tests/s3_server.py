"""A real S3 server for tests: OpenStack Swift with its S3 API, four processes on loopback.

It is real, so that errors are: signatures and checksums are verified, preconditions are kept, multipart ETags are those
of S3, and with the object server killed a read is a true 503. Swift has an environment of its own, `.swift`, which
`make test` sets up; nothing of it is imported here.
"""

import os
import pwd
import secrets
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Mapping
from configparser import RawConfigParser
from pathlib import Path

BIN = Path(__file__).parents[1] / ".swift" / "bin"
STORES = ("account", "container", "object")
SERVERS = (*STORES, "proxy")
FILTERS = (  # of the proxy, in this order; slo is what a multipart upload becomes
    *("catch_errors", "gatekeeper", "healthcheck", "listing_formats", "bulk", "s3api", "tempauth"),
    *("copy", "slo", "dlo", "versioned_writes", "symlink"),
)
READY_SECONDS = 30

# -I: Swift imports what is in its own environment, whatever PYTHONPATH the tests set. And the kernel ends the server
# (signal 9) when the test session is gone, even if that had no time to do so.
LAUNCH = """
import ctypes, runpy, sys
ctypes.CDLL(None).prctl(1, 9)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# In one process: swift-ring-builder would be one for each of nine commands, as long as all the rest of the start.
BUILD_RINGS = """
import sys
from swift.common.ring import RingBuilder
for argument in sys.argv[2:]:
    name, port = argument.split("=")
    builder = RingBuilder(part_power=2, replicas=1, min_part_hours=1)
    builder.add_dev(dict(region=1, zone=1, ip="127.0.0.1", port=int(port), device="d1", weight=1))
    builder.rebalance()
    builder.get_ring().save(f"{sys.argv[1]}/{name}.ring.gz")
"""

open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # straight, whatever proxy is set


def hold_port() -> socket.socket:
    """A socket bound to a free port of 127.0.0.1, which leaves the port to a server as long as it does not listen."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


def write_config(path: Path, sections: Mapping[str, Mapping[str, object]]) -> None:
    parser = RawConfigParser()
    parser.read_dict(sections)
    with path.open("w") as file:
        parser.write(file)


class S3Server:
    """Swift on free ports of 127.0.0.1, with its data in `folder` and a secret made for this run; constructed is ready.

    To be started in the main thread: to the kernel the end of the thread that starts a server is the end of its parent.
    """

    access_key = "emc:tests"  # account and user of Swift's tempauth

    @staticmethod
    def available() -> bool:
        """Whether Swift is installed where this looks for it."""
        return (BIN / "swift-proxy-server").exists()

    def __init__(self, folder: Path):
        self.folder = folder
        self.secret_key = secrets.token_hex(16)
        # Held until stop(), so that nobody else is given the port of a server that does not listen yet, or was killed.
        self._held = {name: hold_port() for name in SERVERS}
        self._processes: dict[str, subprocess.Popen] = {}
        try:
            self._configure()
            for name in SERVERS:
                self._start(name)
            for name in SERVERS:
                self._wait(name)
        except BaseException:
            self.stop()
            raise

    @property
    def endpoint(self) -> str:
        """The address of the S3 API."""
        return f"http://127.0.0.1:{self._port('proxy')}"

    @property
    def environment(self) -> dict[str, str]:
        """What s3fs, and pyarrow's FileSystem.from_uri, read to come here; as a person would set it.

        The constructor of pyarrow's S3FileSystem reads all but the endpoint, and needs it as `endpoint_override`.
        """
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",  # else a client that lacks something asks the network of a cloud
        }

    def bucket(self, name: str) -> str:
        """Create a bucket (3 characters or more) and return its URI."""
        from s3fs import S3FileSystem

        account = {"key": self.access_key, "secret": self.secret_key, "endpoint_url": self.endpoint}
        S3FileSystem(**account, skip_instance_cache=True).mkdir(name)
        return f"s3://{name}"

    def kill_object_server(self) -> None:
        """End what holds the objects, as a crash does: until it is back, objects are 503 and listings still work."""
        self._kill("object")

    def hang_object_server(self) -> None:
        """Stop it where it stands: requests for objects get no answer until `continue_object_server`."""
        self._processes["object"].send_signal(signal.SIGSTOP)

    def continue_object_server(self) -> None:
        self._processes["object"].send_signal(signal.SIGCONT)

    def start_object_server(self) -> None:
        """Bring it back with the data it had, and return when it answers; one that runs is left alone."""
        if "object" not in self._processes:
            self._start("object")
            self._wait("object")

    def stop(self) -> None:
        """End every process this started and give the ports back; a second time does nothing."""
        for name in list(self._processes):
            self._kill(name)
        for held in self._held.values():
            held.close()

    def _configure(self) -> None:
        etc, srv = self.folder / "etc", self.folder / "srv"
        etc.mkdir(parents=True)
        (srv / "d1").mkdir(parents=True)
        policy = {"name": "single", "default": "yes"}
        suffix = {"swift_hash_path_suffix": secrets.token_hex(8)}
        write_config(etc / "swift.conf", {"swift-hash": suffix, "storage-policy:0": policy})
        for name in STORES:
            self._configure_server(name, ("healthcheck",), {})
        self._configure_server("proxy", FILTERS, self._proxy_options())
        rings = [f"{name}={self._port(name)}" for name in STORES]
        subprocess.run([BIN / "python", "-I", "-c", BUILD_RINGS, etc, *rings], check=True, timeout=READY_SECONDS)

    def _proxy_options(self) -> dict[str, dict[str, object]]:
        user = self.access_key.replace(":", "_")
        return {
            # By default ten errors keep it from a server for a minute; one that is back must be used at once.
            "app:proxy-server": {"account_autocreate": "true", "error_suppression_limit": 10**9},
            "filter:s3api": {"location": "us-east-1", "check_bucket_owner": "true"},
            "filter:tempauth": {f"user_{user}": f"{self.secret_key} .admin"},
        }

    def _configure_server(self, name: str, filters: tuple[str, ...], options: dict[str, dict[str, object]]) -> None:
        app = f"{name}-server"
        sections: dict[str, dict[str, object]] = {
            "DEFAULT": {
                "swift_dir": self.folder / "etc",
                "devices": self.folder / "srv",
                "mount_check": "false",  # a plain folder does for a disk
                "bind_ip": "127.0.0.1",
                "bind_port": self._port(name),
                "workers": 0,  # serve in the process that was started: one pid, the least memory
                "user": pwd.getpwuid(os.geteuid()).pw_name,
                "fallocate_reserve": 0,  # or a disk that is nearly full takes no object
                "log_level": "WARNING",
            },
            "pipeline:main": {"pipeline": " ".join([*filters, app])},
            f"app:{app}": {"use": f"egg:swift#{name}"},
            **{f"filter:{filter_}": {"use": f"egg:swift#{filter_}"} for filter_ in filters},
        }
        for section, values in options.items():
            sections[section].update(values)
        write_config(self.folder / "etc" / f"{name}.conf", sections)

    def _start(self, name: str) -> None:
        assert threading.current_thread() is threading.main_thread(), "a server ends with the thread that started it"
        server, config = BIN / f"swift-{name}-server", self.folder / "etc" / f"{name}.conf"
        with self._log(name).open("a") as log:
            self._processes[name] = subprocess.Popen(
                [BIN / "python", "-I", "-c", LAUNCH, server, config, "--verbose"],  # verbose: logs to stderr
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a keyboard interrupt is for the tests, which then stop the servers
            )

    def _wait(self, name: str) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not self._healthy(name):
            status = self._processes[name].poll()
            if status is not None or time.monotonic() > deadline:
                how = "does not answer" if status is None else f"ended with status {status}"
                tail = self._log(name).read_text()[-3000:]
                raise RuntimeError(f"Swift's {name} server {how}; its log ends with:\n{tail}")
            time.sleep(0.05)

    def _healthy(self, name: str) -> bool:
        try:
            with open_url(f"http://127.0.0.1:{self._port(name)}/healthcheck", timeout=1) as answer:
                return answer.status == 200
        except OSError:
            return False

    def _kill(self, name: str) -> None:
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def _port(self, name: str) -> int:
        return self._held[name].getsockname()[1]

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"
