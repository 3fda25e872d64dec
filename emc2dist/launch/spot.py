"""On a spot instance of EC2: when its notice comes, two minutes before it is taken away, Ray drains the node.

Ray reads no such notices. Told so, it places nothing more there, and a run that has something there writes a checkpoint
and goes on elsewhere (`emc2dist.run.elastic`). On Kubernetes the signal that ends a pod does the same.
"""

import subprocess
import sys
import time
from datetime import datetime

import requests

from emc2dist.errors import LaunchError

METADATA = "http://169.254.169.254"
TIMEOUT_S = 5.0
DRAIN_TIMEOUT_S = 60.0

_session = requests.Session()
_session.trust_env = False  # the service is this machine's: through a proxy it would be another's


def drain_on_notice(metadata: str = METADATA, *, poll_s: float = 5.0) -> None:
    """Wait for the notice and pass it on; returns when Ray has it.

    Raises:
        LaunchError: this is no EC2 instance, or no Ray runs on it, or Ray refuses.
    """
    if not _token(metadata):
        raise LaunchError(f"{metadata}: no EC2 metadata service answers; spot notices are for instances of EC2")
    while (taken_at := notice(metadata)) is None:
        time.sleep(poll_s)
    drain(max(1, int(taken_at - time.time())))


def notice(metadata: str = METADATA) -> float | None:
    """The Unix time at which this instance goes; None while no notice is there, or the service does not answer.

    Raises:
        LaunchError: it answers with something else.
    """
    try:
        headers = {"X-aws-ec2-metadata-token": _token(metadata) or ""}
        answer = _session.get(f"{metadata}/latest/meta-data/spot/instance-action", headers=headers, timeout=TIMEOUT_S)
    except requests.RequestException:
        return None
    if answer.status_code != 200:  # 404 while there is none
        return None
    try:
        return datetime.fromisoformat(answer.json()["time"]).timestamp()
    except (ValueError, TypeError, LookupError):
        raise LaunchError(f"{metadata}: gives no spot notice of EC2's but {answer.text[:100]!r}") from None


def drain(seconds: int) -> None:
    """Tell Ray that the node of this process is gone after so many seconds. Raises LaunchError if it is not taken."""
    words = ["drain-node", "--node-id", _node_id(), "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    words += ["--reason-message", "spot instance", "--deadline-remaining-seconds", str(seconds)]
    command = [sys.executable, "-P", "-m", "ray.scripts.scripts", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DRAIN_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise LaunchError(f"ray drain-node: no answer in {DRAIN_TIMEOUT_S:g} s") from None
    if done.returncode:
        raise LaunchError(f"ray drain-node ended with {done.returncode}: {' '.join(done.stderr.split())[-500:]}")


def _token(metadata: str) -> str | None:
    """The key of a session with the metadata service, which version 2 of it wants; None where nothing answers."""
    try:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": "300"}
        answer = _session.put(f"{metadata}/latest/api/token", headers=headers, timeout=TIMEOUT_S)
    except requests.RequestException:
        return None
    return answer.text if answer.ok else None


def _node_id() -> str:
    # Late: for as long as no notice comes, this is to be a small process.
    from emc2dist.run import address

    import ray  # isort: skip

    named = address.named() or "auto"
    address.check(named, authorised=True)
    try:
        ray.init(address=named, log_to_driver=False, logging_level="warning")
    except Exception as error:  # Ray raises anything, bare Exceptions too
        reason = " ".join(str(error).split())[:300]
        raise LaunchError(f"no Ray runs on this node, so there is nothing to drain ({reason})") from error
    try:
        return ray.get_runtime_context().get_node_id()
    finally:
        ray.shutdown()
