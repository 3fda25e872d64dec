"""The training job: shards and board on the driver's side, Ray Train workers under them.

    driver:  check the data -> run folder -> cluster -> shards -> TorchTrainer.fit -> summary
    worker:  open the data -> restore or start -> `emc2dist.train.loop`

The shards belong to the driver's job, so they outlive a worker group that is lost and started again; it then restores
them, with encoder and optimiser, to the newest checkpoint. The same run name resumes from the newest checkpoint.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import emc2dist.service.cluster as cluster  # before ray: sets its defaults

import ray.train  # isort: skip
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import LoggingConfig

from emc2dist import files
from emc2dist.config import Spec, dump, parse
from emc2dist.data.images import Images, open_images, open_voters
from emc2dist.errors import RunError, RunStopped, StorageUnreachable
from emc2dist.metrics import Row
from emc2dist.service.board import FATAL, BoardHandle, Lookout
from emc2dist.service.progress import Display, Monitor, Onlooker
from emc2dist.service.runs import RunFolder
from emc2dist.store import ChainStore, Layout, LocalStore
from emc2dist.store.remote import RayStore
from emc2dist.train import loop
from emc2dist.train.memory import schema_for
from emc2dist.vision.encoder import Encoder


def train(spec: Spec, *, onlooker: Onlooker | None = None, stop: threading.Event | None = None) -> dict[str, Any]:
    """Run `spec` to its last epoch, from its newest checkpoint if it has one; returns the summary.

    `onlooker` is told of the rows instead of a person at a terminal; `stop` ends the run as SIGTERM would.

    Raises:
        SpecError, DataError, RunError: before anything starts, where it can be known.
        NonFiniteError, StoreError: while it runs.
        RunStopped: SIGTERM came, or `stop` was set; the run wrote a checkpoint of the step it was at, and ended.
    """
    spec = resolved(spec)
    images = check(spec)
    order = loop.order_for(spec, images)
    folder = RunFolder.prepare(spec)
    done = folder.summary()
    if done is not None:
        print(f"{folder.place}: this run is finished; give it another name to run it again", file=sys.stderr)
        return done
    steps = spec.epochs * order.steps_per_epoch
    with ExitStack() as stack:
        stack.enter_context(cluster.connected(spec))
        stop = stop or stack.enter_context(set_on(signal.SIGTERM))
        store = _create_store(spec, len(images))
        stack.callback(store.close)
        board = BoardHandle.create()
        with Monitor(board, folder, onlooker or Display(steps), stop):
            taken = _fit(spec, folder, store, board)
    if taken < steps:
        raise RunStopped(f"{folder.place}: stopped at step {taken} of {steps}, which a checkpoint holds")
    summary = summarise(folder, steps)
    folder.finish(summary)
    return summary


def check(spec: Spec) -> Images:
    """Open the data and see that data and encoder fit the spec; returns the training images.

    Raises:
        SpecError: the encoder cannot be built. DataError: the data cannot be opened, or are fewer than a batch.
    """
    with torch.device("meta"):  # no memory, no arithmetic
        Encoder(spec.encoder)
    images = open_images(spec.data, "train", spec.s3)
    assert images is not None, "open_images raises where there is nothing to train on"
    loop.order_for(spec, images)
    open_voters(spec.data, spec.eval.voters, images, spec.s3)
    open_images(spec.data, "test", spec.s3)
    return images


def summarise(folder: RunFolder, steps: int) -> dict[str, Any]:
    """What a run came to, from its rows."""
    rows = folder.rows()

    def last(name: str) -> Any:
        return next((row[name] for row in reversed(rows) if name in row), None)

    speeds = [row["images_per_second"] for row in rows if "images_per_second" in row]
    return {
        "run_dir": str(folder.place),
        "steps": steps,
        "epochs": last("epoch"),
        "images_per_second": sorted(speeds)[len(speeds) // 2] if speeds else None,
        "loss": last("loss"),
        "acceptance_rate": last("acceptance_rate"),
        "knn_accuracy": last("knn_accuracy"),
        "knn_untrained": next((row["knn_accuracy"] for row in rows if "knn_accuracy" in row), None),
        "knn_pixels": last("knn_pixels"),
        "effective_rank": last("effective_rank"),
        "checkpoint": str(folder.checkpoints()[0]),
    }


def resolved(spec: Spec) -> Spec:
    """Paths made absolute, for workers have working directories of their own; and `auto` made what it stands for."""
    spec = _kept_after_the_job(spec) if cluster.in_job() else spec
    data, remote = spec.data, files.is_remote(spec.data.path)
    path = data.path if remote or data.path == "digits" else str(Path(data.path).expanduser().resolve())
    shuffle = ("block" if remote else "full") if data.shuffle == "auto" else data.shuffle
    return spec.model_copy(update={"data": data.model_copy(update={"path": path, "shuffle": shuffle})})


def _kept_after_the_job(spec: Spec) -> Spec:
    """A run folder in the home folder, where a relative one would go with the job's copy of the working directory."""
    if files.is_remote(spec.run_dir) or Path(spec.run_dir).expanduser().is_absolute():
        return spec
    run_dir = str(Path.home() / spec.run_dir)
    print(f"run_dir: {spec.run_dir} would be deleted with this job's files; the run goes to {run_dir}", file=sys.stderr)
    return spec.model_copy(update={"run_dir": run_dir})


