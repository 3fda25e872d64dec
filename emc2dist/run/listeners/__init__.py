"""Whoever is told of a run's rows as they come.

terminal     a person, on stderr: a progress bar, or plain lines in a log
prometheus   the newest values, on an endpoint of the run and on Ray's
tensorboard  event files in the run folder
trackers     Weights & Biases and MLflow; and which of all these a spec asks for
"""
