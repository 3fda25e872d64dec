"""Whether a Ray answers that this machine can join, at RAY_ADDRESS or where one was just started here: found out in
seconds and said in one message.

`ray.init` itself takes a quarter of an hour to give up an address where nothing answers, and never names it. (Part of
`emc2dist.run.cluster`, which sets Ray's defaults before it imports this.)
"""

import os
import socket
from urllib.parse import urlsplit

import grpc
import ray
from ray._private import services
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated.gcs_pb2 import GcsNodeInfo
from ray.core.generated.gcs_service_pb2 import CheckAliveRequest, GetAllNodeInfoRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
from ray.exceptions import AuthenticationError

from emc2dist.errors import LaunchError, SpecError
from emc2dist.run.access import WRONG_TOKEN, refuse_without_token

TIMEOUT_S = 8.0
"""Of a connection, and of an answer."""
OWN_S = 30.0
"""The same of a Ray that was started here, on a machine that may be busy."""
_WITHOUT = "or unset RAY_ADDRESS to run on this machine alone"


def named() -> str | None:
    """The address in RAY_ADDRESS, None where a Ray is to be started here."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


def check(address: str, *, authorised: bool) -> None:
    """See that a Ray answers at an address of RAY_ADDRESS. An `authorised` driver, of a job, is not asked for a token.

    Raises:
        SpecError: it is no such address.
        LaunchError: it is not this machine's and there is no token; or nothing answers there, or no Ray of this
            version, or it refuses the token, or this machine is none of its nodes.
    """
    says, found = f"RAY_ADDRESS: {address}", address == "auto"
    if address == "auto":
        address = _find(says)
        says += f", which is {address} here"
    host, port = _parse(address, says)
    if not (authorised or found):
        refuse_without_token(address)
    try:
        socket.create_connection((host, port), timeout=TIMEOUT_S).close()
    except (OSError, UnicodeError) as error:
        raise LaunchError(
            f"{says}: nothing answers there ({_reason(error)}); start that cluster, correct the address, {_WITHOUT}"
        ) from error
    _ask(f"{host}:{port}" if ":" not in host else f"[{host}]:{port}", says)


def check_own(address: str) -> None:
    """See that the server of a Ray that was started here answers. Raises LaunchError after OWN_S seconds."""
    try:
        with init_grpc_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(), timeout=OWN_S, wait_for_ready=True)
    except grpc.RpcError as error:
        raise LaunchError(
            f"Ray starts on this machine, but its server at {address} cannot be reached in {OWN_S:g} s "
            f"({error.code().name}); see that the loopback interface is up (ip link set lo up), and that no firewall "
            "or VPN keeps this machine's processes from each other"
        ) from error


def _find(says: str) -> str:
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as `ray.init` does before it asks
    services.find_gcs_addresses.cache_clear()
    try:
        return services.get_ray_address_from_environment("auto", None)
    except ConnectionError as error:
        raise LaunchError(
            f"{says}: no Ray runs on this machine; start one with `ray start --head`, {_WITHOUT}"
        ) from error


def _parse(address: str, says: str) -> tuple[str, int]:
    scheme = address.partition("://")[0] if "://" in address else ""
    if scheme in ("http", "https"):
        raise SpecError(
            f"{says}: is the URL of a dashboard, to which jobs are sent: emc2dist submit SPEC launch.target={address}; "
            f"RAY_ADDRESS takes HOST:PORT, as `ray start` prints it, {_WITHOUT}"
        )
    if scheme:
        raise SpecError(f"{says}: {scheme}:// cannot be used; give HOST:PORT, as `ray start` prints it, {_WITHOUT}")
    try:
        parts = urlsplit(f"//{address}")
        if parts.hostname and parts.port and parts.netloc == address:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise SpecError(f"{says}: is no address; give HOST:PORT, as `ray start` prints it, or auto, {_WITHOUT}")


def _ask(address: str, says: str) -> None:
    """Ask the cluster's head for its version and its nodes."""
    try:
        with init_grpc_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            head = NodeInfoGcsServiceStub(channel)
            limit = {"timeout": TIMEOUT_S, "wait_for_ready": True}
            version = head.CheckAlive(CheckAliveRequest(), **limit).ray_version
            nodes = head.GetAllNodeInfo(GetAllNodeInfoRequest(), **limit).node_info_list
    except AuthenticationError as error:
        raise LaunchError(f"{says}: {WRONG_TOKEN}") from error
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise LaunchError(f"{says}: {WRONG_TOKEN}") from error
        raise LaunchError(
            f"{says}: what listens there does not answer as a Ray's head does ({error.code().name}); give the address "
            f"that `ray start --head` printed, usually port 6379, {_WITHOUT}"
        ) from error
    if version and version != ray.__version__:
        raise LaunchError(f"{says}: runs Ray {version}, and here is Ray {ray.__version__}; install the same version")
    alive = {node.node_id.hex() for node in nodes if node.state == GcsNodeInfo.ALIVE}
    if not alive & set(services.find_node_ids()):
        raise LaunchError(
            f"{says}: this machine is none of that cluster's {len(alive)} nodes, so nothing can be driven from here; "
            f"send the run to its dashboard by emc2dist submit, or join it: ray start --address={address}"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer in {TIMEOUT_S:g} s"
    return getattr(error, "strerror", None) or str(error)
