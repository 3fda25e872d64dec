"""kubectl as a function: one command, one answer, each with a time limit.

It speaks to the cluster, and with the rights, of its current context. What it is given goes in as separate words or on
standard input, so nothing is for a shell to expand.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from emc2dist.errors import LaunchError
from emc2dist.files import explained

_REQUEST_S = 30
_COMMAND_S = 90  # a command may make several requests, and ask a helper of the cloud for a token first
_TEXT: dict[str, Any] = {"text": True, "encoding": "utf-8", "errors": "replace"}
_LOG = re.compile(r"[EWI]\d{4} [\d:.]+ ")  # of a library in kubectl, before the message for people
_MISSING = "kubectl is not installed; install it, and configure a context for the cluster (`kubectl config`)"


@dataclass(frozen=True)
class Kubectl:
    """kubectl in one namespace."""

    namespace: str

    def __call__(self, *words: str, stdin: str | None = None) -> str:
        """Standard output of a command. Raises LaunchError where it fails or takes longer than a minute and a half."""
        try:
            done = subprocess.run(
                self._command(*words), input=stdin, capture_output=True, timeout=_COMMAND_S, check=False, **_TEXT
            )
        except FileNotFoundError:
            raise LaunchError(_MISSING) from None
        except OSError as error:
            raise LaunchError(f"kubectl cannot be started: {error}; install it anew") from None
        except subprocess.TimeoutExpired:
            raise LaunchError(f"kubectl {words[0]}: no answer in {_COMMAND_S} s; is the cluster up?") from None
        if done.returncode:
            raise LaunchError(self._explain(words[0], done.stderr))
        return done.stdout

    def lines(self, *words: str) -> Iterator[str]:
        """Lines of standard output as they come. Raises LaunchError where the command fails, after what it wrote."""
        with explained("TMPDIR"):
            log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        with log as errors:
            try:
                process = subprocess.Popen(self._command(*words), stdout=subprocess.PIPE, stderr=errors, **_TEXT)
            except FileNotFoundError:
                raise LaunchError(_MISSING) from None
            except OSError as error:
                raise LaunchError(f"kubectl cannot be started: {error}; install it anew") from None
            assert process.stdout is not None
            try:
                yield from process.stdout
                code = process.wait(_COMMAND_S)
            finally:
                process.kill()
                process.wait()
                process.stdout.close()
            if code:
                errors.seek(0)
                raise LaunchError(self._explain(words[0], errors.read()))

    def _command(self, *words: str) -> list[str]:
        # Before the words: what follows `--` in `exec` is another program's.
        return ["kubectl", f"--namespace={self.namespace}", f"--request-timeout={_REQUEST_S}s", *words]

    def _explain(self, verb: str, stderr: str) -> str:
        lines = [line for line in stderr.splitlines() if line.strip()]
        told = [line for line in lines if not _LOG.match(line)] or lines
        text = " ".join(" ".join(told).split()) or "failed without a word"
        if "localhost:8080" in text:  # where kubectl looks if nothing names a cluster
            text += (
                "; that is: kubectl knows no cluster: set KUBECONFIG to a file that does, or make a context (as "
                "`aws eks update-kubeconfig --name CLUSTER` does)"
            )
        if "doesn't have a resource type" in text or "no matches for kind" in text:
            text += "; install KubeRay's operator, 1.6 or newer, on this cluster"
        return f"kubectl {verb} in namespace {self.namespace}: {text}"
