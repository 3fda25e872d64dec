"""One run on many workers, by Ray Train: how it goes, what it leaves, and who listens.

    driver.py       the run: attempt after attempt, each from the newest whole checkpoint on
    worker.py       one worker of an attempt
    process_group.py how torch.distributed joins the workers
    channel.py      rows, errors and the stop request, between workers and driver
    monitor.py      rows from the channel to the run folder and to the listeners
    listeners/      a person's terminal, Prometheus, TensorBoard, W&B, MLflow
    failures.py     which errors end a run, and which a new attempt may mend
    elastic.py      when workers should move: nodes that go, nodes that come
    start_limit.py  a limit on the start of workers
    fixed_size.py   no nodes asked for where none can be added

    folder.py       the run folder: spec, rows, summary
    lock.py         one driver at a time for it
    checkpoints.py  its checkpoints: sent, chosen to resume from, removed when old
    loaded.py       a checkpoint's encoder and store, read again
    results.py      evaluation and export of that
    certificate.py  what a sampler buys with that encoder, or with a spec's untrained one
    scratch.py      temporary folders on this machine

    cluster.py      a Ray to run on: one that is there, or one of our own; its room and its nodes
    address.py      whether a Ray answers at RAY_ADDRESS
    access.py       tokens: no cluster without one is spoken to
    environment.py  the environment that Ray is started with
    packages.py     packages that only some runs want

cli.runs -> driver.train(spec) -> an attempt -> Ray Train -> worker.work -> `emc2dist.train.loop.run`
"""
