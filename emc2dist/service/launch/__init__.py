"""From a spec to a job on a cluster, and what becomes of it.

plan.py       what a spec becomes as a job, the same wherever it goes; what every target can do
placement.py  what a cluster's manifest declares, and whether the run can be placed on it
jobs.py       a running Ray cluster, by its job API
local.py      a Ray of several nodes on this machine
sessions.py   processes that outlive whoever starts them, and how they are ended
kuberay.py    a cluster of its own on Kubernetes, by kubectl

cli.submit -> plan.of(spec) -> placement.check -> target.submit -> the cluster runs `emc2dist train spec.yaml`
"""
