"""What can go wrong, as a tree that callers can catch wide or narrow.

    Emc2Error
    ├── SpecError          the YAML spec, or a key=value on the command line
    ├── DataError          a file, a row or an image of the dataset
    ├── RunError           a run folder or a checkpoint
    │   └── RunStopped         the run was asked to stop: a checkpoint holds all of it
    ├── StorageError       a file on disk or S3: refused, missing, changed or damaged
    │   └── StorageUnreachable   no answer, or throttled, after as many attempts as `s3.attempts` says: may pass
    ├── LaunchError        a cluster that a job is sent to: refused, no answer, no such job
    │   └── RayEnded           the Ray that was started here was ended from outside, which has been told already
    ├── NonFiniteError     a feature that is NaN or infinite: the run has diverged
    └── StoreError         the chain store
        ├── StoreTimeout       a shard did not answer in time
        └── StaleGeneration    a shard that has not been restored to the generation the trainer names

Every error is built from its message alone, so it survives pickling between processes. The message says what is
wrong, where (key, file, row, rank, step), and what to do. The command line exits with 2 on `SpecError`,
`DataError` and `StorageError`, with 143 on `RunStopped`, with 1 on the others and on `StorageUnreachable`.
"""


class Emc2Error(Exception):
    """Anything that emc2dist itself refuses or gives up on."""


class SpecError(Emc2Error):
    """A key of the spec is unknown, ill-typed, out of range, or contradicts another one."""


class DataError(Emc2Error):
    """The dataset cannot be read as asked; names the file and row where there is one."""


class RunError(Emc2Error):
    """A run folder or a checkpoint is missing, damaged, or belongs to another spec."""


class RunStopped(RunError):
    """The run ended before its last epoch because it was asked to; names the step that its checkpoint holds."""


class StorageError(Emc2Error):
    """A file or a folder, on disk or on S3, is refused, missing, changed or damaged."""


class StorageUnreachable(StorageError):
    """S3 does not answer or asks to slow down, after as many attempts as allowed; trying later may help."""


class LaunchError(Emc2Error):
    """A cluster, or the tool that speaks to it, refuses, does not answer, or knows no such job."""


class RayEnded(LaunchError):
    """The Ray that was started here was ended from outside. Its message stands on stderr: Ray may end the process."""


class NonFiniteError(Emc2Error):
    """A feature is NaN or infinite; names rank, step and sample."""


class StoreError(Emc2Error):
    """The chain store refused a call."""


class StoreTimeout(StoreError):
    """A shard did not answer in time; names the shard and the setting to change."""


class StaleGeneration(StoreError):
    """A shard holds another generation of rows than the caller names, or none since it was restarted."""
