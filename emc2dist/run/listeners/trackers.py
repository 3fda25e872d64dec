"""Services that take a run's rows, where the spec names them: TensorBoard's files, Weights & Biases, MLflow.

The latter two are packages of their own, imported when a spec asks for them. How they are reached is theirs to know, by
their own environment variables: WANDB_API_KEY, WANDB_MODE=offline; MLFLOW_TRACKING_URI, as in file:/path. A run that
resumes goes on there under the id that its folder keeps; neither can take rows back, so what was done since the
checkpoint stands there twice. Neither keeps training waiting, and a service that is lost on the way loses rows, never
the run.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import time
from typing import Any
from uuid import uuid4

from emc2dist.config import Spec, leaves
from emc2dist.errors import RunError, SpecError
from emc2dist.metrics import Recorder, Row, scalars
from emc2dist.run.folder import RunFolder
from emc2dist.run.listeners.tensorboard import TensorBoard
from emc2dist.run.packages import installed
from emc2dist.terminal import say


def refuse_missing(spec: Spec) -> None:
    """Raise SpecError where the spec asks for a service whose package is not installed here."""
    for name, value in (("wandb", spec.watch.wandb), ("mlflow", spec.watch.mlflow)):
        if value is not None and not installed(name):
            raise SpecError(
                f"watch.{name}: {value} needs the package {name}, which is not installed here; "
                f"pip install 'emc2dist[{name}]', or leave watch.{name} out"
            )


@contextmanager
def recorders(spec: Spec, folder: RunFolder) -> Iterator[list[Recorder]]:
    """The recorders that the spec asks for, told at the end whether the run ended well.

    Raises:
        RunError: a service refuses the run.
    """
    with ExitStack() as stack:
        found: list[Recorder] = []
        if spec.watch.tensorboard:
            found.append(stack.enter_context(_Tolerant("tensorboard", TensorBoard(Path(str(folder.place))))))
        if spec.watch.wandb is not None:
            found.append(stack.enter_context(_Tolerant("wandb", Wandb(spec, folder))))
        if spec.watch.mlflow is not None:
            found.append(stack.enter_context(_Tolerant("mlflow", Mlflow(spec, folder))))
        yield found


class _Tolerant:
    """A Recorder that spares the run what its service raises, and says so once."""

    def __init__(self, name: str, recorder: Any) -> None:
        self._name, self._recorder, self._said = name, recorder, False

    def record(self, row: Row) -> None:
        """Hand over a row."""
        self._try(self._recorder.record, row)

    def __enter__(self) -> "_Tolerant":
        return self

    def __exit__(self, *end: Any) -> None:
        self._try(self._recorder.__exit__, *end)

    def _try(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:  # whatever a package of somebody else's raises
            if not self._said:
                say(f"watch.{self._name}: rows do not reach it ({_one_line(error)}); the run goes on")
            self._said = True


class Wandb:
    """A Recorder: the run as one of the W&B project `watch.wandb`."""

    def __init__(self, spec: Spec, folder: RunFolder) -> None:
        import wandb

        run_id = folder.trackers().get("wandb") or uuid4().hex[:12]
        try:
            self._run = wandb.init(
                project=spec.watch.wandb,
                name=spec.name,
                id=run_id,
                resume="allow",
                config=spec.model_dump(mode="json"),
                dir=None if folder.place.remote else str(folder.place),
                settings=wandb.Settings(console="off"),  # stdout and stderr are the command's own
            )
        except Exception as error:  # its own, or those of whatever it speaks through
            raise RunError(
                f"watch.wandb: {_one_line(error)}; log in with `wandb login`, or set WANDB_API_KEY, or "
                "WANDB_MODE=offline"
            ) from error
        folder.track("wandb", run_id)
        # Its own step only rises, and drops what a resumed run does again.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def record(self, row: Row) -> None:
        """Hand over a row; W&B sends it on from a process of its own."""
        self._run.log({**scalars(row), "step": int(row["step"])})

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._run.finish(exit_code=int(error is not None))


class Mlflow:
    """A Recorder: the run as one of the MLflow experiment `watch.mlflow`."""

    def __init__(self, spec: Spec, folder: RunFolder) -> None:
        import mlflow

        self._mlflow = mlflow
        try:
            self._client = self._mlflow.MlflowClient()
            self._id = folder.trackers().get("mlflow") or self._create(spec)
            self._client.update_run(self._id, "RUNNING")
        except Exception as error:  # its own, or those of whatever it speaks through
            raise RunError(
                f"watch.mlflow: {_one_line(error)}; see that MLFLOW_TRACKING_URI names a server that "
                "answers, or a folder as in file:/path"
            ) from error
        folder.track("mlflow", self._id)
        self._last: Any = None

    def record(self, row: Row) -> None:
        """Hand over a row; MLflow sends it on from a thread of its own."""
        now, step = int(1000 * time()), int(row["step"])
        metrics = [self._mlflow.entities.Metric(name, value, now, step) for name, value in scalars(row).items()]
        self._last = self._client.log_batch(self._id, metrics, synchronous=False)

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if self._last is not None:
            self._last.wait()
        self._client.set_terminated(self._id, "FAILED" if error is not None else "FINISHED")

    def _create(self, spec: Spec) -> str:
        name = str(spec.watch.mlflow)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        run_id = self._client.create_run(experiment, run_name=spec.name).info.run_id
        parameters = [self._mlflow.entities.Param(key, str(value)) for key, value in leaves(spec.model_dump())]
        self._client.log_batch(run_id, params=parameters)
        return run_id


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
