"""From a spec to a job on a cluster, and what becomes of it.

    plan.py       what a run or a sweep becomes as a job, the same wherever it goes; what every target can do
    targets.py    which target a word means
    manifest.py   what a cluster's manifest declares
    placement.py  whether the run can be placed on that
    ray_jobs.py   a running Ray cluster, by its job API
    local.py      a Ray of several nodes on this machine
    processes.py  processes that outlive whoever starts them, and how they are ended
    kuberay.py    a cluster of its own on Kubernetes: rayjob.py says what is sent and read, kubectl.py sends it
    spot.py       a spot instance's notice becomes Ray's
    output.py     jobs for people: log, state, table

cli.jobs -> plan.plan_of(spec) -> placement.check -> target.submit -> the cluster runs `emc2dist train spec.yaml`
"""
