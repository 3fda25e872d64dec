"""Listeners, which are told of a run's rows as they come.

    terminal.py     a person, on stderr: a progress bar, or plain lines in a log
    prometheus.py   the newest values, on an endpoint of the run and on Ray's
    tensorboard.py  event files in the run folder
    trackers.py     Weights & Biases, MLflow; and which of these a spec asks for

`emc2dist.run.monitor` tells them, on the driver.
"""
