"""RAY_ADDRESS: what nothing, or something else, or another Ray answers to, found out in seconds and named."""

import socket
from concurrent import futures

import emc2dist.run.cluster  # noqa: F401  before ray: sets its defaults

import grpc  # isort: skip
import pytest
import ray
from command import ROOT, in_process
from ray.core.generated import gcs_service_pb2 as messages
from ray.core.generated import gcs_service_pb2_grpc as services
from recording import PROXIES, listening
from train.harness import SMALL

from emc2dist.errors import LaunchError, SpecError
from emc2dist.run import address


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            "http://127.0.0.1:8265",
            "is the URL of a dashboard.*emc2dist submit SPEC launch.target=http://127.0.0.1:8265",
        ),
        ("https://ray.example", "is the URL of a dashboard"),
        ("ray://127.0.0.1:10001", "ray:// cannot be used; give HOST:PORT"),
        *(
            (bad, "is no address; give HOST:PORT")
            for bad in ("foo", ":6379", "host:", "host:x", "host:99999", "[::1", "a/b:1")
        ),
    ],
)
def test_what_is_no_address_is_refused(value, words):
    with pytest.raises(SpecError, match=rf"RAY_ADDRESS: .*{words}"):
        address.check(value, authorised=True)


def test_where_nothing_answers_is_said():
    for value in ("127.0.0.1:1", "[::1]:1", "no-such-host.invalid:6379"):
        with pytest.raises(LaunchError) as refused:
            address.check(value, authorised=True)
        assert str(refused.value).startswith(f"RAY_ADDRESS: {value}: nothing answers there")


def test_what_is_no_ray_is_not_waited_for_long(monkeypatch):
    monkeypatch.setattr(address, "TIMEOUT_S", 0.5)
    with listening(404) as (url, _), socket.create_server(("127.0.0.1", 0)) as mute:
        for value in (url.removeprefix("http://"), f"127.0.0.1:{mute.getsockname()[1]}"):
            with pytest.raises(
                LaunchError, match=f"RAY_ADDRESS: {value}: what listens there does not answer as a Ray's"
            ):
                address.check(value, authorised=True)


def test_a_ray_of_our_own_whose_server_cannot_be_reached_is_not_waited_for_long(monkeypatch):
    monkeypatch.setattr(address, "OWN_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        for value in ("127.0.0.1:1", f"127.0.0.1:{mute.getsockname()[1]}"):
            with pytest.raises(LaunchError, match=rf"its server at {value} cannot be reached in 0\.5 s .*loopback"):
                address.check_own(value)


class Head(services.NodeInfoGcsServiceServicer):
    """A head of that version, without nodes on this machine; it refuses every token where it has no version."""

    def __init__(self, version):
        self.version = version

    def CheckAlive(self, request, context):
        if not self.version:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return messages.CheckAliveReply(ray_version=self.version)

    def GetAllNodeInfo(self, request, context):
        return messages.GetAllNodeInfoReply()


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("1.2.3", f"runs Ray 1.2.3, and here is Ray {ray.__version__}; install the same version"),
        ("", "refuses the token, or wants one"),
        (ray.__version__, "this machine is none of that cluster's 0 nodes"),
    ],
)
def test_a_cluster_that_cannot_be_joined_says_why(monkeypatch, version, words):
    for name in PROXIES:
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    server = grpc.server(futures.ThreadPoolExecutor(1))
    services.add_NodeInfoGcsServiceServicer_to_server(Head(version), server)
    value = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        with pytest.raises(LaunchError) as refused:
            address.check(value, authorised=True)
    finally:
        server.stop(None)
    assert str(refused.value).startswith(f"RAY_ADDRESS: {value}: {words}")


def test_a_cluster_that_runs_is_let_pass(ray_cluster):
    address.check(ray_cluster.get_runtime_context().gcs_address, authorised=True)
    address.check_own(ray_cluster.get_runtime_context().gcs_address)


def test_another_machines_ray_is_not_asked_without_a_token(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(LaunchError, match=r"192\.0\.2\.1:6379: is not on this machine and there is no token for it"):
        address.check("192.0.2.1:6379", authorised=False)


def test_the_environment_says_where(monkeypatch):
    for value, expected in (("", None), (" ", None), ("local", None), ("auto", "auto"), (" h:1 ", "h:1")):
        monkeypatch.setenv("RAY_ADDRESS", value)
        assert address.named() == expected


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_the_command_names_a_dead_address(command, tmp_path, monkeypatch):
    # Whatever other tests run on is not seen, and stays.
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    (tmp_path / "small.yaml").write_text(f"{SMALL}run_dir: {tmp_path / 'runs'}\n")
    small = [tmp_path / "small.yaml"]
    words = small if command == "train" else [ROOT / "jobs" / "sweep.yaml", f"set.run_dir={tmp_path}"]
    done = in_process(command, *words)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("emc2dist: RAY_ADDRESS: 127.0.0.1:1: nothing answers there")
    assert "Traceback" not in done.stderr
