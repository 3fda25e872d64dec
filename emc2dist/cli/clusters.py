"""`cluster`: a Ray of several nodes on this machine, and what a node of a cloud does."""

import argparse
import shlex

from emc2dist.cli.words import Commands, print_result
from emc2dist.errors import LaunchError
from emc2dist.terminal import say


def add_to(commands: Commands) -> None:
    """Declare the command and what it does."""
    text = "a Ray of several nodes on this machine, behind a token, in the folder EMC2DIST_CLUSTER"
    actions = commands.add_parser("cluster", help=text, description=text).add_subparsers(required=True, metavar="DO")
    text = "start what does not run yet of a head and WORKERS nodes, and print the exports that lead to it"
    start = actions.add_parser("start", help=text, description=text)
    start.add_argument("workers", metavar="WORKERS", type=int, nargs="?", default=1, help="nodes for workers (1)")
    start.add_argument("--cpus", metavar="N", type=int, help="CPUs that each node offers; all that may be used")
    start.add_argument("--labels", metavar="K=V,K=V", help="labels of each node, as in ray.io/market-type=spot")
    text = "end exactly what `start` started"
    stop = actions.add_parser("stop", help=text, description=text)
    text = "its address, its dashboard, and which nodes run; exit status 1 if its head does not"
    status = actions.add_parser("status", help=text, description=text)
    text = "on a spot instance of EC2: wait for the notice that it is taken away, and have Ray drain the node"
    spot = actions.add_parser("spot", help=text, description=text)
    spot.add_argument("--metadata", metavar="URL", help="of the instance's metadata service, if not EC2's own")
    for sub, command in ((start, _start), (stop, _stop), (status, _status), (spot, _spot)):
        sub.set_defaults(command=command)


def _start(arguments: argparse.Namespace) -> None:
    from emc2dist.launch.local import LocalCluster

    cluster = LocalCluster()
    earlier = cluster.running()
    connection = cluster.start(arguments.workers, cpus=arguments.cpus, labels=arguments.labels)
    print("export", *(f"{name}={shlex.quote(value)}" for name, value in connection.environment().items()))
    state = "ran already" if connection == earlier else "is up"
    say(f"emc2dist: a Ray in {cluster.folder} {state}; its dashboard: {connection.dashboard}")


def _stop(arguments: argparse.Namespace) -> None:
    from emc2dist.launch.local import LocalCluster

    LocalCluster().stop()


def _status(arguments: argparse.Namespace) -> None:
    from emc2dist.launch.local import LocalCluster

    cluster = LocalCluster()
    connection = cluster.running()
    left = ", ".join(name for name, lives in cluster.nodes().items() if lives)
    if connection is None and left:
        raise LaunchError(
            f"{cluster.folder}: only parts run ({left}); wait for a start at work, or: emc2dist cluster stop"
        )
    if connection is None:
        raise LaunchError(f"no Ray of ours runs in {cluster.folder}; start one with: emc2dist cluster start")
    nodes = {name: "runs" if lives else "has ended" for name, lives in cluster.nodes().items()}
    print_result({"address": connection.address, "dashboard": connection.dashboard, **nodes}, as_json=False)


def _spot(arguments: argparse.Namespace) -> None:
    from emc2dist.launch import spot

    spot.drain_on_notice(arguments.metadata or spot.METADATA)
    say("emc2dist: this node is about to be taken away; Ray drains it")
