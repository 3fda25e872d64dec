"""The driver of a run: shards and channel on its side, Ray Train's workers under them.

    driver:  check the data -> run folder -> cluster -> attempts -> summary
    attempt: wait for room -> shards, channel -> Ray Train's controller
    worker:  `emc2dist.run.worker`: open the data -> restore or start -> `emc2dist.train.loop`

A run is a chain of attempts, each with workers, shards and a channel of its own, from the newest whole checkpoint on.
An attempt ends

- at the last step;
- with a checkpoint of its last step, when the run is asked to stop, a node is about to be taken away, or there is room
  for more workers;
- where somebody was lost.

So all that works together is of one age, and one path serves the loss of a worker, a shard or a node, a move, a change
of size, and the same command run again.
"""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

import emc2dist.run.cluster as cluster  # before ray: sets its defaults

import ray.train  # isort: skip
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from emc2dist import files
from emc2dist.config import BUILT_IN, Spec, changed, dump, paths
from emc2dist.config.sections import TRANSFORMERS
from emc2dist.errors import RunError, RunStopped, SpecError, StorageUnreachable, StoreError
from emc2dist.metrics import Recorder
from emc2dist.run import beginning, checkpoints, failures, lock
from emc2dist.run.channel import DEAD, ChannelHandle
from emc2dist.run.elastic import NodeMonitor
from emc2dist.run.fixed_size import FixedSize
from emc2dist.run.folder import RunFolder, numbers
from emc2dist.run.listeners import Listener, trackers
from emc2dist.run.listeners.alarms import Alarms
from emc2dist.run.listeners.prometheus import Exporter, refuse_taken, watched
from emc2dist.run.listeners.terminal import Display
from emc2dist.run.monitor import Monitor
from emc2dist.run.process_group import ProcessGroup
from emc2dist.run.start_limit import StartLimit
from emc2dist.run.worker import work
from emc2dist.store import ChainStore, Layout, LocalStore
from emc2dist.store.remote import RayStore
from emc2dist.terminal import say
from emc2dist.towers.views import OwnView
from emc2dist.train import checkpoint, loop
from emc2dist.train.memory import schema_for
from emc2dist.train.model_files import ModelFiles
from emc2dist.train.sets import (
    TrainingSet,
    columns_of,
    grades_of,
    guide_of,
    judge_of,
    left_over,
    open_training_set,
    settled,
)


