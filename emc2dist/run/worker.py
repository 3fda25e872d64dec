"""One worker of an attempt, in the hands of Ray Train: open the data, restore or start, train, send checkpoints."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import emc2dist.run.cluster as cluster  # before ray: sets its defaults

import ray.train  # isort: skip
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointUploadMode
from typing_extensions import override

from emc2dist import files
from emc2dist.config import Spec, parse
from emc2dist.errors import SpecError
from emc2dist.machine import cpus
from emc2dist.metrics import Row
from emc2dist.run import beginning, checkpoints, failures
from emc2dist.run.channel import TIMEOUT_S, ChannelHandle, StopPoller
from emc2dist.run.folder import RunFolder, checkpoint_name
from emc2dist.run.scratch import scratch
from emc2dist.store import ChainStore
from emc2dist.train import collectives, loop
from emc2dist.train.sets import judge_of, open_training_set
from emc2dist.train.views import cores_of


def work(config: dict[str, Any]) -> int:
    """Train this rank's share of the run of config["spec"]; returns the steps taken.

    Raises what ends the run, of which the channel is told, or what may pass, after which the run goes on.
    """
    channel: ChannelHandle = config["channel"]
    channel.enter()
    cluster.leave_jobs_folder()
    try:
        spec = parse(config["spec"])
    except SpecError as error:  # as of another version, on this node alone
        channel.fail(error)
        raise
    with _reported(channel, spec):
        return _train_rank(spec, config["run"], config["store"], channel)


@contextmanager
def _reported(channel: ChannelHandle, spec: Spec) -> Iterator[None]:
    """Tell the channel of what ends the run; what may pass goes to Ray alone."""
    try:
        yield
    except Exception as error:
        failure = failures.fatal(error, spec)
        if failure is not None:
            channel.fail(failure)
        raise


def _train_rank(spec: Spec, run: RunFolder, store: ChainStore, channel: ChannelHandle) -> int:
    context = ray.train.get_context()
    beside = context.get_local_world_size()
    torch.set_num_threads(spec.threads or max(1, cpus() // beside))
    train = open_training_set(spec)
    model = run.model(spec)
    judge, _ = judge_of(spec, train, model)
    device = ray.train.torch.get_device()
    with ExitStack() as stack:
        own = stack.enter_context(scratch(run))
        (own / "resume").mkdir()
        first = spec.checkpoint.every * loop.order_for(spec, train).steps_per_epoch
        choice = checkpoints.choose(run, store.layout, own / "resume", expendable=first)
        start = beginning.fetch(spec, store.layout, own / "start") if choice.folder is None else None
        if choice.passed_over and context.get_world_rank() == 0:
            channel.record({"step": choice.step, "passed_over": "; ".join(choice.passed_over)})
        writer = stack.enter_context(closing(_CheckpointWriter(spec, run, channel)))
        store = store.joined(context.get_local_rank(), context.get_local_world_size(), spec.resources.start_s)
        stop = stack.enter_context(StopPoller(channel)) if context.get_world_rank() == 0 else threading.Event()
        parts = (store, channel, writer, device, stop, own, cores_of(spec, beside), model, start)
        return loop.run(loop.Job(spec, train, judge, *parts), choice.folder)


class _CheckpointWriter(loop.CheckpointWriter):
    """The sending of checkpoints to the run folder while training goes on, registered with Ray Train."""

    def __init__(self, spec: Spec, run: RunFolder, channel: ChannelHandle) -> None:
        self._spec, self._run, self._channel = spec, run, channel
        # The driver may just have begun to try in vain, and then tries once more.
        tries = 2 * spec.s3.attempts if run.place.remote else 0
        self._patience_s = TIMEOUT_S + tries * (spec.s3.timeout_s + files.LONGEST_PAUSE_S)
        self._idle = threading.Semaphore()

    @override
    def write(self, step: int, folder: Path, row: Row) -> None:
        self._idle.acquire()  # one at a time: where storage is slow, local copies must not pile up
        try:
            ray.train.report(
                dict(row),
                checkpoint=Checkpoint.from_directory(folder),
                checkpoint_dir_name=checkpoint_name(step),
                checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
                checkpoint_upload_fn=self._send,
                delete_local_checkpoint_after_upload=False,  # it was moved: in vain, with a traceback in its log
            )
        except BaseException:  # it will not be sent
            self._idle.release()
            raise

    def close(self) -> None:
        """Return when nothing is being sent any more."""
        self._idle.acquire()

    def _send(self, checkpoint: Checkpoint, name: str) -> Checkpoint:
        place = self._run.place / name
        try:
            with _reported(self._channel, self._spec):
                if collectives.rank() == 0:
                    self._channel.wait_until_saved(self._patience_s)
                checkpoints.send(Path(checkpoint.path), place)
                if collectives.rank() == 0:
                    checkpoints.prune(self._run, self._spec.checkpoint.keep)
        finally:
            self._idle.release()
        filesystem, path = place.arrow()
        return Checkpoint(path, filesystem)
