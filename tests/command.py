"""The command as a person runs it, in a process of its own; or in this one, which is quicker."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from emc2dist.cli import main

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "emc2dist"]
STARTED: list[subprocess.Popen] = []


def emc2dist(*arguments, timeout=240, **options):
    """Run it to its end."""
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, **options)


def in_process(*arguments):
    """The same here, without seconds of imports: on the session's cluster, or for what ends before it asks for one."""
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        try:
            status = main([*map(str, arguments)])
        except SystemExit as ended:  # as argparse does
            status = ended.code
    return subprocess.CompletedProcess(arguments, status, stdout.getvalue(), stderr.getvalue())


def told(capsys, *words):
    """What a command answers in JSON, run in this process."""
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def refused(capsys, *words):
    """The line that a command refuses with, run in this process."""
    assert main([*map(str, words)]) in (1, 2)
    return capsys.readouterr().err.strip().splitlines()[-1]


def start(*arguments, **options):
    """Start it as a shell would, in a process group of its own; what a test leaves running is ended after it."""
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "process_group": 0}
    STARTED.append(subprocess.Popen([*COMMAND, *map(str, arguments)], **options))
    return STARTED[-1]


def signal_group(process, number):
    """Signal all of its group, as a terminal, timeout(1), systemd and Slurm do; returns all it had started."""
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, number)
    return family


def kill_with_all_it_started(process):
    """End it and its family in an instant: none of them goes on without the others."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.suspend()
    for member in family:
        member.kill()
    process.communicate(timeout=60)


def end_all_started():
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.communicate(timeout=60)


def on(ray):
    """The environment in which it runs on the session's cluster: a Ray of its own takes seconds to start and to end."""
    return os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


def wait_for(condition, process=None, seconds=120, every=0.05):
    """Poll until the condition holds, every so many seconds; a process that ends first is a failure."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(every)


def title(process: psutil.Process) -> str:
    """What a process was started as, or calls itself; nothing where it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def driver_of(run):
    """The process that drives a run, as its lock tells."""
    return int((run / "driver.lock").read_text().split()[1])