def train(spec: Spec, *, listener: Listener | None = None, stop: threading.Event | None = None) -> dict[str, Any]:
    """Run `spec` to its last epoch, from its newest checkpoint if it has one; returns the summary.

    `listener` is told of the rows instead of a person at a terminal; `stop` ends the run as SIGTERM would.

    Raises:
        SpecError, DataError, RunError: before anything starts, where it can be known.
        NonFiniteError, StoreError: while it runs.
        RunStopped: a signal of ENDING came, or `stop` was set; the run wrote a checkpoint of its step, and ended.
        KeyboardInterrupt: the same by Ctrl-C; or it came once more, and no checkpoint was waited for.
    """
    spec = resolved(spec)
    cluster.leave_jobs_folder()
    trackers.refuse_missing(spec)
    spec = settled(spec)
    folder = RunFolder.of(spec)
    _refuse_missing_model(spec, folder)
    model = ModelFiles.of(spec, folder.of_model)
    images, remarks, neighbours = check(spec, model)
    for remark in remarks:
        say(remark)
    order = loop.order_for(spec, images)
    steps = spec.epochs * order.steps_per_epoch
    with ExitStack() as alone, ExitStack() as stack:
        if folder.summary() is None:  # a finished one is only read, perhaps by somebody who may do no more
            alone.enter_context(lock.held(folder.place))
        # What may refuse the run comes first: until it is accepted, its folder says what ran there before.
        folder.refuse_other_spec(spec)
        folder.rows()
        newest = checkpoints.newest(folder)
        if newest:
            checkpoint.refuse_other_data(folder.place, newest, images)
            if model:
                model.refuse_unlike(newest.model, folder.place)
            beginning.refuse_other(folder, newest, spec)
        done = folder.summary()
        if done is not None:
            return _of_finished(folder, spec, done)
        begun = spec
        if newest is None:
            on_beginning = beginning.check(spec, images, model)
            for remark in on_beginning:
                say(remark)
            remarks += on_beginning
            begun = beginning.pinned(spec)
        if spec.watch.port:
            refuse_taken(spec.watch.port)
        stop = stop or stack.enter_context(set_on(signal.SIGINT, *ENDING))  # before Ray: interrupted, it may crash
        stack.enter_context(cluster.connected(spec))
        listener = listener or stack.enter_context(closing(Display(steps)))
        folder.drop_cut_row()
        # Once for the run: a cluster that has lost nodes must not turn it to CPUs.
        device = _device(spec, folder, newest, listener)
        placed = changed(begun, {"device": device}, source=f"device: {spec.device} is {device} here")
        remarks += on_device(spec, device, listener.say)
        if newest and (new := folder.new_values(spec)):
            remarks.append(f"from step {newest.step} on with other values than before ({'; '.join(new)})")
            listener.say(remarks[-1])
        RunFolder.prepare(spec, model)
        others = stack.enter_context(trackers.recorders(spec, folder))
        exporter = stack.enter_context(watched(spec, folder, order.steps_per_epoch))
        alarms = Alarms(order.steps_per_epoch, spec.negatives.options().get("kernel"), listener.say)
        try:
            taken = _Run(placed, folder, len(images), steps, listener, exporter, [*others, alarms], stop).go()
        except KeyboardInterrupt:
            newest = checkpoints.newest(folder)
            kept = f"resumes at step {newest.step}" if newest else "begins anew, for no checkpoint holds any of it"
            raise KeyboardInterrupt(f"{folder.place}: interrupted; the same command {kept}") from None
        checkpoints.prune(folder, spec.checkpoint.keep)
        stack.close()  # but for the lock: whoever finds it free and no summary knows that the run is unfinished
        if taken < steps:
            reached = f"at step {taken} of {steps}, which a checkpoint holds"
            where = reached if taken else "while it waited for its places"
            if isinstance(stop, Asked) and stop.number == signal.SIGINT:
                raise KeyboardInterrupt(f"{folder.place}: stopped {where}; the same command resumes")
            raise RunStopped(f"{folder.place}: stopped {where}")
        remarks += [*on_the_way(folder.rows()), *alarms.heard]
        summary = summarise(folder, steps) | {"device": device, "neighbours": neighbours, "remarks": remarks}
        folder.finish(summary)
        return summary


def _refuse_missing_model(spec: Spec, folder: RunFolder) -> None:
    """Raise SpecError where the folder of a transformers model is not there, and the run does not keep its files."""
    place = files.local(spec.encoder.backbone.removeprefix(TRANSFORMERS))
    if spec.encoder.backbone.startswith(TRANSFORMERS) and not place.exists() and not folder.of_model.entries():
        raise SpecError(
            f"encoder.backbone: {place}: there is no such folder, and nothing is fetched from the Hub; save a model of "
            "it first: AutoModel.from_pretrained(NAME).save_pretrained(FOLDER) of transformers, and the same with "
            "AutoTokenizer"
        )


def _of_finished(folder: RunFolder, spec: Spec, done: dict[str, Any]) -> dict[str, Any]:
    """The summary of a finished run, and what it cannot have heeded of the spec that it is asked for with."""
    say(f"{folder.place}: this run is finished; give it another name to run it again")
    remarks = []
    if new := [value for value in folder.new_values(spec) if not value.startswith("watch.report:")]:  # it is heeded
        remarks.append(f"the finished run's values stand, not those given now ({'; '.join(new)})")
    if done["checkpoint"] is None:
        remarks.append(folder.without_checkpoints())
    for remark in remarks:
        say(remark)
    return done | ({"remarks": [*done.get("remarks", []), *remarks]} if remarks else {})


def _device(spec: Spec, folder: RunFolder, newest: checkpoint.Manifest | None, listener: Listener) -> str:
    """The workers' device. Raises SpecError where `auto` would have the run go on with another kind."""
    device = "cuda" if cluster.use_gpu(spec) else "cpu"
    before, step = (newest.parsed_spec().device, newest.step) if newest else (device, 0)
    if before == device:
        return device
    if spec.device == "auto":
        raise SpecError(
            f"device: auto is {device} here, and {folder.place} trained on {before} up to step {step}; its "
            f"numbers would be others from there on: resume where it trained, or give device={device} if that is meant"
        )
    listener.say(f"device: {device} from step {step} on, {before} before: the numbers are not those of one device")
    folder.append([{"step": step, "device_changed": f"{before} -> {device}"}])
    return device


