"""A sweep: many runs of one spec with other values of some keys, some stopped early, and what comes of it.

    driver.py      the sweep, from its spec to its summary     folder.py      records of trials, and where all lies
    space.py       from a search space to points               tuner.py       Ray Tune at work
    trial.py       one trial: a run inside an actor            schedulers.py  which trials are to stop early
    results.py     the table, the best, importance             pictures.py    what they look like
    prometheus.py  what Prometheus sees

Every trial is an ordinary run in the sweep's folder. The same command goes on: what has ended is kept, what has not
resumes from its own checkpoint.
"""