def _create_store(spec: Spec, samples: int) -> ChainStore:
    schema = schema_for(spec)
    layout = Layout(samples, spec.shards)
    if not schema:
        return LocalStore(layout, schema)  # nothing to remember, so nothing to share
    mib, labels = spec.resources.shard_mib, spec.resources.shard_labels
    return RayStore.create(
        layout, schema, timeout_s=spec.store.timeout_s, memory=mib * 2**20 if mib else None, labels=labels
    )


@contextmanager
def set_on(number: signal.Signals) -> Iterator[threading.Event]:
    """An event that the first such signal sets; a second one does what it did before. (Threads get no signals.)"""
    wanted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield wanted
        return
    before = signal.getsignal(number)

    def handle(number: int, frame: FrameType | None) -> None:
        wanted.set()
        signal.signal(number, before)

    signal.signal(number, handle)
    try:
        yield wanted
    finally:
        signal.signal(number, before)


def _fit(spec: Spec, folder: RunFolder, store: ChainStore, board: BoardHandle) -> int:
    """Train on workers, started again when lost; returns the steps taken."""
    filesystem, path = folder.place.arrow()
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"spec": dump(spec), "store": store, "board": board},
        scaling_config=ScalingConfig(
            num_workers=spec.workers,
            use_gpu=cluster.use_gpu(spec),
            resources_per_worker=cluster.worker_needs(spec),
            accelerator_type=spec.resources.accelerator,
            label_selector=spec.resources.worker_labels or None,
        ),
        run_config=RunConfig(
            name=spec.name,
            storage_path=path.removesuffix(f"/{spec.name}"),
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=spec.restarts),
            checkpoint_config=CheckpointConfig(num_to_keep=spec.checkpoint.keep),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        result = _interruptible(trainer.fit)
    except ray.train.TrainingFailedError as error:
        lost = RunError(f"{folder.place}: the workers failed and were not started again ({error})")
        raise board.failure() or lost from error
    failure = board.failure()
    if failure is not None:
        raise failure
    return result.return_value


def _interruptible(fit: Callable[[], Any]) -> Any:
    """Run `fit`; Ctrl-C comes out as KeyboardInterrupt, once Ray Train has ended its workers. (Threads get none.)"""
    if threading.current_thread() is not threading.main_thread():
        return fit()
    before = signal.getsignal(signal.SIGINT)
    try:
        return fit()
    except SystemExit:  # what Ray makes of the abort that its handler asked for
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)  # Ray Train leaves its own


def _worker(config: dict[str, Any]) -> int:
    board: BoardHandle = config["board"]
    if board.failure() is not None:
        return 0
    try:
        return _train_rank(parse(config["spec"]), config["store"], board)
    except StorageUnreachable:  # may pass: starting anew is worth a try
        raise
    except FATAL as error:
        board.fail(error)
        raise


def _train_rank(spec: Spec, store: ChainStore, board: BoardHandle) -> int:
    context = ray.train.get_context()
    torch.set_num_threads(spec.threads or max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    train, test = open_images(spec.data, "train", spec.s3), open_images(spec.data, "test", spec.s3)
    assert train is not None
    voters = open_voters(spec.data, spec.eval.voters, train, spec.s3)
    device = ray.train.torch.get_device()
    with ExitStack() as stack:
        newest = ray.train.get_checkpoint()
        resume = Path(stack.enter_context(newest.as_directory())) if newest else None
        stop = stack.enter_context(Lookout(board)) if context.get_world_rank() == 0 else threading.Event()
        return loop.run(loop.Job(spec, train, voters, test, store, board, _RayKeeper(), device, stop), resume)


class _RayKeeper:
    """Registers checkpoints with Ray Train, which copies them to the run folder."""

    def keep(self, step: int, folder: Path, row: Row) -> None:
        """See `emc2dist.train.loop.Keeper`."""
        ray.train.report(
            dict(row), checkpoint=Checkpoint.from_directory(folder), checkpoint_dir_name=f"checkpoint-{step:09d}"
        )