def on_device(spec: Spec, device: str, tell: Callable[[str], None]) -> list[str]:
    """Tell what the run trains on; returns a remark where that is not the GPUs that there are."""
    why = cluster.why_no_gpu(spec) if spec.device == "auto" and device == "cpu" else ""
    line = f"trains on {device}" + (f", and not on GPUs: {why}; device=cuda would refuse that" if why else "")
    tell(line)
    return [line] if why else []


def check(spec: Spec, model: ModelFiles | None = None) -> tuple[TrainingSet, list[str], int | None]:
    """Open the data and see that they fit the spec; `model` as in `emc2dist.train.sets.token_views`.

    Returns the training set, remarks on the data, and k of kNN, which is None where nothing is evaluated.

    Raises:
        SpecError: it goes too far, or `views.transform` makes no views. DataError: the data cannot be opened, are fewer
            than a batch, or lack labels or what else the spec reads of each image.
    """
    train = open_training_set(spec)
    if spec.views.transform is not None:
        OwnView(spec.views)  # refuses what makes no views
    _, on_columns = columns_of(spec, train)
    guide_of(spec, train)
    grades_of(spec, train)
    loop.order_for(spec, train)
    judge, remarks = judge_of(spec, train, model)
    remarks = [*train.remarks, *left_over(spec, train), *on_columns, *remarks, *loop.dear_reads(spec, train)]
    return train, remarks, judge.neighbours if judge else None


def summarise(folder: RunFolder, steps: int) -> dict[str, Any]:
    """A finished run's summary, from its rows."""
    return {
        "run_dir": str(folder.place),
        "steps": steps,
        **numbers(folder.rows()),
        "checkpoint": str(folder.checkpoints()[0]),
    }


