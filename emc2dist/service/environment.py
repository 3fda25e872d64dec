"""The environment that Ray is started with, here or on a node; what a person has set wins. Imports no Ray."""

DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray starts workers at nice 15: beside any other load they starve.
    "RAY_worker_niceness": "0",
    # A report to Ray Train takes one interval, 2 s by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # A worker that does not answer is given up after 10 minutes by default, and all others wait for it.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
    # On a loaded machine it takes more than the default minute until all workers have imported torch.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    # Where there is no GPU, leave CUDA_VISIBLE_DEVICES alone.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Between SIGTERM and SIGKILL for a job that is stopped: 3 s by default, too short for a checkpoint.
    "RAY_JOB_STOP_WAIT_TIME_S": "120",
}
