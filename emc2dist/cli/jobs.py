"""`submit`, `status`, `logs`, `stop`, `list`: a run as a job on a cluster."""

import argparse
from typing import TYPE_CHECKING

from emc2dist.cli.words import Commands, add_json, add_spec, print_result
from emc2dist.config import load_job
from emc2dist.terminal import say

if TYPE_CHECKING:
    from emc2dist.launch.plan import Target


def add_to(commands: Commands) -> None:
    """Declare the commands."""
    text = "start a run or a sweep as a job where its launch.target says; one that was stopped or failed goes on"
    submit = commands.add_parser("submit", help=text, description=text)
    add_spec(submit)
    submit.add_argument("--follow", action="store_true", help="show its log to its end, and exit with its status")
    submit.add_argument("--dry-run", action="store_true", help="print what would be sent, and send nothing")
    text = "what is known of a job"
    status = commands.add_parser("status", help=text, description=text)
    text = "what a job has printed"
    logs = commands.add_parser("logs", help=text, description=text)
    text = "follow it to the job's end, over lost connections, and exit with its status"
    logs.add_argument("-f", "--follow", action="store_true", help=text)
    text = "have a job write a checkpoint and end, and wait for it"
    stop = commands.add_parser("stop", help=text, description=text)
    text = "all jobs, newest first"
    jobs = commands.add_parser("list", help=text, description=text)
    for sub in (status, logs, stop):
        sub.add_argument("job", metavar="JOB", help="a job's id, or a run's name for its newest job")
    for sub in (status, logs, stop, jobs):
        _add_target(sub)
    for sub in (submit, status, stop):
        add_json(sub)
    for sub, command in ((submit, _submit), (status, _status), (logs, _logs), (stop, _stop), (jobs, _list)):
        sub.set_defaults(command=command)


def _add_target(parser: argparse.ArgumentParser) -> None:
    text = "local, kuberay or the URL of a cluster's dashboard; by default $RAY_API_SERVER_ADDRESS, else local"
    parser.add_argument("--target", metavar="T", help=text)
    parser.add_argument("--namespace", metavar="N", default="default", help="of kuberay (%(default)s)")


def _submit(arguments: argparse.Namespace) -> int | None:
    job = load_job(arguments.spec, arguments.overrides)
    from emc2dist.launch import output, placement, targets
    from emc2dist.launch.plan import plan_of

    plan = plan_of(job)
    if plan.launch.cluster is not None:
        placement.check(plan.base)
    if arguments.dry_run:
        print(targets.preview(plan), end="")
        return None
    target = targets.open_target(plan.launch.target, namespace=plan.launch.namespace, start_for=plan.workers)
    state = target.submit(plan)
    say(output.hint(state, plan.launch, follows=arguments.follow))
    if arguments.follow:
        state = output.follow(target, state.id)
    if arguments.json or not arguments.follow:
        print_result(output.facts(state), as_json=arguments.json)
    return output.exit_status(state) if arguments.follow else None


def _status(arguments: argparse.Namespace) -> None:
    from emc2dist.launch import output

    print_result(output.facts(_target(arguments).state(arguments.job)), as_json=arguments.json)


def _logs(arguments: argparse.Namespace) -> int | None:
    from emc2dist.launch import output

    target = _target(arguments)
    if arguments.follow:
        return output.exit_status(output.follow(target, arguments.job))
    output.write(target.logs(arguments.job, follow=False))
    return None


def _stop(arguments: argparse.Namespace) -> None:
    from emc2dist.launch import output

    print_result(output.facts(_target(arguments).stop(arguments.job)), as_json=arguments.json)


def _list(arguments: argparse.Namespace) -> None:
    from emc2dist.launch import output

    print(output.table(_target(arguments).jobs()), end="")


def _target(arguments: argparse.Namespace) -> "Target":
    from emc2dist.launch import targets

    return targets.open_target(arguments.target or targets.default_target(), namespace=arguments.namespace)
