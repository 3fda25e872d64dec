"""A run watched from elsewhere: `live.py` reads its folder as it grows, `grafana.py` makes a dashboard of its metrics.

Neither is known to the run, and neither needs Ray. What a run itself tells of its rows is in `emc2dist.run.listeners`.
"""