def on_the_way(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Remarks on what rows tell of a run's way: checkpoints that were passed over, and another device."""
    remarks = []
    for row in rows:
        if "passed_over" in row:
            remarks.append(f"passed over at step {row['step']}, as not whole: {row['passed_over']}")
        if "device_changed" in row:
            remarks.append(f"device: {row['device_changed']} at step {row['step']}: the numbers are not those of one")
    return remarks


def resolved(spec: Spec) -> Spec:
    """Paths made absolute, for workers, and whoever starts the saved spec later, have working directories of their own;
    and `auto` made what it stands for.
    """
    spec = _kept_after_the_job(spec) if cluster.in_job() else spec
    data, remote = spec.data, files.is_remote(spec.data.path)
    path = data.path if remote or data.path in BUILT_IN else paths.absolute(data.path)
    run_dir = spec.run_dir if files.is_remote(spec.run_dir) else paths.absolute(spec.run_dir)
    shuffle = data.shuffle
    if shuffle == "auto" and spec.of_images:  # texts lie in memory, and their order is always full
        shuffle = "block" if remote and data.per_class is None else "full"
    here: dict[str, Any] = {"run_dir": run_dir, "data": data.model_copy(update={"path": path, "shuffle": shuffle})}
    encoder, begin = dict[str, str](), spec.start_from
    if spec.text_backbone is not None and spec.text_backbone.startswith(TRANSFORMERS):
        backbone = f"{TRANSFORMERS}{paths.absolute(spec.text_backbone.removeprefix(TRANSFORMERS))}"
        if spec.data.kind == "captions":
            here["text"] = spec.text.model_copy(update={"tower": backbone})
        else:
            encoder["backbone"] = backbone
    if spec.encoder.weights is not None and not files.is_remote(spec.encoder.weights):
        encoder["weights"] = paths.absolute(spec.encoder.weights)
    if begin is not None and not files.is_remote(begin):
        here["start_from"] = paths.absolute(begin)
    here["encoder"] = spec.encoder.model_copy(update=encoder)
    return spec.model_copy(update=here)


def _kept_after_the_job(spec: Spec) -> Spec:
    """A run folder in the home folder, where a relative one would go with the job's copy of the working directory."""
    if files.is_remote(spec.run_dir) or files.local(spec.run_dir).is_absolute():
        return spec
    run_dir = str(Path.home() / spec.run_dir)
    say(f"run_dir: {spec.run_dir} would be deleted with this job's files; the run goes to {run_dir}")
    return spec.model_copy(update={"run_dir": run_dir})


class Asked(threading.Event):
    """Set by a signal, whose number it knows."""

    number: int | None = None


@contextmanager
def set_on(*numbers: signal.Signals) -> Iterator[Asked]:
    """An event that the first of such signals sets; the same once more does what it did before. (Threads get none.)

    But for SIGHUP, which kernel and shell both send where a terminal goes. What is ignored stays so, as under nohup.
    """
    wanted = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield wanted
        return
    found = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in found.items() if handler != signal.SIG_IGN}

    def handle(number: int, frame: FrameType | None) -> None:
        wanted.number = wanted.number or number
        wanted.set()
        if number != signal.SIGHUP:
            signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield wanted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""What asks a run to end: whoever manages it, a terminal that is gone, a scheduler whose time limit is near."""


class _Lost(Exception):
    """Workers, shards or their nodes were lost; what is left of the attempt has been ended."""


_STORAGE_S = 10.0


@dataclass(frozen=True)
class _Run:
    """A run on its way to the last step, attempt after attempt."""

    spec: Spec
    folder: RunFolder
    samples: int
    steps: int
    listener: Listener
    exporter: Exporter
    others: Sequence[Recorder]
    stop: threading.Event
    avoid: set[str] = field(default_factory=set)
    """Ids of nodes that did not start workers in time."""

    def go(self) -> int:
        """Returns the steps taken: all, or those of the last checkpoint where the run was asked to stop."""
        restarts = 0
        while True:
            try:
                taken = self._attempt()
            except (_Lost, StorageUnreachable) as loss:
                cluster.see_that_own_ray_lives()
                restarts += 1
                if restarts > self.spec.restarts:
                    raise RunError(
                        f"{self.folder.place}: started again {self.spec.restarts} times, which is what restarts "
                        f"allows, and lost again; the same command resumes ({loss})"
                    ) from loss
                self.listener.say(f"{loss}: started again, {restarts} of {self.spec.restarts} times")
                continue
            if taken == self.steps or self.stop.is_set():
                return taken

    def _attempt(self) -> int:
        """Train from the newest checkpoint until the last step, or something changes; returns the steps taken."""
        self._wait_for_storage()
        workers = cluster.wait_for_workers(self.spec, self.avoid, self.stop.is_set, self.listener.say)
        if not workers:
            return 0
        spec = self.spec.model_copy(update={"workers": workers})
        with ExitStack() as stack:
            store = stack.enter_context(closing(self._create_store()))
            channel = ChannelHandle.create()
            nodes = NodeMonitor(spec, self.spec.workers, channel.nodes, store.nodes, self.avoid)
            parts = (self.exporter, store, lambda: self._reason_to_stop(nodes), self.others)
            stack.enter_context(Monitor(channel, self.folder, self.listener, *parts))
            return _fit(spec, self.folder, store, channel, self.avoid)

    def _wait_for_storage(self) -> None:
        """Wait until S3 answers, if the run is there. Raises StorageUnreachable after `resources.wait_s`."""
        began, told = monotonic(), False
        while not self.stop.is_set():
            try:
                self.folder.exists()
                return
            except StorageUnreachable as error:
                if monotonic() - began > self.spec.resources.wait_s:
                    raise
                if not told:
                    self.listener.say(f"waiting for storage: {error}")
                told = True
                self.stop.wait(_STORAGE_S)

    def _reason_to_stop(self, nodes: NodeMonitor) -> str | None:
        if self.stop.is_set():
            return "stopping: a checkpoint is written first; the same signal once more ends the run without one"
        return nodes.reason_to_move()

    def _create_store(self) -> ChainStore:
        schema, layout = schema_for(self.spec), Layout(self.samples, self.spec.shards)
        if not schema:
            return LocalStore(layout, schema)  # nothing to remember, so nothing to share
        mib, labels = self.spec.resources.shard_mib, self.spec.resources.shard_labels
        memory = mib * 2**20 if mib else None
        limits = {"timeout_s": self.spec.store.timeout_s, "start_timeout_s": self.spec.resources.start_s}
        try:
            return RayStore.create(layout, schema, **limits, memory=memory, labels=labels)
        except StoreError as error:
            raise failures.fatal_text(str(error), self.spec) or _Lost(
                f"the shards did not start ({error}){cluster.scarce_threads(self.spec)}"
            ) from error


def _fit(spec: Spec, folder: RunFolder, store: ChainStore, channel: ChannelHandle, avoid: set[str]) -> int:
    """Train on workers; returns the steps taken. Raises _Lost where starting again may help.

    No worker is put on the nodes of `avoid`, to which those are added that do not start theirs in time.
    """
    filesystem, path = folder.place.arrow()
    checkpoints.drop_rays_list(folder)
    trainer = _Trainer(
        work,
        train_loop_config={"spec": dump(spec), "run": folder, "store": store, "channel": channel},
        backend_config=ProcessGroup(),
        scaling_config=ScalingConfig(
            num_workers=spec.workers,
            use_gpu=cluster.use_gpu(spec),
            resources_per_worker=cluster.worker_needs(spec),
            label_selector=cluster.worker_labels(spec, avoid) or None,
        ),
        run_config=RunConfig(
            name=spec.name,
            storage_path=path.removesuffix(f"/{spec.name}"),
            storage_filesystem=filesystem,
            # Whoever is lost, the shards go back with them: the driver starts all anew.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
            logging_config=LoggingConfig(log_level="ERROR"),
            callbacks=[StartLimit(channel, spec.resources.start_s)],
        ),
    )
    try:
        return _interruptible(trainer.fit).return_value
    except ray.train.TrainingFailedError as error:
        said = _said(error)
        failure = channel.failure() or failures.fatal_text(said, spec)
        raise failure or _Lost(f"workers or shards were lost ({failures.gist(said)})") from error
    except DEAD as error:
        if failure := failures.fatal_text(str(error), spec):
            raise failure from error
        late = channel.late()
        if late is None:
            raise _Lost(f"Ray Train's controller was lost{failures.cause_of_death(error)}") from error
        avoid |= late
        where = f" on {cluster.addresses(late)}" if late else ""
        limit = f"{spec.resources.start_s:g} s (resources.start_s)"
        raise _Lost(f"workers did not start in {limit}{where}{cluster.scarce_threads(spec)}") from error


class _Trainer(DataParallelTrainer):
    """Ray's, but without processes that have nothing to do here, and but for the first Ctrl-C: that is the driver's,
    and Ray, which would abort at once, has the second.

    One would share out Ray Data's sets, of which there are none. One gives back the places of a controller that has
    died: `cluster.drop_leftovers` does while the driver lives, and Ray itself when the driver's job ends, which only a
    driver in an actor does not end with itself.
    """

    def _create_default_callbacks(self) -> list[Any]:
        in_actor = ray.get_runtime_context().get_actor_id() is not None
        idle = (DatasetsCallback,) if in_actor else (DatasetsCallback, PlacementGroupCleanerCallback)
        return [one for one in super()._create_default_callbacks() if not isinstance(one, idle)]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        own = {"scaling_policy": FixedSize(self.scaling_config)} if cluster.is_own() else {}
        return super()._initialize_and_run_controller(**parts | own)

    def _register_sigint_handler(self, controller: Any) -> None:
        drivers = signal.getsignal(signal.SIGINT)
        if drivers == signal.SIG_IGN:  # as in what a script starts with `&`
            return
        super()._register_sigint_handler(controller)
        rays = signal.getsignal(signal.SIGINT)
        if not callable(drivers) or drivers is signal.default_int_handler:
            return

        def handle(number: int, frame: FrameType | None) -> None:
            drivers(number, frame)
            signal.signal(signal.SIGINT, rays)

        signal.signal(signal.SIGINT, handle)


def _said(error: ray.train.TrainingFailedError) -> str:
    """What the first rank's traceback says, or the whole error."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    return str(failures[min(failures)])


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
