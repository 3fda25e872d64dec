"""One worker of a segment, in the hands of Ray Train: open the data, restore or start, train, send checkpoints."""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import emc2dist.run.cluster  # noqa: F401  before ray: sets its defaults

import ray.train  # isort: skip
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointUploadMode

from emc2dist import files
from emc2dist.config import Spec, parse
from emc2dist.data.images import open_images, open_labelled
from emc2dist.metrics import Row
from emc2dist.run import checkpoints, failures
from emc2dist.run.board import TIMEOUT_S, BoardHandle, Lookout
from emc2dist.run.folder import RunFolder, checkpoint_name
from emc2dist.run.scratch import scratch
from emc2dist.store import ChainStore
from emc2dist.train import collectives, loop


def work(config: dict[str, Any]) -> int:
    """Train this rank's share of the run of config["spec"]; returns the steps taken.

    Raises what ends the run, which the board is told of, or what may pass, after which the run goes on.
    """
    board: BoardHandle = config["board"]
    board.enter()
    spec = parse(config["spec"])
    with _told(board, spec):
        return _train_rank(spec, config["run"], config["store"], board)


@contextmanager
def _told(board: BoardHandle, spec: Spec) -> Iterator[None]:
    """Tell the board of what ends the run; what may pass goes to Ray alone."""
    try:
        yield
    except Exception as error:
        failure = failures.fatal(error, spec)
        if failure is not None:
            board.fail(failure)
        raise


def _train_rank(spec: Spec, run: RunFolder, store: ChainStore, board: BoardHandle) -> int:
    context = ray.train.get_context()
    torch.set_num_threads(spec.threads or max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    train = open_images(spec.data, "train", spec.s3)
    assert train is not None, "open_images raises where there is nothing to train on"
    labelled = open_labelled(spec.data, spec.eval, train, spec.s3)
    device = ray.train.torch.get_device()
    with ExitStack() as stack:
        own = stack.enter_context(scratch(run))
        (own / "resume").mkdir()
        first = spec.checkpoint.every * loop.order_for(spec, train).steps_per_epoch
        choice = checkpoints.choose(run, store.layout, own / "resume", expendable=first)
        if choice.passed_over and context.get_world_rank() == 0:
            board.record({"step": choice.step, "passed_over": "; ".join(choice.passed_over)})
        keeper = stack.enter_context(closing(_RayKeeper(spec, run, board)))
        stop = stack.enter_context(Lookout(board)) if context.get_world_rank() == 0 else threading.Event()
        return loop.run(loop.Job(spec, train, labelled, store, board, keeper, device, stop, own), choice.folder)


class _RayKeeper:
    """Sends checkpoints to the run folder while training goes on, and registers them with Ray Train."""

    def __init__(self, spec: Spec, run: RunFolder, board: BoardHandle) -> None:
        self._spec, self._run, self._board = spec, run, board
        # The driver may just have begun to try in vain, and then tries once more.
        tries = 2 * spec.s3.attempts if run.place.remote else 0
        self._patience_s = TIMEOUT_S + tries * (spec.s3.timeout_s + files.LONGEST_PAUSE_S)
        self._idle = threading.Semaphore()

    def keep(self, step: int, folder: Path, row: Row) -> None:
        """See `emc2dist.train.loop.Keeper`."""
        self._idle.acquire()  # one at a time: where storage is slow, local copies must not pile up
        try:
            ray.train.report(
                dict(row),
                checkpoint=Checkpoint.from_directory(folder),
                checkpoint_dir_name=checkpoint_name(step),
                checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
                checkpoint_upload_fn=self._send,
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
            with _told(self._board, self._spec):
                if collectives.rank() == 0:
                    self._board.wait_until_saved(self._patience_s)
                checkpoints.send(Path(checkpoint.path), place)
                if collectives.rank() == 0:
                    checkpoints.prune(self._run, self._spec.checkpoint.keep)
        finally:
            self._idle.release()
        filesystem, path = place.arrow()
        return Checkpoint(path, filesystem)
